"""Numbers of few bits in 32-bit words, and columns of matrices of such words.

GPTQ and AWQ lay a matrix out by inputs, and GGUF wants it by outputs: a row of what is written is a column of what is
stored. Columns are gathered in one pass over the rows, as many as a budget allows, and kept for the next call.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.gguf.checkpoints import Tensor

WORD = 32
WORDS = frozenset({"I32", "U32"})
"""Types of tensors that are read as words."""

_KEPT_BYTES = 32 * 2**20
_READ_BYTES = 4 * 2**20

Words = NDArray[np.uint32]


def unit(bits: int) -> tuple[int, int]:
    """How many words hold how many numbers without a rest: three words 32 numbers of 3 bits, others one word."""
    return (3, WORD) if bits == 3 else (1, WORD // bits)


def numbers(words: Words, bits: int) -> NDArray[np.uint8]:
    """All numbers of rows of words: the first in the lowest bits, one after the other, across words if need be."""
    raw = np.ascontiguousarray(words, "<u4").view(np.uint8)
    if bits == 8:
        return raw
    rows, width = raw.shape
    if bits == 3:
        parts = np.unpackbits(raw, axis=1, bitorder="little").reshape(rows, -1, 3)
        places = np.array((1, 2, 4), np.uint8)
        return np.asarray((parts * places).sum(axis=2, dtype=np.uint8))
    per_byte = 8 // bits
    found = np.empty((rows, width, per_byte), np.uint8)
    for place in range(per_byte):
        found[:, :, place] = (raw >> (bits * place)) & ((1 << bits) - 1)
    return found.reshape(rows, width * per_byte)


def columns(tensor: Tensor, start: int, stop: int) -> NDArray[np.generic]:
    """Columns of a matrix, as it has them; in memory are no more than these and a few megabytes."""
    found: NDArray[np.generic] | None = None
    for begin, rows in _blocks(tensor):
        if found is None:
            found = np.empty((tensor.rows, stop - start), rows.dtype)
        found[begin : begin + len(rows)] = rows[:, start:stop]
    assert found is not None
    return found


class Columns:
    """Columns of matrices of words, as rows. One of these serves all tensors: only the last one's are kept."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._start = 0
        self._kept: Words = np.empty((0, 0), np.uint32)

    def rows(self, tensor: Tensor, start: int, stop: int) -> Words:
        """Columns `start` to `stop`, each as one row of words."""
        if self._tensor is not tensor or start < self._start or stop > self._start + len(self._kept):
            self._fill(tensor, start, stop)
        return self._kept[start - self._start : stop - self._start]

    def _fill(self, tensor: Tensor, start: int, stop: int) -> None:
        self._tensor, self._kept = None, np.empty((0, 0), np.uint32)
        count = max(stop - start, _KEPT_BYTES // (4 * tensor.rows))
        stop = min(tensor.shape[1], start + count)
        kept = np.empty((stop - start, tensor.rows), np.uint32)
        for begin, rows in _blocks(tensor):
            kept[:, begin : begin + len(rows)] = rows[:, start:stop].view(np.uint32).T
        self._tensor, self._start, self._kept = tensor, start, kept


def _blocks(tensor: Tensor) -> Iterator[tuple[int, NDArray[np.generic]]]:
    step = max(1, _READ_BYTES // (4 * max(1, tensor.shape[1])))
    for begin in range(0, tensor.rows, step):
        yield begin, tensor.read(begin, min(tensor.rows, begin + step))
