"""One JSON value out of a text that comes in pieces: where it ends, and what it says in valid JSON. Pure.

Models write JSON that is almost right: line ends within strings, `\\$`, a comma before the last bracket, `True`. These
are mended on the way, since nothing else can be meant; whatever else is wrong ends the value as bad.
"""

from __future__ import annotations

import re
from enum import Enum, auto

_MAX_DEPTH = 100
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACE = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r"[\w+\-.]+")
_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_HEX = re.compile(r"[0-9a-fA-F]")
_MENDED = {"True": "true", "False": "false", "None": "null"}
_ESCAPED = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class _State(Enum):
    VALUE = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()  # a value within an object or list
    STRING = auto()
    ESCAPE = auto()
    UNICODE = auto()
    WORD = auto()


class JsonText:
    """Follows one value. Takes each character once, keeps no more than a few of them back."""

    def __init__(self) -> None:
        self._state = _State.VALUE
        self._open: list[str] = []  # the brackets that must come
        self._is_key = False
        self._comma = ""  # one that was read, with the white space after it, and not given out yet
        self._just_opened = False
        self._held = ""  # of a number, a word or an escape
        self._out: list[str] = []
        self.is_complete = False
        self.is_bad = False
        self.has_content = False  # past the first bracket of an object or list, or no such thing

    def feed(self, text: str, position: int) -> int:
        """Take characters from `position` on, as far as they are part of the value; where that ends."""
        while position < len(text) and not self.is_complete and not self.is_bad:
            if self._state is _State.STRING:
                position = self._string(text, position)
            elif self._state is _State.ESCAPE:
                position = self._escape(text, position)
            elif self._state is _State.UNICODE:
                position = self._unicode(text, position)
            elif self._state is _State.WORD:
                position = self._word(text, position)
            elif space := _SPACE.match(text, position):
                if self._comma:
                    self._comma += space[0]
                    self.is_bad = len(self._comma) > 1000
                else:
                    self._out.append(space[0])
                position = space.end()
            else:
                position = self._between(text, position)
        return position

    def take(self) -> str:
        """What was read since the last call, as valid JSON."""
        text = "".join(self._out)
        self._out.clear()
        return text

    @property
    def rest(self) -> str:
        """What was read and is held back: text, where the value turned out bad or has no end."""
        escape = {_State.ESCAPE: "\\", _State.UNICODE: "\\u"}.get(self._state, "")
        return f"{self._comma}{escape}{self._held}"

    def _between(self, text: str, position: int) -> int:
        """One character that is in no string, number or word."""
        character = text[position]
        state = self._state
        may_close = state is _State.AFTER or self._just_opened or bool(self._comma)
        if may_close and self._open and character == self._open[-1]:
            self._out.append(self._comma[1:] + self._open.pop())
            self._comma = ""
            self._value_ends()
        elif state is _State.AFTER and character == ",":
            self._comma = ","
            self._state = _State.KEY if self._open[-1] == "}" else _State.VALUE
        elif state is _State.COLON and character == ":":
            self._out.append(":")
            self._state = _State.VALUE
        elif state in (_State.KEY, _State.VALUE) and character == '"':
            self._begin('"')
            self._is_key = state is _State.KEY
            self._state = _State.STRING
        elif state is _State.VALUE and character in "{[" and len(self._open) < _MAX_DEPTH:
            is_first = not self._open
            self._begin(character)
            self.has_content = not is_first
            self._open.append("}" if character == "{" else "]")
            self._state = _State.KEY if character == "{" else _State.VALUE
            self._just_opened = True
            return position + 1
        elif state is _State.VALUE and _WORD.match(text, position):
            self._begin("")
            self._state = _State.WORD
            return position
        else:
            self.is_bad = True
            return position
        self._just_opened = False
        self.has_content = True
        return position + 1

    def _begin(self, text: str) -> None:
        self._out.append(self._comma + text)
        self._comma = ""
        self._just_opened = False
        self.has_content = True

    def _value_ends(self) -> None:
        self._state = _State.AFTER
        self.is_complete = not self._open

    def _string(self, text: str, position: int) -> int:
        plain = _PLAIN.match(text, position)
        if plain:
            self._out.append(plain[0])
            return plain.end()
        character = text[position]
        if character == "\\":
            self._state = _State.ESCAPE
        elif character == '"':
            self._out.append('"')
            if self._is_key:
                self._is_key = False
                self._state = _State.COLON
            else:
                self._value_ends()
        else:
            self._out.append(_ESCAPED.get(character) or f"\\u{ord(character):04x}")
        return position + 1

    def _escape(self, text: str, position: int) -> int:
        character = text[position]
        if character == "u":
            self._held = ""
            self._state = _State.UNICODE
            return position + 1
        self._state = _State.STRING
        if character in '"\\/bfnrt':
            self._out.append(f"\\{character}")
            return position + 1
        self._out.append("\\\\")  # the backslash is meant as one
        return position

    def _unicode(self, text: str, position: int) -> int:
        if not _HEX.match(text, position):
            self._out.append(f"\\\\u{self._held}")
            self._held = ""
            self._state = _State.STRING
            return position
        self._held += text[position]
        if len(self._held) == 4:
            self._out.append(f"\\u{self._held}")
            self._held = ""
            self._state = _State.STRING
        return position + 1

    def _word(self, text: str, position: int) -> int:
        word = _WORD.match(text, position)
        if word:
            self._held += word[0]
            self.is_bad = len(self._held) > 1000
            return word.end()
        value = _MENDED.get(self._held, self._held)
        if _SCALAR.fullmatch(value):
            self._held = ""
            self._out.append(value)
            self._value_ends()
        else:
            self.is_bad = True
        return position
