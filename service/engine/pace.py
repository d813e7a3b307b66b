"""What steps cost on this machine now, measured, and how much prompt a step may take. Pure.

Two averages: seconds of a step that only generates, by its number of tokens, and seconds of one prompt token more.
"""

from __future__ import annotations

import bisect

_WEIGHT = 0.25  # of the newest measurement
# llama.cpp's attention takes tiles of 64 tokens, and is several times slower for fewer: smaller pieces of a long prompt
# would make it slower and slower. The gap is exceeded rather than that.
_SMALLEST_CHUNK = 64
_LEAST_MEASURED = 8  # prompt tokens in a step from which their cost can be told from the rest
_ALONE_SECONDS = 0.5  # nobody waits for a token, but a client may hang up: steps stay short


class Pace:
    """Learns from every step."""

    def __init__(self, *, batch_tokens: int, max_gap_seconds: float) -> None:
        """`max_gap_seconds` is how long a step should take at most while streams run: the gap between their tokens."""
        self.batch_tokens = batch_tokens
        self.max_gap_seconds = max_gap_seconds
        self._generation: dict[int, float] = {}  # tokens in the step -> seconds
        self._sizes: list[int] = []  # its keys, sorted
        self._prompt_token = 0.0

    def observe(self, generated: int, prompt: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if prompt == 0:
            known = self._generation.get(generated)
            if known is None:
                bisect.insort(self._sizes, generated)
                known = seconds
            # A single slow step (another process, a page fault) says little about the next one.
            self._generation[generated] = known + _WEIGHT * (min(seconds, 3 * known) - known)
        elif prompt >= _LEAST_MEASURED:
            each = max(seconds - self.step_seconds(generated), seconds * prompt / (2 * (prompt + generated))) / prompt
            known = self._prompt_token or each
            self._prompt_token = known + _WEIGHT * (min(each, 3 * known) - known)

    def step_seconds(self, tokens: int) -> float:
        """What a step that generates `tokens` tokens is expected to take; 0 while nothing is known."""
        if tokens <= 0 or not self._sizes:
            return 0.0
        at = bisect.bisect_left(self._sizes, tokens)
        if at < len(self._sizes) and self._sizes[at] == tokens:
            return self._generation[tokens]
        if at == 0:
            return self._generation[self._sizes[0]] * tokens / self._sizes[0]
        below = self._sizes[at - 1]
        if at == len(self._sizes):
            first = self._generation[below]
            each = self._prompt_token or first / below
            return first + (tokens - below) * each
        above = self._sizes[at]
        share = (tokens - below) / (above - below)
        return self._generation[below] + share * (self._generation[above] - self._generation[below])

    def prompt_tokens(self, generating: int) -> int:
        """How many prompt tokens the next step may take beside `generating` running streams."""
        if not self._prompt_token:
            return min(_SMALLEST_CHUNK, self.batch_tokens) if generating else self.batch_tokens
        allowed = self.max_gap_seconds - self.step_seconds(generating) if generating else _ALONE_SECONDS
        return min(self.batch_tokens, max(_SMALLEST_CHUNK, int(allowed / self._prompt_token)))
