"""The channels of gpt-oss: an answer is a row of messages, each with a header that says what it is. Pure.

<|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>final<|message|>text
<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>arguments
"""

from __future__ import annotations

import re
from enum import Enum, auto

from service.engine.markers import ends_with_part_of

CALL = "<|start|>functions."
"""How a call is handed on, whatever way its header was written; then its name, MESSAGE and its arguments."""
MESSAGE = "<|message|>"

_BEGINNINGS = ("<|channel|>", "<|start|>", "to=")
_ENDS = ("<|end|>", "<|start|>", "<|channel|>")
_RECIPIENT = re.compile(r"to=functions\.([\w.\-]+)")
_LONGEST_HEADER = 300


class _State(Enum):
    HEADER = auto()
    THINKING = auto()
    ANSWER = auto()


class ChannelSplitter:
    """Takes text, gives (thinking, answer), without headers. Calls are in the answer, each behind CALL."""

    def __init__(self) -> None:
        self._state = _State.HEADER
        self._pending = ""
        self._is_first = True

    @property
    def is_thinking(self) -> bool:
        """True within a message of thinking."""
        return self._state is _State.THINKING

    def push(self, text: str) -> tuple[str, str]:
        """Take text; what of the thinking and of the answer is now final."""
        self._pending += text
        thoughts, answers = "", ""
        while True:
            if self._state is _State.HEADER:
                found, is_decided = self._header()
                answers += found
            else:
                body, is_decided = self._body()
                if self._state is _State.THINKING:
                    thoughts += body
                else:
                    answers += body
                if is_decided:
                    self._state = _State.HEADER
            if not is_decided:
                return thoughts, answers

    def finish(self) -> tuple[str, str]:
        """No more text will come: what was held back."""
        rest, self._pending = self._pending, ""
        return (rest, "") if self._state is _State.THINKING else ("", rest)

    def _header(self) -> tuple[str, bool]:
        """What the answer has of a header, and whether that is all there and read."""
        if self._is_first:
            # Without any header all is the answer, as where a grammar has it so.
            begun = self._pending.lstrip()
            if not any(begun.startswith(word) or word.startswith(begun) for word in _BEGINNINGS):
                self._is_first = False
                self._state = _State.ANSWER
                return "", True
        end = self._pending.find(MESSAGE)
        if 0 <= end <= _LONGEST_HEADER:
            header, self._pending = self._pending[:end], self._pending[end + len(MESSAGE) :]
            self._is_first = False
            self._state = _State.ANSWER
            recipient = _RECIPIENT.search(header)
            if recipient is not None:
                return f"{CALL}{recipient[1]}{MESSAGE}", True
            if "analysis" in header:
                self._state = _State.THINKING
            return "", True
        if len(self._pending) > _LONGEST_HEADER + len(MESSAGE):
            self._state = _State.ANSWER
            return "", True
        return "", False

    def _body(self) -> tuple[str, bool]:
        """What is final of a message's text, and whether it has ended."""
        found = [(start, end) for end in _ENDS if (start := self._pending.find(end)) >= 0]
        if found:
            start, end = min(found)
            body, self._pending = self._pending[:start], self._pending[start + len(end) :]
            return body, True
        cut = len(self._pending) - ends_with_part_of(self._pending, _ENDS)
        body, self._pending = self._pending[:cut], self._pending[cut:]
        return body, False
