"""From logits to what a text's own tokens cost, and how far a distribution is from its source's. Numpy, no llama.cpp.

Rows are worked through in blocks that stay in the processor's cache, on several threads: numpy lets go of the
interpreter's lock. Values of a row are float32, as logits are; sums over a row are pairwise, all others float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from service.quantization.compact import COMPACT_RANGE, compact_into, unpack

Logits = NDArray[np.float32]

_BLOCK_BYTES = 512 * 1024  # of logits; each thread has two more arrays of this size


@dataclass(frozen=True, slots=True)
class Scores:
    """One value for each scored token, in the order of the text; natural logarithms.

    `losses` are negative log-likelihoods of the text's own tokens. The others are empty without a source: the source's
    losses, KL divergences from the source, changes of the own token's probability, and whether the most likely token
    is the same.
    """

    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]
    divergences: NDArray[np.float64]
    probability_changes: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @classmethod
    def empty(cls, tokens: int, *, compared: bool) -> Scores:
        """Room for `tokens` values."""
        others = tokens if compared else 0
        return cls(
            np.zeros(tokens),
            np.zeros(others),
            np.zeros(others),
            np.zeros(others),
            np.zeros(others, dtype=np.bool_),
        )

    def part(self, rows: slice) -> Scores:
        """A view of some of the values."""
        return Scores(
            self.losses[rows],
            self.base_losses[rows],
            self.divergences[rows],
            self.probability_changes[rows],
            self.same_top[rows],
        )


class RowScorer:
    """Scores rows of logits, for one vocabulary. Close it."""

    def __init__(self, vocabulary: int, *, threads: int) -> None:
        """Buffers for `threads` threads."""
        self._block = max(1, _BLOCK_BYTES // (4 * vocabulary))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rows") if threads > 1 else None
        self._threads = threads
        self._buffers: SimpleQueue[_Buffers] = SimpleQueue()
        for _ in range(threads):
            self._buffers.put(_Buffers(self._block, vocabulary))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def score(self, logits: Logits, targets: NDArray[np.int32], out: Scores, base: NDArray[np.uint16] | None) -> None:
        """Score the rows (rows, vocabulary), each by the token that follows, into `out`.

        `base` holds the source's compact rows for the same tokens; None leaves all but the losses alone.
        """

        def work(rows: slice, buffers: _Buffers) -> None:
            if base is None:
                _score(logits[rows], targets[rows], out.part(rows), buffers)
            else:
                _compare(logits[rows], targets[rows], base[rows], out.part(rows), buffers)

        self._each_block(len(logits), work)

    def compact(
        self, logits: Logits, targets: NDArray[np.int32], losses: NDArray[np.float64], out: NDArray[np.uint16]
    ) -> None:
        """The losses of the rows, and in `out` (rows, compact_width(vocabulary)) their log-probabilities.

        The losses are exact; the compact form may put a token that was hardly expected nearer.
        """

        def work(rows: slice, buffers: _Buffers) -> None:
            losses[rows] = compact_into(out[rows], logits[rows], targets[rows], buffers.first)

        self._each_block(len(logits), work)

    def _each_block(self, count: int, work: Callable[[slice, _Buffers], None]) -> None:
        def run(rows: slice) -> None:
            buffers = self._buffers.get()
            try:
                work(rows, buffers)
            finally:
                self._buffers.put(buffers)

        blocks = self._blocks(count)
        if self._pool is None:
            for rows in blocks:
                run(rows)
        else:
            for _ in self._pool.map(run, blocks):
                pass

    def _blocks(self, count: int) -> Iterator[slice]:
        # No more rows in a block than give every thread one.
        size = min(self._block, -(-count // self._threads))
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))


class _Buffers:
    """Scratch of one thread: two arrays of one block."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self.first = np.empty((rows, vocabulary), dtype=np.float32)
        self.second = np.empty((rows, vocabulary), dtype=np.float32)


def _score(logits: Logits, targets: NDArray[np.int32], out: Scores, buffers: _Buffers) -> None:
    rows = np.arange(len(logits))
    shifted = buffers.first[: len(logits)]
    highest = logits.max(axis=1)
    np.subtract(logits, highest[:, None], out=shifted)
    own = shifted[rows, targets].astype(np.float64)
    np.exp(shifted, out=shifted)
    out.losses[:] = np.log(shifted.sum(axis=1).astype(np.float64)) - own


def _compare(
    logits: Logits, targets: NDArray[np.int32], base: NDArray[np.uint16], out: Scores, buffers: _Buffers
) -> None:
    """KL divergence of a row: the sum of p_base * (ln p_base - ln p) over tokens with ln p_base above -16."""
    count = len(logits)
    rows = np.arange(count)
    own_log, base_log = buffers.first[:count], buffers.second[:count]
    top = logits.argmax(axis=1)
    np.subtract(logits, logits[rows, top][:, None], out=own_log)
    np.exp(own_log, out=base_log)
    own_log -= np.log(base_log.sum(axis=1).astype(np.float64)).astype(np.float32)[:, None]
    losses = -own_log[rows, targets].astype(np.float64)

    base_top = unpack(base, base_log)
    base_losses = -base_log[rows, targets].astype(np.float64)
    told_apart = base_log > -COMPACT_RANGE
    np.subtract(base_log, own_log, out=own_log)
    np.exp(base_log, out=base_log)
    base_log *= told_apart  # by far faster than picking them out

    out.losses[:] = losses
    out.base_losses[:] = base_losses
    out.divergences[:] = np.einsum("rv,rv->r", base_log, own_log)
    out.probability_changes[:] = np.exp(-losses) - np.exp(-base_losses)
    out.same_top[:] = top == base_top
