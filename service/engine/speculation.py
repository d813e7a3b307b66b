"""Guessing tokens ahead, so that one step verifies several: what to guess, and how many pay. Pure.

A guess is looked up: where the last tokens have occurred before, in the prompt or in the answer, what followed them
then may follow now. All guesses of a step are computed in one batch, and a token is accepted where it is the one that
the sampler draws there: text and probabilities are exactly those without guessing.
"""

from __future__ import annotations

from collections.abc import Callable

_GRAM = 3  # tokens that must agree before what follows them is worth a guess
_LONG = 8  # tokens that agree where a text is being copied, most likely
_MEMORY = 0.9  # how much of what was seen still counts after each verified draft
_DOUBTFUL, _HOPEFUL = (3.0, 1.0), (8.0, 0.2)  # right and wrong guesses to begin with
_HOPELESS = 0.05  # a guess that is right so seldom is not worth its arithmetic
_RETRY_AFTER = 16  # tokens without guesses that cost something after they did not pay


class NgramIndex:
    """Where every run of three tokens last occurred in one sequence."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, tokens: list[int], limit: int) -> tuple[list[int], bool]:
        """What followed the last time that `tokens` ended as it does now; at most `limit` tokens, maybe none.

        And whether it ended so for long. A text that repeats itself is continued past its own end.
        """
        if limit <= 0 or len(tokens) <= _GRAM:
            return [], False
        # The last run itself is left out: it would find itself.
        for end in range(max(self._indexed, _GRAM), len(tokens)):
            self._last[tuple(tokens[end - _GRAM : end])] = end
        self._indexed = len(tokens)
        start = self._last.get(tuple(tokens[-_GRAM:]))
        if start is None:
            return [], False
        found = tokens[start : start + limit]
        period = len(tokens) - start
        while len(found) < limit:
            found += found[-period:]
        return found[:limit], start >= _LONG and tokens[start - _LONG : start] == tokens[-_LONG:]


class DraftLength:
    """How many guesses pay for one sequence, from how many were right lately.

    Guesses that are looked up cost nothing, so one is made for every token: whether it would have been right is known
    also where none was computed.
    """

    def __init__(self, *, hopeful: bool = False) -> None:
        """`hopeful` for guesses that are mostly right: where a text is being copied."""
        self._prior = _HOPEFUL if hopeful else _DOUBTFUL
        self._accepted, self._refused = self._prior
        self._rest = 0

    @property
    def acceptance(self) -> float:
        """Share of guessed tokens that are right, given that all before them were."""
        return self._accepted / (self._accepted + self._refused)

    def observe(self, drafted: int, accepted: int) -> None:
        """A draft was verified, or would have been right or wrong."""
        self._accepted = self._accepted * _MEMORY + accepted
        self._refused = self._refused * _MEMORY + (accepted < drafted)

    def choose(
        self,
        limit: int,
        streams: int,
        step_seconds: Callable[[int], float],
        max_seconds: float,
        guess_seconds: float = 0.0,
    ) -> int:
        """The number of guesses that saves most time, 0 when none does.

        `streams` tokens are computed anyway; `step_seconds(n)` is the cost of a step of n tokens, `guess_seconds` that
        of a guess. A token more is worth what a token costs without guessing. No step takes longer than `max_seconds`
        on account of guesses.
        """
        if self._rest > 0:
            self._rest -= 1
            return 0
        base = step_seconds(streams)
        if base <= 0.0:
            return min(limit, 1)  # nothing is known yet: learn what two tokens cost
        worth = base / streams
        best, best_gain = 0, 0.0
        expected, chance, acceptance = 0.0, 1.0, self.acceptance
        for length in range(1, limit + 1):
            chance *= acceptance
            if chance < _HOPELESS:
                break
            expected += chance
            seconds = step_seconds(streams + length)
            if seconds > max(max_seconds, base):
                break
            gain = expected * worth - (seconds - base) - length * guess_seconds
            if gain > best_gain:
                best, best_gain = length, gain
        if best == 0 and guess_seconds > 0.0:
            # It may pay again once the text is another; forget half of the bad luck meanwhile.
            self._rest = _RETRY_AFTER
            self._accepted = (self._accepted + self._prior[0]) / 2
            self._refused = (self._refused + self._prior[1]) / 2
        return best
