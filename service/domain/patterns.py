"""Patterns of tensor names: the part of regular expressions whose cost can be told before they run. Pure.

llama.cpp searches such patterns with std::regex, which backtracks without limit. What is let through here means the
same to Python's `re`, and is bounded: no repeated groups, and a limit on the ways that all of them can match.
"""

from __future__ import annotations

import re

MAX_PATTERN_CHARACTERS = 256
MAX_COST = 1 << 20
"""Of all patterns of a recipe: three `.*` in one pattern are within it."""

_NAME_CHARACTERS = 64  # a tensor's name is shorter
_MAX_DEPTH = 16
_LITERALS = re.compile(r"[A-Za-z0-9_/:,= -]")
_ESCAPES = re.compile(r"[dDwW.^$*+?()\[\]{}|\\/-]")
_CLASS = re.compile(r"\^?(?:[A-Za-z0-9_./]|\\[dw.-]|(?<=[A-Za-z0-9])-(?=[A-Za-z0-9]))+")
_COUNTS = re.compile(r"\{(\d{1,3})(,(\d{1,3})?)?\}")


class PatternError(ValueError):
    """Not a pattern of this kind; the message says what is wrong, as the rest of a sentence."""


def pattern_cost(pattern: str) -> int:
    """How many ways the pattern can match at one place of a name, at most. Raises PatternError."""
    if not pattern:
        raise PatternError("is empty")
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise PatternError(f"has {len(pattern)} characters; {MAX_PATTERN_CHARACTERS} are allowed")
    reader = _Reader(pattern)
    cost = reader.alternatives(0)
    if not reader.at_end:
        raise PatternError("closes a group that it does not open")
    try:
        re.compile(pattern)
    except re.error as error:
        raise PatternError(f"is no regular expression: {error.msg}") from None
    return cost


def exactly(name: str) -> str:
    """The pattern that finds this name alone."""
    return "^" + re.sub(r"[.^$*+?()\[\]{}|\\]", r"\\\g<0>", name) + "$"


class _Reader:
    """Recursive descent over one pattern; each method returns the number of ways its part can match."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._text)

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _take(self, expression: re.Pattern[str], fault: str) -> re.Match[str]:
        found = expression.match(self._text, self._position)
        if found is None:
            raise PatternError(fault)
        self._position = found.end()
        return found

    def alternatives(self, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise PatternError(f"nests groups more than {_MAX_DEPTH} deep")
        cost = self._sequence(depth)
        while self._peek() == "|":
            self._position += 1
            cost += self._sequence(depth)
        return cost

    def _sequence(self, depth: int) -> int:
        cost = 1
        while not self.at_end and self._peek() not in "|)":
            cost = min(cost * self._piece(depth), 2 * MAX_COST)
        return cost

    def _piece(self, depth: int) -> int:
        letter = self._peek()
        if letter == "(":
            return self._group(depth)
        self._position += 1
        if letter in "^$":
            if self._peek() in ("*", "+", "?", "{"):
                raise PatternError(f"repeats {letter}, which stands for a place")
            return 1
        if letter == "[":
            self._take(_CLASS, "has a class of other things than letters, digits, _ . / - and ranges of them")
            if self._peek() != "]":
                raise PatternError("has a class that does not end, or holds more than letters, digits, _ . / and -")
            self._position += 1
        elif letter == "\\":
            self._take(_ESCAPES, "escapes something that has no meaning here; \\d, \\w and signs may be escaped")
        elif letter in "*+?{":
            raise PatternError(f"has a {letter} with nothing to repeat")
        elif letter != "." and not _LITERALS.match(letter):
            raise PatternError(f"holds {letter!r}; write \\ before a sign that stands for itself")
        return self._repeats()

    def _repeats(self) -> int:
        letter = self._peek()
        if letter in ("*", "+"):
            cost = _NAME_CHARACTERS
            self._position += 1
        elif letter == "?":
            cost = 2
            self._position += 1
        elif letter == "{":
            counts = self._take(_COUNTS, "has a { that begins no count such as {2} or {1,3}")
            least = int(counts[1])
            most = least if counts[2] is None else int(counts[3] or max(least, _NAME_CHARACTERS))
            if not least <= most <= _NAME_CHARACTERS:
                raise PatternError(f"counts {counts[0]}; a name has less than {_NAME_CHARACTERS} characters")
            cost = most - least + 1
        else:
            return 1
        if self._peek() == "?":  # the shortest match first: the same ways
            self._position += 1
        if self._peek() in ("*", "+", "?", "{"):
            raise PatternError("repeats a repetition")
        return cost

    def _group(self, depth: int) -> int:
        self._position += 1
        if self._text.startswith("?:", self._position):
            self._position += 2
        cost = self.alternatives(depth + 1)
        if self._peek() != ")":
            raise PatternError("opens a group that it does not close")
        self._position += 1
        letter = self._peek()
        if letter in ("*", "+", "{"):
            raise PatternError("repeats a group; repeat a single character, or write the alternatives out")
        if letter == "?":
            self._position += 1
            cost += 1
            if self._peek() in ("*", "+", "?", "{"):
                raise PatternError("repeats a repetition")
        return cost
