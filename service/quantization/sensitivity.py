"""What tensors cost at other types, measured: a loaded source whose matrices are patched in place, and its divergence.

Child processes. No file is made and no model loaded again for a measurement: a tensor is overwritten by what would
come back from its quantized form, the text is computed, and the distributions are compared with the source's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.evaluation import Estimate
from service.gguf.header import Header
from service.llama.model import Model
from service.llama.probe import load_on_processor
from service.llama.weights import LoadedWeights
from service.llama.windows import WindowContext
from service.quantization.figures import mean
from service.quantization.patches import Patches
from service.quantization.windows import Windows, cut_windows

_BLOCK_VALUES = 1 << 16  # logits that one thread works on at a time; a few such arrays stay in its cache
_REFERENCE_BYTES = 1 << 30

Types = Mapping[str, str]
"""Tensor -> ggml type; tensors that are not named are as in the source."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The source's logits over the second half of a window, and the logarithms of their summed exponentials."""

    logits: NDArray[np.float32]
    sums: NDArray[np.float32]

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> _Rows:
        """A copy of logits."""
        return cls(logits.copy(), _log_sum_exp(logits))


class Bench:
    """A source in memory, patched and compared with itself. Close it."""

    def __init__(self, path: Path, header: Header, patches: Patches, *, window: int, threads: int) -> None:
        """Load the file, whose matrices are F16 or F32. Raises LoadFailed, and what `WindowContext` raises."""
        self._patches = patches
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._first = window // 2
        self.model = Model(path, gpu_layers=0, use_extra_buffers=False, writable=True)
        self._loaded = LoadedWeights(self.model, header.tensors, threads=threads)
        self._window = window
        self._context = self._new_context(self.model)
        self._patched: dict[str, str] = {}
        self._path = path
        self._reference: list[_Rows] = []  # for each window
        self._source_reference: list[_Rows] | None = None
        self._windows: list[NDArray[np.int32]] = []

    def close(self) -> None:
        """Free the model."""
        self._context.close()
        self.model.close()
        self._pool.shutdown()

    @property
    def measurable(self) -> frozenset[str]:
        """The tensors that take part in computing a text; others can be patched by no measurement."""
        return self._loaded.names

    @property
    def most_windows(self) -> int:
        """How many windows' logits are kept at most: bounded memory."""
        return max(1, _REFERENCE_BYTES // (4 * (self._window - self._first) * self.model.vocabulary_size))

    def cut(self, text: str, chunks: int | None) -> Windows:
        """The windows of a text, as evaluation cuts them."""
        return cut_windows(self.model, text, window=self._window, chunks=chunks)

    def add_reference(self, window: NDArray[np.int32]) -> None:
        """Compute a window with the source as it is; all measurements that follow look at it too."""
        self.patch({})
        self._context.decode([window], self._first)
        self._windows.append(window)
        self._reference.append(_Rows.of(self._context.logits()))

    def reference(self) -> list[NDArray[np.float32]]:
        """The source's logits, for each window its second half: shape (tokens, vocabulary)."""
        return [rows.logits for rows in self._reference]

    def forget_reference(self) -> None:
        """Start over with no windows."""
        self._windows.clear()
        self._reference.clear()

    def measure(self, types: Types, progress: Callable[[float], None] = lambda share: None) -> Estimate:
        """Mean KL divergence in nats from the source of the model with these types, over the second halves."""
        self.patch(types)
        return self._compare(self._context, progress, self._reference)

    def measure_file(
        self, path: Path, source: Path, progress: Callable[[float], None] = lambda share: None
    ) -> Estimate:
        """As `measure`, of the model in a file with the kernels that will serve it: those round activations as well.

        `source` is what it was made from. Where the bench has a copy of that, the source itself is computed once, with
        the same kernels. Raises LoadFailed.
        """
        if self._source_reference is None:
            own = source == self._path
            self._source_reference = (
                self._reference if own else self._computed(source, lambda share: progress(share / 2))
            )
        reference = self._source_reference
        with self._serving(path) as context:
            return self._compare(context, progress, reference)

    def _computed(self, path: Path, progress: Callable[[float], None]) -> list[_Rows]:
        found: list[_Rows] = []
        with self._serving(path) as context:
            for window in self._windows:
                context.decode([window], self._first)
                found.append(_Rows.of(context.logits()))
                progress(len(found) / len(self._windows))
        return found

    @contextmanager
    def _serving(self, path: Path) -> Iterator[WindowContext]:
        """A context over the model in a file, with the fastest kernels that work here."""
        model = load_on_processor(path)
        try:
            context = self._new_context(model)
            try:
                yield context
            finally:
                context.close()
        finally:
            model.close()

    def _compare(self, context: WindowContext, progress: Callable[[float], None], reference: list[_Rows]) -> Estimate:
        found: list[NDArray[np.float64]] = []
        for window, rows in zip(self._windows, reference, strict=True):
            context.decode([window], self._first)
            found.append(self._divergences(context.logits(), rows))
            progress(len(found) / len(self._windows))
        return mean(np.concatenate(found))

    def _new_context(self, model: Model) -> WindowContext:
        rows = self._window - self._first
        return WindowContext(model, window=self._window, sequences=1, threads=self._threads, max_rows=rows)

    def patch(self, types: Types) -> None:
        """Make the loaded model one with these types."""
        wanted = {name: kind for name, kind in types.items() if name in self._loaded.names}
        for name in [name for name in self._patched if name not in wanted]:
            self._write(name, None)
            del self._patched[name]
        for name, kind in wanted.items():
            if self._patched.get(name) != kind:
                self._write(name, kind)
                self._patched[name] = kind

    def _write(self, name: str, kind: str | None) -> None:
        for first, rows in self._patches.slabs(name, kind):
            self._loaded.write(name, first, rows)

    def _divergences(self, logits: NDArray[np.float32], rows: _Rows) -> NDArray[np.float64]:
        step = max(1, _BLOCK_VALUES // logits.shape[1])
        spans = [slice(start, start + step) for start in range(0, len(logits), step)]
        parts = self._pool.map(lambda span: divergences(logits[span], rows.logits[span], rows.sums[span]), spans)
        return np.concatenate(list(parts))


def divergences(
    logits: NDArray[np.float32], reference: NDArray[np.float32], sums: NDArray[np.float32]
) -> NDArray[np.float64]:
    """KL divergence of each row's softmax from the reference's, shape (rows,), in nats.

    With r = logits - reference and p the reference's probabilities it is ln(1 + sum p (e^r - 1)) - sum p r. That loses
    far less to rounding than the difference of two log-softmaxes: where r is small, so is every term. `sums` are the
    logarithms of the reference's summed exponentials.
    """
    p = np.exp(reference - sums[:, None])
    total = p.sum(axis=1)
    r = logits - reference
    # Any constant may be taken from r; its mean leaves the smallest terms.
    r -= (np.einsum("ij,ij->i", p, r) / total)[:, None]
    linear = np.einsum("ij,ij->i", p, r) / total
    np.exp(r, out=r)
    r -= 1.0
    grown = np.einsum("ij,ij->i", p, r) / total
    result: NDArray[np.float64] = np.maximum(np.log1p(grown.astype(np.float64)) - linear, 0.0)
    return result


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    highest = logits.max(axis=1)
    result: NDArray[np.float32] = np.empty_like(highest)
    for start in range(0, len(logits), 16):
        part = slice(start, start + 16)
        result[part] = highest[part] + np.log(np.exp(logits[part] - highest[part, None]).sum(axis=1))
    return result
