"""Tokens to text: UTF-8 that is never split, stop strings that never leak their beginning. Pure."""

from __future__ import annotations

import codecs


class TextStream:
    """Turns the bytes of tokens into text that is final.

    Text is held back while it could be the beginning of a stop string; bytes while they are part of a character. The
    result does not depend on how the bytes were cut: the stop string that is complete first ends the text.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        """`stops` are the strings that end the text; they are not part of it."""
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self.stopped_by: str | None = None

    def push(self, data: bytes) -> str:
        """Take the bytes of a token; the text that is now final."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """No more bytes will come: give out what was held back (an incomplete character becomes U+FFFD)."""
        text = self._advance(self._decoder.decode(b"", final=True))
        if self.stopped_by is None:
            text, self._pending = text + self._pending, ""
        return text

    def _advance(self, text: str) -> str:
        if self.stopped_by is not None or not text:
            return ""
        if not self._stops:
            return text
        self._pending += text
        found = self._first_stop()
        if found is not None:
            start, self.stopped_by = found
            final, self._pending = self._pending[:start], ""
            return final
        keep = self._possible_stop_length()
        cut = len(self._pending) - keep
        final, self._pending = self._pending[:cut], self._pending[cut:]
        return final

    def _first_stop(self) -> tuple[int, str] | None:
        # The stop string that ends first; of two that end together, the longer.
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self._pending.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _possible_stop_length(self) -> int:
        # Longest end of the pending text that begins some stop string.
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            tail = self._pending[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
