"""What changes single logits before any token is cut: the request's bias, and penalties on tokens seen lately.

Pure numpy over the few entries concerned; runs in the worker process and knows neither llama.cpp nor requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Stands in for an infinite bias: a forbidden token (-inf) must stay forbidden, and -inf + inf would be NaN.
_LARGEST_BIAS = 1e30


class Adjustment(Protocol):
    """One change of the logits, with a memory of the text where it needs one."""

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits`, shape (vocabulary,), in place."""

    def accept(self, token: int) -> None:
        """Remember the next token of the text."""

    def close(self) -> None:
        """Free what it holds."""


class LogitBias:
    """Adds a number to the logits of some tokens; -inf forbids one. Ids outside the vocabulary are ignored."""

    def __init__(self, biases: Sequence[tuple[int, float]], vocabulary: int) -> None:
        """A token that is named twice gets both biases."""
        sums: dict[int, float] = {}
        for token, bias in biases:
            if 0 <= token < vocabulary:
                sums[token] = sums.get(token, 0.0) + bias
        self._ids = np.fromiter(sums.keys(), dtype=np.int64, count=len(sums))
        self._biases = np.fromiter((min(bias, _LARGEST_BIAS) for bias in sums.values()), np.float32, count=len(sums))

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Add them."""
        logits[self._ids] += self._biases

    def accept(self, token: int) -> None:
        """It needs no memory."""

    def close(self) -> None:
        """It holds nothing."""


class TokenCounts:
    """How often each token occurs among the last tokens of a text: two arrays in step, without gaps."""

    def __init__(self, tokens: Sequence[int], last_n: int) -> None:
        """`tokens` is the text so far; `last_n` > 0 bounds the window, -1 does not."""
        self._window = deque(tokens if last_n < 0 else tokens[-last_n:], None if last_n < 0 else last_n)
        ids, counts = np.unique(np.fromiter(self._window, np.int64, len(self._window)), return_counts=True)
        self._ids = ids
        self._counts = counts.astype(np.float32)
        self._size = ids.size
        self._place = {token: place for place, token in enumerate(ids.tolist())}

    @property
    def ids(self) -> NDArray[np.int64]:
        """The tokens in the window, each once, in no order."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of `ids` occurs, at least once."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Append a token to the text; the oldest leaves a full window."""
        window = self._window
        if len(window) == window.maxlen:
            self._take_out(window[0])
        window.append(token)
        place = self._place.get(token)
        if place is not None:
            self._counts[place] += 1
            return
        if self._size == self._ids.size:
            room = max(64, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
        self._place[token] = self._size
        self._ids[self._size] = token
        self._counts[self._size] = 1
        self._size += 1

    def _take_out(self, token: int) -> None:
        place = self._place[token]
        self._counts[place] -= 1
        if self._counts[place]:
            return
        del self._place[token]
        self._size -= 1
        if place != self._size:  # the last one moves into the gap
            moved = int(self._ids[self._size])
            self._ids[place] = moved
            self._counts[place] = self._counts[self._size]
            self._place[moved] = place


class Penalties:
    """Makes tokens that occurred lately less likely, as llama.cpp's `penalties` stage defines it.

    A positive logit is divided by `repeat`, a negative one multiplied with it; then `frequency` is taken off for every
    occurrence and `presence` once.
    """

    def __init__(self, tokens: Sequence[int], *, last_n: int, repeat: float, presence: float, frequency: float) -> None:
        """`tokens` is the text so far; the last `last_n` of it count, all with -1."""
        self._seen = TokenCounts(tokens, last_n)
        self._repeat = repeat
        self._presence = presence
        self._frequency = frequency

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Penalise the tokens in the window."""
        ids = self._seen.ids
        seen = logits[ids]
        if self._repeat != 1.0:
            seen = np.where(seen <= 0, seen * self._repeat, seen / self._repeat)
        if self._frequency or self._presence:
            seen = seen - (self._seen.counts * self._frequency + self._presence)
        logits[ids] = seen

    def accept(self, token: int) -> None:
        """Move the window on."""
        self._seen.add(token)

    def close(self) -> None:
        """It holds nothing."""
