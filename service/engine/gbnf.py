"""Reads llama.cpp's grammars (GBNF) into a tree. Pure; side thread of the worker.

The notation is that of llama.cpp's parser, in bounds: nesting, counts, and no endless repetition of what repeats
without end already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from service.domain.generation import GrammarKind
from service.engine.grammar_limits import MAX_GRAMMAR_DEPTH, MAX_REPEATS, refuse

Ranges = tuple[tuple[int, int], ...]

_LAST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_ANY: Ranges = ((0, 0xD7FF), (0xE000, _LAST_CHARACTER))
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNT = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")
_TOKEN = re.compile(r"!?<(?:\[\d{1,9}\]|[^<>\[\]()\s\"/%#]+)>")
_TOKEN_ID = re.compile(r"<\[(\d+)\]>")


@dataclass(eq=False, slots=True)
class Node:
    """A part of a rule."""

    children: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Characters(Node):
    """One character out of sorted, disjoint ranges."""

    ranges: Ranges = ()


@dataclass(eq=False, slots=True)
class Series(Node):
    """One child after another; none: the empty text."""


@dataclass(eq=False, slots=True)
class Choice(Node):
    """One of the children."""


@dataclass(eq=False, slots=True)
class Repeat(Node):
    """The one child, `least` to `most` times (None: without end)."""

    least: int = 0
    most: int | None = None


@dataclass(eq=False, slots=True)
class Reference(Node):
    """Another rule."""

    name: str = ""


@dataclass(eq=False, slots=True)
class TokenNode(Node):
    """A token of the vocabulary by id or name, in Lark's notation."""

    text: str = ""


def parse_gbnf(source: str) -> dict[str, Node]:
    """Every rule by its name; `root` and all that is referred to are there. Raises InvalidGrammar with the line."""
    return _Parser(source).rules()


