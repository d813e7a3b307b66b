"""Thinking and answer told apart while the text comes. Pure; the engine's thread.

A model thinks once and before its answer: what looks like thinking later on is text.
"""

from __future__ import annotations

from enum import Enum, auto

from service.engine.formats import Thinking
from service.engine.markers import ends_with_part_of

# White space around thinking belongs to its markers, as far as it is held back.
_MOST_SPACE = 256


class _State(Enum):
    BEFORE = auto()
    THINKING = auto()
    AFTER = auto()  # white space before the answer
    ANSWER = auto()


class ThoughtSplitter:
    """Takes text, gives (thinking, answer). With `keeps_markers` the two together are the text as it came."""

    def __init__(self, thinking: Thinking, *, opened: bool, keeps_markers: bool = False) -> None:
        """`opened`: the prompt ends with the marker that begins the thinking."""
        self._thinking = thinking
        self._keeps_markers = keeps_markers
        self._state = _State.THINKING if opened else _State.BEFORE
        self._is_first = True  # nothing of the thinking was given out yet
        self._pending = ""

    @property
    def is_thinking(self) -> bool:
        """True between the markers."""
        return self._state is _State.THINKING

    def push(self, text: str) -> tuple[str, str]:
        """Take text; what of the thinking and of the answer is now final."""
        if self._state is _State.ANSWER:
            return "", text
        self._pending += text
        thought = ""
        if self._state is _State.BEFORE:
            thought = self._before()
        if self._state is _State.THINKING:
            thought += self._inside()
        return thought, self._after()

    def finish(self) -> tuple[str, str]:
        """No more text will come: what was held back."""
        rest, self._pending = self._pending, ""
        if self._state is _State.THINKING:
            return rest if self._keeps_markers else rest.strip() if self._is_first else rest.rstrip(), ""
        return "", rest if self._state is _State.BEFORE else ""

    def _before(self) -> str:
        start = self._thinking.start
        stripped = self._pending.lstrip()
        space = len(self._pending) - len(stripped)
        if space <= _MOST_SPACE and stripped.startswith(start):
            self._state = _State.THINKING
            marker, self._pending = self._pending[: space + len(start)], stripped[len(start) :]
            return marker if self._keeps_markers else ""
        if space > _MOST_SPACE or not start.startswith(stripped):
            self._state = _State.ANSWER
        return ""

    def _inside(self) -> str:
        end = self._thinking.end
        if self._is_first and not self._keeps_markers:
            self._pending = self._pending.lstrip()
        found = self._pending.find(end)
        if found >= 0:
            self._state = _State.AFTER
            thought, rest = self._pending[:found], self._pending[found + len(end) :]
            self._pending = rest
            return f"{thought}{end}" if self._keeps_markers else without_space(thought)
        cut = len(self._pending) - ends_with_part_of(self._pending, (end,))
        if not self._keeps_markers:
            cut = len(without_space(self._pending[:cut]))
        thought, self._pending = self._pending[:cut], self._pending[cut:]
        self._is_first = self._is_first and not thought
        return thought

    def _after(self) -> str:
        if self._state is _State.AFTER:
            if not self._keeps_markers:
                self._pending = self._pending.lstrip()
            if self._pending:
                self._state = _State.ANSWER
        if self._state is not _State.ANSWER:
            return ""
        answer, self._pending = self._pending, ""
        return answer


def without_space(text: str) -> str:
    """`text` without the white space at its end, of which at most 256 characters go."""
    return text[: max(len(text.rstrip()), len(text) - _MOST_SPACE)]
