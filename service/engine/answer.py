"""An answer with parts: thinking, text and tool calls told apart while its bytes come. Pure; the engine's thread.

Only requests that need it have one; others have a plain TextStream. Stop strings end the text and are looked for in
nothing else: neither in thinking nor in calls.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.domain.generation import Thought, Token, ToolCallDelta
from service.engine.channels import ChannelSplitter
from service.engine.formats import CallFormat, Thinking
from service.engine.reasoning import ThoughtSplitter
from service.engine.text import StopMatcher
from service.engine.tool_calls import CallParser, Properties

Part = Token | Thought | ToolCallDelta


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read, and what is forced on them.

    `shown` has the text of control tokens that are part of a marker. `close` ends the thinking; `start` begins it where
    a single token does. Where the answer has a grammar, it begins with `begin`, and `after` follows the thinking. All
    are token ids.
    """

    thinking: Thinking | None = None
    opens_thought: bool = False
    splits: bool = True  # thinking is told apart; else it stays in the text
    calls: CallFormat | None = None
    tools: Properties = field(default_factory=dict)
    most_calls: int | None = None
    shown: Mapping[int, bytes] = field(default_factory=dict)
    start: int | None = None
    close: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    max_thinking_tokens: int | None = None
    begin: tuple[int, ...] = ()


class AnswerStream:
    """Turns the bytes of tokens into parts that are final. Nothing is lost but markers and the white space at them."""

    def __init__(
        self, reading: Reading, stops: tuple[str, ...], choice: int, new_id: Callable[[], str] | None = None
    ) -> None:
        """Parts carry the number `choice`; `new_id` makes ids of calls, None for the format's own."""
        self._choice = choice
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = StopMatcher(stops)
        self._splits = reading.splits
        self._thoughts: ThoughtSplitter | ChannelSplitter | None = None
        if reading.thinking is not None and reading.thinking.channels:
            self._thoughts = ChannelSplitter()
        elif reading.thinking is not None:
            self._thoughts = ThoughtSplitter(
                reading.thinking, opened=reading.opens_thought, keeps_markers=not reading.splits
            )
        self._calls: CallParser | None = None
        if reading.calls is not None:
            self._calls = CallParser(reading.calls, reading.tools, most_calls=reading.most_calls, new_id=new_id)
        self.new_answer = ""  # what came of the answer with the last bytes

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the text."""
        return self._stops.stopped_by

    @property
    def is_thinking(self) -> bool:
        """True between the markers of thinking."""
        return self._thoughts is not None and self._thoughts.is_thinking

    @property
    def call_so_far(self) -> str | None:
        """The text of a call that has just begun, else None."""
        return None if self._calls is None else self._calls.call_so_far

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return 0 if self._calls is None else self._calls.calls

    @property
    def is_done(self) -> bool:
        """True when the last call is there that is allowed."""
        return self._calls is not None and self._calls.is_done

    def push(self, data: bytes) -> list[Part]:
        """Take the bytes of a token; the parts that are now final."""
        return self._parts(self._decode(data))

    def finish(self) -> list[Part]:
        """No more bytes will come: give out what was held back."""
        parts = self._parts(self._decode(b"", True))
        if self._thoughts is not None:
            thought, answer = self._thoughts.finish()
            parts += self._thought(thought)
            parts += self._answer(answer)
        if self._calls is not None:
            parts += self._pieces(self._calls.finish())
        parts += self._text(self._stops.flush())
        return parts

    def _parts(self, text: str) -> list[Part]:
        if self._thoughts is None:
            self.new_answer = text
            return self._answer(text)
        thought, self.new_answer = self._thoughts.push(text)
        return self._thought(thought) + self._answer(self.new_answer)

    def _thought(self, text: str) -> list[Part]:
        if not text:
            return []
        return [Thought(text, self._choice)] if self._splits else [Token(text, self._choice)]

    def _answer(self, text: str) -> list[Part]:
        if self._calls is None:
            return self._text(self._stops.push(text))
        return self._pieces(self._calls.push(text))

    def _pieces(self, pieces: list[str | ToolCallDelta]) -> list[Part]:
        parts: list[Part] = []
        for piece in pieces:
            if self._stops.stopped_by is not None:
                break
            if isinstance(piece, str):
                parts += self._text(self._stops.push(piece))
            else:
                # The text does not go on into a call, and no stop string either.
                parts += self._text(self._stops.flush())
                parts.append(ToolCallDelta(piece.index, piece.arguments, piece.id, piece.name, self._choice))
        return parts

    def _text(self, text: str) -> list[Part]:
        return [Token(text, self._choice)] if text else []