class _Parser:
    """Recursive descent, at most MAX_GRAMMAR_DEPTH deep."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0
        self._references: list[tuple[str, int]] = []
        # The largest product of nested counts inside of each node that has one.
        self._repeats: dict[Node, int] = {}

    def rules(self) -> dict[str, Node]:
        """The whole grammar."""
        rules: dict[str, Node] = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._source):
            name = self._match(_NAME, "the name of a rule")
            self._skip(_SPACE)
            self._expect("::=")
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._choice(nested=False)
            if self._peek() and self._peek() not in "\r\n":
                self._fail("an element, `|` or the end of the line")
            self._skip(_SPACE_AND_LINES)
        for name, at in [*self._references, ("root", len(self._source))]:
            if name not in rules:
                self._at = at
                self._fail(f"a rule called {name!r} somewhere")
        return rules

    def _choice(self, *, nested: bool) -> Node:
        children = [self._sequence(nested=nested)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            children.append(self._sequence(nested=nested))
        if len(children) == 1:
            return children[0]
        choice = Choice(children)
        self._count(choice)
        return choice

    def _sequence(self, *, nested: bool) -> Node:
        space = _SPACE_AND_LINES if nested else _SPACE
        children: list[Node] = []
        self._skip(space)
        while (element := self._element()) is not None:
            self._skip(space)
            while (repeated := self._repeat(element)) is not element:
                element = repeated
                self._skip(space)
            children.append(element)
        if len(children) == 1:
            return children[0]
        series = Series(children)
        self._count(series)
        return series

    def _element(self) -> Node | None:
        start = self._peek()
        if start == '"':
            return self._literal()
        if start == "[":
            return self._class()
        if start == "(":
            return self._group()
        if start == ".":
            self._at += 1
            return Characters(ranges=_ANY)
        if start and start in "<!":
            text = self._match(_TOKEN, "a token such as <[42]> or <think>")
            if text.startswith("!"):
                found = _TOKEN_ID.fullmatch(text[1:])
                if found is None:
                    self._fail("a token's id after `!`, as in !<[42]>")
                text = f"<[^{found[1]}]>"
            return TokenNode(text=text)
        if start and _NAME.match(start):
            at = self._at
            name = self._match(_NAME, "a name")
            self._references.append((name, at))
            return Reference(name=name)
        return None

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_GRAMMAR_DEPTH:
            refuse(
                GrammarKind.GBNF, f"The grammar is nested deeper than {MAX_GRAMMAR_DEPTH} levels; write a flatter one."
            )
        self._at += 1
        self._skip(_SPACE_AND_LINES)
        inner = self._choice(nested=True)
        self._expect(")")
        self._depth -= 1
        # A node of its own: a group may be repeated where its content already is.
        group = Series([inner])
        self._count(group)
        return group

    def _literal(self) -> Node:
        self._at += 1
        characters: list[Node] = []
        while self._peek() != '"':
            point = self._character()
            characters.append(Characters(ranges=((point, point),)))
        self._at += 1
        return Series(characters)

    def _class(self) -> Node:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            first = last = self._character()
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._character()
            if last < first:
                self._fail("a range of characters from the lower to the higher one")
            ranges.append((first, last))
        self._at += 1
        found = _united(ranges)
        if negated:
            found = _complement(found)
        if not found:
            self._fail("a class that has a character")
        return Characters(ranges=found)

    def _character(self) -> int:
        start = self._peek()
        if not start:
            self._fail("the end of a string or class")
        self._at += 1
        if start != "\\":
            return ord(start)
        escape = self._peek()
        self._at += 1
        digits = _HEX_DIGITS.get(escape)
        if digits is None:
            if escape not in _ESCAPES or not escape:
                self._at -= 1
                self._fail(r"one of \n \r \t \\ \" \[ \] \- \^ \x \u \U")
            return ord(_ESCAPES[escape])
        text = self._source[self._at : self._at + digits]
        if re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", text) is None or int(text, 16) > _LAST_CHARACTER:
            self._fail(f"{digits} hexadecimal digits of a character")
        point = int(text, 16)
        if _SURROGATES[0] <= point <= _SURROGATES[1]:
            self._fail("a whole character, not half a surrogate pair")
        self._at += digits
        return point

    def _repeat(self, node: Node) -> Node:
        sign = self._peek()
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (-1, None))
        if least >= 0:
            self._at += 1
        elif sign == "{":
            found = _COUNT.match(self._source, self._at)
            if found is None:
                self._fail("{n}, {n,} or {n,m}")
            least = int(found[1])
            most = least if found[2] is None else None if found[3] is None else int(found[3])
            if most is not None and most < least:
                self._fail("a count from the lower to the higher number")
            self._at = found.end()
        else:
            return node
        if most is None and _is_endless(node):
            refuse(
                GrammarKind.GBNF,
                f"Line {self._line()} of the grammar repeats without end what already repeats without end; leave one "
                "of the two out.",
            )
        repeated = Repeat([node], least, most)
        self._count(repeated, max(least, most or 1))
        return repeated

    def _count(self, node: Node, times: int = 1) -> None:
        """Note how often the parts of a node are repeated; refuse what is too often."""
        repeats = times * max((self._repeats.get(child, 1) for child in node.children), default=1)
        if repeats > MAX_REPEATS:
            refuse(
                GrammarKind.GBNF,
                f"Line {self._line()} of the grammar repeats something {repeats} times and at most {MAX_REPEATS} are "
                "taken, nested counts multiplied; use `*` or `+`, or a smaller count.",
            )
        if repeats > 1:
            self._repeats[node] = repeats

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self._source, self._at)
        assert found is not None
        self._at = found.end()

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._source, self._at)
        if found is None:
            self._fail(what)
        self._at = found.end()
        return found[0]

    def _expect(self, text: str) -> None:
        if not self._source.startswith(text, self._at):
            self._fail(f"`{text}`")
        self._at += len(text)

    def _line(self) -> int:
        return self._source.count("\n", 0, self._at) + 1

    def _fail(self, wanted: str) -> NoReturn:
        near = self._source[self._at : self._at + 20] or "its end"
        refuse(GrammarKind.GBNF, f"Line {self._line()} of the grammar needs {wanted} before {near!r}; mend it.")


def _is_endless(node: Node) -> bool:
    """Whether a node is nothing but an endless repetition."""
    while isinstance(node, Series) and len(node.children) == 1:
        node = node.children[0]
    return isinstance(node, Repeat) and node.most is None


def _united(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Sorted and disjoint, without surrogates, which no text has."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    low, high = _SURROGATES
    split = [part for first, last in found for part in ((first, min(last, low - 1)), (max(first, high + 1), last))]
    return tuple(sorted({(first, last) for first, last in split if first <= last}))


def _complement(ranges: Ranges) -> Ranges:
    found, start = [], 0
    for first, last in ranges:
        if first > start:
            found.append((start, first - 1))
        start = last + 1
    if start <= _LAST_CHARACTER:
        found.append((start, _LAST_CHARACTER))
    return _united(found)
