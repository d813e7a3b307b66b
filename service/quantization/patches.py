"""Tensors of a file as they would be at other types: the weights that come back, and how far they are off.

Child processes. Rows are read, quantized and restored in slabs of a few MB, so that memory stays bounded whatever the
size of a tensor, on several threads: ggml and numpy let go of the interpreter meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.gguf.header import Header
from service.llama.weights import dequantize_rows, quantize_rows

_SLAB_WEIGHTS = 1 << 19
_CACHE_BYTES = 1 << 30
_SAMPLE_WEIGHTS = 1 << 20  # enough for the mean error of a weight: rows of a tensor are much alike

_T = TypeVar("_T")
Floats = NDArray[np.float32]
Span = tuple[int, int]
"""First row and the one after the last, counted through all experts."""


class Patches:
    """The tensors of one file. Its matrices must have float types or types that ggml can restore. Close it."""

    def __init__(self, path: Path, header: Header, importance: Mapping[str, Floats] | None, *, threads: int) -> None:
        """`importance` has experts * columns values for each tensor it knows, as the quantizer takes them."""
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._places = {
            tensor.name: (header.data_offset + offset, tensor)
            for tensor, offset in zip(header.tensors, header.offsets, strict=True)
        }
        self._importance = importance or {}
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads
        self._stored: dict[tuple[str, str, int], NDArray[np.uint8]] = {}
        self._stored_bytes = 0
        self._errors: dict[tuple[str, str], float] = {}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def slabs(self, name: str, type_name: str | None) -> Iterator[tuple[int, Floats]]:
        """The tensor as it comes back from `type_name`, slab by slab: first row, rows. None: as it is in the file."""

        def work(span: Span) -> tuple[int, Floats]:
            return span[0], self._rows(name, span) if type_name is None else self._restored(name, type_name, span)

        yield from self._each(work, list(self._spans(name)))

    def error(self, name: str, type_name: str) -> float:
        """Sum over the weights of their squared change, each times the mean squared activation of its column.

        For a matrix whose inputs do not correlate it is the expected squared change of its outputs, summed over them.
        Without an importance matrix every column counts 1. Large tensors are judged by a sample of their rows.
        """
        known = self._errors.get((name, type_name))
        if known is None:
            spans = list(self._sample(name))
            total = sum(self._each(lambda span: self._error(name, type_name, span), spans))
            rows = sum(last - first for first, last in spans)
            known = self._errors[name, type_name] = total * self._row_count(name) / rows
        return known

    def _each(self, work: Callable[[Span], _T], spans: list[Span]) -> Iterator[_T]:
        # A few ahead of the reader, never all of a large tensor.
        ahead = self._threads + 1
        for start in range(0, len(spans), ahead):
            yield from self._pool.map(work, spans[start : start + ahead])

    def _row_count(self, name: str) -> int:
        return int(np.prod(self._places[name][1].shape[1:], dtype=np.int64))

    def _spans(self, name: str) -> Iterator[Span]:
        """All rows in slabs, none across the border of an expert."""
        shape = self._places[name][1].shape
        of_expert = shape[1] if len(shape) > 1 else 1
        step = max(1, _SLAB_WEIGHTS // shape[0])
        for expert in range(0, self._row_count(name), of_expert):
            for first in range(expert, expert + of_expert, step):
                yield first, min(first + step, expert + of_expert)

    def _sample(self, name: str) -> Iterator[Span]:
        """The slabs, each cut down to the same share."""
        shape = self._places[name][1].shape
        spans = list(self._spans(name))
        share = min(1.0, _SAMPLE_WEIGHTS / (shape[0] * self._row_count(name)))
        for first, last in spans:
            yield first, first + max(1, round((last - first) * share))

    def _rows(self, name: str, span: Span) -> Floats:
        start, tensor = self._places[name]
        first, last = span
        row_bytes = tensor.size_bytes // self._row_count(name)
        data = self._bytes[start + first * row_bytes : start + last * row_bytes].reshape(last - first, row_bytes)
        return dequantize_rows(tensor.type, np.asarray(data), tensor.shape[0])

    def _columns(self, name: str, span: Span) -> Floats | None:
        values = self._importance.get(name)
        if values is None:
            return None
        shape = self._places[name][1].shape
        expert = span[0] // shape[1] if len(shape) > 1 else 0
        columns: Floats = values.reshape(-1, shape[0])[expert]
        return columns

    def _restored(self, name: str, type_name: str, span: Span) -> Floats:
        key = (name, type_name, span[0])
        stored = self._stored.get(key)
        if stored is None:
            stored = quantize_rows(type_name, self._rows(name, span), self._columns(name, span))
            if self._stored_bytes + stored.nbytes <= _CACHE_BYTES:
                self._stored_bytes += stored.nbytes
                self._stored[key] = stored
        return dequantize_rows(type_name, stored, self._places[name][1].shape[0])

    def _error(self, name: str, type_name: str, span: Span) -> float:
        rows = self._rows(name, span)
        columns = self._columns(name, span)
        stored = quantize_rows(type_name, rows, columns)
        squares = np.square(dequantize_rows(type_name, stored, rows.shape[1]) - rows)
        return float(np.sum(squares if columns is None else squares @ columns, dtype=np.float64))
