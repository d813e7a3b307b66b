"""Tool calls found in a text while it comes: text that is no call, and calls piece by piece. Pure; the engine's thread.

Nothing is given out as text that may still be part of a marker. A call is given out once its name is known and its
arguments have begun; what turns out to be none before that is text again, to the character. Reads each character once.
"""

from __future__ import annotations

import json
import re
import secrets
import string
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any

from service.domain.generation import ToolCallDelta
from service.engine.channels import CALL, MESSAGE
from service.engine.formats import CallFormat, Tags
from service.engine.json_text import JsonText
from service.engine.markers import ends_with_part_of
from service.engine.reasoning import without_space

_LONGEST_HEADER = 300
_NAME = re.compile(r"[\w.\-/:]{1,256}")
_SPACE = re.compile(r"\s+")
_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")

# The properties of each tool's arguments, by the tool's name.
Properties = Mapping[str, Mapping[str, Any]]
Piece = str | ToolCallDelta

# A part of the reading, which waits for text where it must; what it returns.
_Waiting = Generator[None, None, None]
_Answering = Generator[None, None, bool]
_Reading = Generator[None, None, str]


class _NoCall(Exception):
    """What comes is no call, or no more of one."""


class CallParser:
    """Takes text, gives pieces of text and of calls, in order."""

    def __init__(
        self,
        form: CallFormat,
        tools: Properties,
        *,
        most_calls: int | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """Past `most_calls` nothing is given out any more, text neither, and `is_done` is true."""
        self._form = form
        self._tools = tools
        self._most_calls = most_calls
        self._new_id = new_id or (short_id if form.short_ids else call_id)
        self._buffer = ""
        self._position = 0
        self._ended = False
        self._held: list[str] | None = None  # what was read since a call may have begun; None outside of calls
        self._pieces: list[Piece] = []
        self._is_call = False
        self._name, self._name_ends_at = "", 0
        self.calls = 0  # that have begun
        self.is_done = False
        self._only_text = False
        self._steps = self._read()
        next(self._steps)

    @property
    def call_so_far(self) -> str | None:
        """The text of a call that is sure to be one and has no arguments yet, as the book writes it; else None."""
        if not self._is_call or self._held is None:
            return None
        text = "".join(self._held) + self._buffer[self._position :]
        writing = self._form.writing
        if self._form.triggers == (CALL,):
            name, found, rest = text.lstrip().removeprefix(CALL).partition(MESSAGE)
            return f"{writing.before_name}{name}{writing.before_arguments}{rest}" if found else None
        if self._form.triggers:
            return text.lstrip()
        return f'{writing.before_name}{self._name}"{text[self._name_ends_at :]}'

    def push(self, text: str) -> list[Piece]:
        """Take text; the pieces that are now final."""
        if self._only_text:
            return [text] if text else []
        self._buffer = self._buffer[self._position :] + text
        self._position = 0
        return self._advance()

    def finish(self) -> list[Piece]:
        """No more text will come: what was held back."""
        if self._only_text or self._ended:
            return []
        self._ended = True
        return self._advance()

    def _advance(self) -> list[Piece]:
        if not self.is_done:
            next(self._steps, None)
        pieces, self._pieces = self._pieces, []
        return pieces

    # --- the whole text ----------------------------------------------------------------------------------------

    def _read(self) -> _Waiting:
        yield
        if self._form.triggers:
            while (yield from self._text_before_call()):
                yield from self._try(self._calls())
                if self.is_done:
                    return
        else:
            yield from self._bare()
            if not self.is_done:
                self._text(self._buffer[self._position :])
                self._position = len(self._buffer)
                self._only_text = True

    def _text_before_call(self) -> _Answering:
        """Text up to a trigger; whether there is one."""
        triggers = self._form.triggers
        while True:
            buffer, position = self._buffer, self._position
            found = [
                (start, -len(trigger), trigger)
                for trigger in triggers
                if (start := buffer.find(trigger, position)) >= 0
            ]
            if found:
                start, _, trigger = min(found)
                before = buffer[position:start]
                text = without_space(before)
                self._text(text)
                self._held = [before[len(text) :]]
                self._position = start
                self._consume(len(trigger))
                return True
            rest = buffer[position:]
            if self._ended:
                self._text(rest)
                self._position = len(buffer)
                return False
            undecided = ends_with_part_of(rest, triggers)
            text = without_space(rest[: len(rest) - undecided])
            self._text(text)
            self._position = position + len(text)
            yield

    def _bare(self) -> _Waiting:
        self._held = []
        yield from self._skip_space()
        for lead in self._form.leads:
            if (yield from self._next_is(lead)):
                self._consume(len(lead))
                yield from self._skip_space()
                break
        if (yield from self._peek()) in ("{", "["):
            yield from self._try(self._objects())
        else:
            self._give_back()

    def _try(self, reading: _Waiting) -> _Waiting:
        """Read calls; what is none is given back as text."""
        calls = self.calls
        try:
            self._is_call = bool(self._form.triggers)
            yield from reading
            self._held = None
        except _NoCall:
            self._give_back()
        finally:
            self._is_call = False
        if self.calls > calls:
            yield from self._skip_closers()

    # --- calls -------------------------------------------------------------------------------------------------

    def _calls(self) -> _Waiting:
        yield from self._skip_space()
        tags = self._form.tags
        ends = "{" if tags is None else "{" + tags.name_ends
        header = ""
        while (character := (yield from self._peek())) not in ends and len(header) <= _LONGEST_HEADER:
            header += character
            self._consume(1)
        if character == "{" and header.strip() in ("", "["):
            yield from self._objects(is_list="[" in header)
            return
        named = None if self._form.header is None else self._form.header.fullmatch(header)
        if named is None or not character:
            # A call may begin within what was no header.
            self._unread(header)
            raise _NoCall
        if tags is None:
            yield from self._arguments(named["name"])
        else:
            if character == ">":
                self._consume(1)
            yield from self._tagged_arguments(named["name"], tags)

    def _objects(self, *, is_list: bool = False) -> _Waiting:
        if (yield from self._peek()) == "[":
            self._consume(1)
            is_list = True
            yield from self._skip_space()
        while True:
            yield from self._object()
            if self.is_done:
                return
            self._held = []
            yield from self._skip_space()
            character = yield from self._peek()
            if character in (",", ";") and (is_list or not self._form.triggers):
                self._consume(1)
                yield from self._skip_space()
                if (yield from self._peek()) != "{":
                    raise _NoCall
            elif character == "]" and is_list:
                self._consume(1)
                return
            elif character != "{" or not (is_list or not self._form.triggers):
                return

    def _object(self) -> _Waiting:
        """`{"name": ..., "arguments": ...}`, in any order and with others beside."""
        if (yield from self._peek()) != "{":
            raise _NoCall
        self._consume(1)
        name: str | None = None
        arguments: str | None = None
        begun = self.calls
        while True:
            yield from self._skip_space()
            key = json.loads((yield from self._value('"')))
            yield from self._skip_space()
            if (yield from self._peek()) != ":":
                raise _NoCall
            self._consume(1)
            yield from self._skip_space()
            if key in _NAME_KEYS and name is None and (yield from self._peek()) == '"':
                name = json.loads((yield from self._value('"')))
                self._check_name(name)
            elif key in _ARGUMENT_KEYS and name is not None and arguments is None:
                arguments = ""
                yield from self._arguments(name)
                if self.is_done:
                    return
            elif key in _ARGUMENT_KEYS and arguments is None:
                arguments = yield from self._value()
            else:
                yield from self._value()
            yield from self._skip_space()
            character = yield from self._peek()
            if character == "}":
                self._consume(1)
                break
            if character != ",":
                raise _NoCall
            self._consume(1)
        if self.calls > begun:
            return
        if name is None or (arguments is None and not self._form.triggers):
            raise _NoCall
        self._begin(name, _object_text(arguments or "{}"))
        self._end()

    def _check_name(self, name: Any) -> None:
        # A plain JSON answer may have a name in it as well.
        if (
            not isinstance(name, str)
            or not _NAME.fullmatch(name)
            or (not self._form.triggers and name not in self._tools)
        ):
            raise _NoCall
        self._name, self._name_ends_at = name, sum(map(len, self._held or ()))
        self._is_call = True

    def _arguments(self, name: str) -> _Waiting:
        """The arguments of a call, given out as they come."""
        yield from self._skip_space()
        character = yield from self._peek()
        if character in ('"', "n"):  # JSON within a string; null
            text = yield from self._value()
            self._begin(name, _object_text(text))
            self._end()
            return
        if character != "{":
            raise _NoCall
        value = JsonText()
        text = ""
        begun = False
        while not value.is_complete:
            self._consume(value.feed(self._buffer, self._position) - self._position)
            text += value.take()
            if value.has_content and not begun:
                begun = True
                self._begin(name, "")
            if begun:
                self._more(text)
                text = ""
            if value.is_bad or (self._ended and not value.is_complete):
                if begun:
                    self._held = [value.rest]
                raise _NoCall
            if not value.is_complete:
                yield
        self._end()

    def _tagged_arguments(self, name: str, tags: Tags) -> _Waiting:
        properties = self._tools.get(name, {})
        begun = False
        while True:
            yield from self._skip_space()
            is_end = yield from self._next_is(tags.end)
            if not is_end and not (yield from self._next_is(tags.key)):
                raise _NoCall
            self._consume(len(tags.end if is_end else tags.key))
            if is_end:
                break
            self._held = self._held if not begun else [tags.key]
            key = (yield from self._collected(tags.key_end[0])).strip()
            for marker in tags.key_end[1:]:
                yield from self._skip_space()
                if not (yield from self._next_is(marker)):
                    raise _NoCall
                self._consume(len(marker))
            start = f"{'{' if not begun else ', '}{json.dumps(key, ensure_ascii=False)}: "
            if begun:
                self._more(start)
            else:
                self._begin(name, start)
                begun = True
            self._held = None
            if _is_string(properties.get(key)):
                self._more('"')
                yield from self._string_value(tags)
                self._more('"')
            else:
                self._held = []
                text = yield from self._collected(tags.value_end)
                self._held = None
                self._more(_value_text(text.strip()))
        if begun:
            self._more("}")
        else:
            self._begin(name, "{}")
        self._end()

    def _string_value(self, tags: Tags) -> _Waiting:
        """Text up to its end marker, given out as the inside of a JSON string."""
        ends: tuple[str, ...] = (tags.value_end,)
        if tags.break_lines:
            ends = (f"\n{tags.value_end}", tags.value_end)
            if (yield from self._peek()) == "\n":
                self._consume(1)
        while True:
            rest = self._buffer[self._position :]
            found = [(start, end) for end in ends if (start := rest.find(end)) >= 0]
            start, end = min(found) if found else (len(rest) - ends_with_part_of(rest, ends), "")
            self._more(json.dumps(rest[:start], ensure_ascii=False)[1:-1])
            self._position += start + len(end)
            if found:
                return
            if self._ended:
                self._more(json.dumps(rest[start:], ensure_ascii=False)[1:-1])
                self._position = len(self._buffer)
                raise _NoCall
            yield

    def _skip_closers(self) -> _Waiting:
        """What belongs to calls and is no text. White space before text goes with it."""
        while not self.is_done:
            yield from self._skip_space()
            for closer in self._form.closers:
                if (yield from self._next_is(closer)):
                    self._consume(len(closer))
                    break
            else:
                return

    # --- what is given out -------------------------------------------------------------------------------------

    def _text(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _begin(self, name: str, arguments: str) -> None:
        self._held = None
        self._pieces.append(ToolCallDelta(self.calls, arguments, self._new_id(), name))
        self.calls += 1

    def _more(self, arguments: str) -> None:
        if not arguments:
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, ToolCallDelta):
            self._pieces[-1] = ToolCallDelta(last.index, last.arguments + arguments, last.id, last.name)
        else:
            self._pieces.append(ToolCallDelta(self.calls - 1, arguments))

    def _end(self) -> None:
        self._held = []  # what else is in it, until it is sure that nothing is wrong there
        self.is_done = self._most_calls is not None and self.calls >= self._most_calls

    def _give_back(self) -> None:
        self._text("".join(self._held or ()))
        self._held = None

    # --- reading; each waits for text where it must --------------------------------------------------------------

    def _consume(self, count: int) -> None:
        if self._held is not None and count:
            self._held.append(self._buffer[self._position : self._position + count])
        self._position += count

    def _unread(self, text: str) -> None:
        self._held = ["".join(self._held or ())[: -len(text) or None]]
        self._buffer = text + self._buffer[self._position :]
        self._position = 0

    def _peek(self) -> _Reading:
        """The next character, "" at the end of the text."""
        while self._position >= len(self._buffer):
            if self._ended:
                return ""
            yield
        return self._buffer[self._position]

    def _skip_space(self) -> _Waiting:
        while (yield from self._peek()).isspace():
            space = _SPACE.match(self._buffer, self._position)
            assert space is not None
            self._consume(len(space[0]))

    def _next_is(self, marker: str) -> _Answering:
        """Whether the text goes on with the marker."""
        while True:
            if self._buffer.startswith(marker, self._position):
                return True
            if self._ended or not marker.startswith(self._buffer[self._position :]):
                return False
            yield

    def _value(self, first: str = "") -> _Reading:
        """A JSON value's text; `first` is the character that it must begin with."""
        if first and (yield from self._peek()) != first:
            raise _NoCall
        value = JsonText()
        parts: list[str] = []
        while True:
            self._consume(value.feed(self._buffer, self._position) - self._position)
            parts.append(value.take())
            if value.is_complete:
                return "".join(parts)
            if value.is_bad or self._ended:
                raise _NoCall
            yield

    def _collected(self, marker: str) -> _Reading:
        """The text up to a marker, which is read as well."""
        parts: list[str] = []
        while True:
            rest = self._buffer[self._position :]
            found = rest.find(marker)
            end = found if found >= 0 else len(rest) - ends_with_part_of(rest, (marker,))
            parts.append(rest[:end])
            self._consume(end)
            if found >= 0:
                self._consume(len(marker))
                return "".join(parts)
            if self._ended:
                raise _NoCall
            yield


def call_id() -> str:
    """A fresh id as OpenAI's look."""
    return f"call_{uuid.uuid4().hex[:24]}"


_ALPHANUMERIC = string.ascii_letters + string.digits


def short_id() -> str:
    """A fresh id as Mistral's templates demand them."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


def _object_text(text: str) -> str:
    """The JSON object in a JSON value: itself, one written into a string, or {} for null."""
    value = json.loads(text)
    if value is None:
        return "{}"
    if isinstance(value, str):
        try:
            value, text = json.loads(value), value
            text.encode()
        except (ValueError, RecursionError):
            raise _NoCall from None
    if not isinstance(value, dict):
        raise _NoCall
    return text


def _is_string(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    if "type" in schema:
        return bool(schema["type"] == "string")
    values = schema.get("enum", [schema.get("const")])
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _value_text(text: str) -> str:
    """JSON for a value between tags whose type is not text: what it says, else a string of it."""
    value = JsonText()
    end = value.feed(f"{text} ", 0)
    read = value.take().strip()
    if value.is_complete and not text[end:].strip():
        return read
    return json.dumps(text, ensure_ascii=False)
