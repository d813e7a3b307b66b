"""Tokens to text: UTF-8 that is never split, stop strings that never leak their beginning. Pure."""

from __future__ import annotations

import codecs

from service.engine.markers import ends_with_part_of


class StopMatcher:
    """Holds text back while it could be the beginning of a stop string; the first that is complete ends the text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops` are the strings that end the text; they are not part of it."""
        self._stops = tuple(stop for stop in stops if stop)
        self._pending = ""
        self.stopped_by: str | None = None

    def push(self, text: str) -> str:
        """Take text; what is now final."""
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
        cut = len(self._pending) - ends_with_part_of(self._pending, self._stops)
        final, self._pending = self._pending[:cut], self._pending[cut:]
        return final

    def flush(self) -> str:
        """What was held back: the text does not go on."""
        text, self._pending = self._pending, ""
        return text

    def _first_stop(self) -> tuple[int, str] | None:
        # The stop string that ends first; of two that end together, the longer.
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self._pending.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])


class TextStream:
    """Turns the bytes of tokens into text that is final.

    Text is held back while it could be the beginning of a stop string; bytes while they are part of a character. The
    result does not depend on how the bytes were cut: the stop string that is complete first ends the text.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        """`stops` are the strings that end the text; they are not part of it."""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._matcher = StopMatcher(stops)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the text."""
        return self._matcher.stopped_by

    def push(self, data: bytes) -> str:
        """Take the bytes of a token; the text that is now final."""
        return self._matcher.push(self._decode(data))

    def finish(self) -> str:
        """No more bytes will come: give out what was held back (an incomplete character becomes U+FFFD)."""
        return self._matcher.push(self._decode(b"", True)) + self._matcher.flush()
