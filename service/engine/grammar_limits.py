"""What a grammar may cost, told from its text before llguidance sees it. Pure; side thread of the worker.

llguidance bounds most of its own work, and cannot be stopped from outside. Refused here is what was found to escape
its limits: deep nesting, large counts, long forced texts, large divisors, and schemas that lie elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import lcm
from typing import Any, NoReturn
from urllib.parse import unquote

from service.domain.errors import InvalidGrammar
from service.domain.generation import GrammarKind

MAX_GRAMMAR_BYTES = 16 << 10
MAX_SCHEMA_BYTES = 64 << 10
MAX_GRAMMAR_DEPTH = 64
MAX_SCHEMA_DEPTH = 32
# The largest count of `x{n}`, and of nested ones multiplied: as many steps may follow without a choice.
MAX_REPEATS = 2000
# A text that a schema spells out is looked at as a whole again at every token of it.
MAX_LITERAL_CHARACTERS = 4096
# llguidance builds a state for every remainder of a `multipleOf`, or of several that meet in one place.
MAX_DIVISOR = 10_000
_MAX_REMAINDERS = 300_000
# llguidance follows references by recursion: 1700 levels of schemas, or 4000 of rules, end a process whose threads have
# 8 MB of stack.
MAX_CHAIN_LEVELS = 600
MAX_RULE_LEVELS = 1500

# Strings that are closed or not, and all else that is no bracket. Possessive: each character is looked at once.
_JSON_NO_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[^"{}\[\]]++', re.DOTALL)

# Escapes and classes of a regular expression are one item each, so that no bracket in them counts.
_REGEX_ITEM = re.compile(
    r"\\[pPxuU]\{[^}]*+\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|(?P<open>\()|(?P<close>\))|\{(?P<count>\d+,?\d*)\}|.",
    re.DOTALL,
)

# Lark: comments, strings, regular expressions, embedded JSON; then the brackets and counts between them.
_LARK_ITEM = re.compile(
    r"""(?://|\#)[^\n]*+
    |"(?:[^"\\\n]|\\.)*+"
    |/(?P<regex>(?:[^/\\\n]|\\.)++)/[a-z]*
    |%(?P<embedded>json|regex|llguidance)\b
    |\{\s*(?P<count>\d*\s*,?\s*\d*)\s*\}
    |~\s*(?P<times>\d+(?:\s*\.\.\s*\d+)?)
    |(?P<open>[(\[])
    |(?P<close>[)\]])
    |.""",
    re.DOTALL | re.VERBOSE,
)
_NUMBER = re.compile(r"\d+")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def refuse(kind: GrammarKind, message: str) -> NoReturn:
    """Raise InvalidGrammar with the field that such a grammar comes in."""
    raise InvalidGrammar(message, param="response_format" if kind is GrammarKind.JSON_SCHEMA else "grammar")


def check_size(kind: GrammarKind, source: str) -> None:
    """Refuse a source over its limit in bytes of UTF-8, or that is no UTF-8 at all."""
    limit, name = (MAX_SCHEMA_BYTES, "schema") if kind is GrammarKind.JSON_SCHEMA else (MAX_GRAMMAR_BYTES, "grammar")
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        refuse(kind, f"The {name} has half a surrogate pair in it; send whole characters.")
    if size > limit:
        refuse(kind, f"The {name} has {size} bytes and at most {limit} are taken; send a smaller one.")


@dataclass
class _Nesting:
    """Open brackets, and how often what stands in them is repeated."""

    kind: GrammarKind
    largest: list[int] = field(default_factory=lambda: [1])
    last: int = 1

    @property
    def depth(self) -> int:
        return len(self.largest) - 1

    def open(self) -> None:
        self.largest.append(1)
        self.last = 1
        if self.depth > MAX_GRAMMAR_DEPTH:
            refuse(self.kind, f"The grammar is nested deeper than {MAX_GRAMMAR_DEPTH} levels; write a flatter one.")

    def close(self) -> None:
        if len(self.largest) > 1:
            self.last = self.largest.pop()
            self.largest[-1] = max(self.largest[-1], self.last)

    def item(self) -> None:
        self.last = 1

    def count(self, text: str) -> None:
        repeats = self.last * max((int(number[:9]) for number in _NUMBER.findall(text)), default=1)
        if repeats > MAX_REPEATS:
            refuse(
                self.kind,
                f"The grammar repeats something {repeats} times and at most {MAX_REPEATS} are taken, nested counts "
                "multiplied; use `*` or `+`, or a smaller count.",
            )
        self.last = repeats
        self.largest[-1] = max(self.largest[-1], repeats)


def check_regex(source: str, kind: GrammarKind = GrammarKind.REGEX) -> None:
    """Refuse a regular expression that nests too deeply or counts too far."""
    nesting = _Nesting(kind)
    for match in _REGEX_ITEM.finditer(source):
        group = match.lastgroup
        if group == "open":
            nesting.open()
        elif group == "close":
            nesting.close()
        elif group == "count":
            nesting.count(match["count"])
        else:
            nesting.item()


def check_lark(source: str) -> str:
    """The Lark grammar, with the schemas that it embeds checked and written anew; raises InvalidGrammar."""
    kind = GrammarKind.LARK
    nesting = _Nesting(kind)
    parts: list[str] = []
    depths = [0]  # of each line that begins outside of brackets
    position = copied = 0
    while match := _LARK_ITEM.match(source, position):
        position = match.end()
        group = match.lastgroup
        if group == "open":
            nesting.open()
            depths[-1] = max(depths[-1], nesting.depth)
        elif group == "close":
            nesting.close()
        elif match[0] == "\n" and nesting.depth == 0:
            depths.append(0)
        elif group in ("count", "times"):
            nesting.count(match[group])
        elif group == "regex":
            check_regex(match["regex"], kind)
            nesting.item()
        elif group == "embedded":
            start = position
            while start < len(source) and source[start].isspace():
                start += 1
            end = _end_of_json(source, start)
            if match["embedded"] == "json":
                parts += [source[copied:start], json.dumps(check_schema(source[start:end], kind))]
                copied = end
            position = end
        elif not match[0].isspace():
            nesting.item()
    check_levels(depths, kind)
    return "".join(parts) + source[copied:]


def check_levels(depths: Sequence[int], kind: GrammarKind) -> None:
    """Refuse rules, given by how deep the brackets of each are, that could nest too deeply through one another."""
    levels = len(depths) + sum(depths)
    if levels > MAX_RULE_LEVELS:
        refuse(
            kind,
            f"The grammar's rules nest through up to {levels} levels and at most {MAX_RULE_LEVELS} are taken; write "
            "fewer rules, or flatter ones.",
        )


def _end_of_json(source: str, start: int) -> int:
    """Where the JSON object that begins at `start` ends."""
    if source[start : start + 1] != "{":
        refuse(GrammarKind.LARK, "The grammar has no JSON object after %json, %regex or %llguidance; write one.")
    depth = 0
    for end, bracket in _brackets(source, start):
        depth += 1 if bracket in "{[" else -1
        if depth > MAX_SCHEMA_DEPTH:
            break
        if depth == 0:
            return end
    refuse(GrammarKind.LARK, f"The grammar embeds JSON that has no end or over {MAX_SCHEMA_DEPTH} levels; mend it.")


def _brackets(source: str, start: int) -> Iterator[tuple[int, str]]:
    """Each bracket of a JSON text outside of strings, with the position after it."""
    position = start
    while position < len(source):
        skipped = _JSON_NO_BRACKETS.match(source, position)
        if skipped is None:
            yield position + 1, source[position]
            position += 1
        else:
            position = skipped.end()


def check_schema(source: str, kind: GrammarKind = GrammarKind.JSON_SCHEMA) -> dict[str, Any]:
    """The schema, parsed, without llguidance's own options; raises InvalidGrammar."""
    depth = 0
    for _, bracket in _brackets(source, 0):
        depth += 1 if bracket in "{[" else -1
        if depth > MAX_SCHEMA_DEPTH:
            refuse(kind, f"The schema is nested deeper than {MAX_SCHEMA_DEPTH} levels; use `$defs` and `$ref`.")
    try:
        schema = json.loads(source, parse_constant=_no_number, parse_int=_bounded_int)
    except ValueError as error:
        refuse(kind, f"The schema is no valid JSON ({str(error)[:100]}); send one JSON object.")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        refuse(kind, "The schema is no JSON object; send one, `{}` for any value.")
    schema.pop("x-guidance", None)
    divisors: list[Decimal] = []
    references = 0
    targets: set[str] = set()
    for keyword, value in _keywords(schema):
        if keyword in _REFERENCES and isinstance(value, str):
            references += 1
            targets.add(value)
            if not value.startswith("#"):
                refuse(
                    kind, f"The schema refers to {value[:100]!r}; put that part under `$defs`, refer to it by `#/...`."
                )
        elif keyword == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool):
            divisors.append(Decimal(str(value)))
        elif keyword == "pattern" and isinstance(value, str):
            check_regex(value, kind)
        elif keyword == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                check_regex(pattern, kind)
    _check_chain(schema, targets, kind)
    _check_literals(schema, kind)
    _check_divisors(divisors, references, kind)
    return schema


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _bounded_int(text: str) -> int:
    if len(text) > 40:  # seconds are spent on numbers of thousands of digits
        raise ValueError("a number has too many digits")
    return int(text)


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every member of every object in the schema; properties may be called as keywords are, so none is left out."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_chain(schema: dict[str, Any], targets: set[str], kind: GrammarKind) -> None:
    """Refuse references that could lead into each other for too many levels, all targets one after another."""
    depths: dict[int, int] = {}
    levels = _deepest_reference(schema, depths)
    counted: set[int] = set()
    for target in targets:
        found = _resolved(schema, target)
        if found is None:
            levels += MAX_SCHEMA_DEPTH
        elif id(found) not in counted:
            counted.add(id(found))
            levels += 1 + max(0, depths.get(id(found), 0))
    if levels > MAX_CHAIN_LEVELS:
        refuse(
            kind,
            f"The schema's references lead through up to {levels} levels and at most {MAX_CHAIN_LEVELS} are taken; use "
            "fewer of them, or flatter schemas.",
        )


def _deepest_reference(node: Any, depths: dict[int, int]) -> int:
    """How many levels below `node` its deepest reference lies, -1 without one; of each object and list in `depths`."""
    deepest = -1
    if isinstance(node, dict | list):
        if isinstance(node, dict) and any(isinstance(node.get(word), str) for word in _REFERENCES):
            deepest = 0
        for child in node.values() if isinstance(node, dict) else node:
            below = _deepest_reference(child, depths)
            if below >= 0:
                deepest = max(deepest, below + 1)
        depths[id(node)] = deepest
    return deepest


def _resolved(schema: dict[str, Any], target: str) -> Any:
    """What a reference points to; None where that is not found, by an `$anchor` for one."""
    node: Any = schema
    for part in unquote(target.removeprefix("#")).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list):
            node = node[int(name)] if name.isdecimal() and len(name) < 6 and int(name) < len(node) else None
        else:
            return None
    return node if target.startswith("#/") or target == "#" else None


def _check_literals(schema: Any, kind: GrammarKind) -> None:
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            # Descriptions and the like never become text; names of properties, constants and patterns do.
            waiting.extend(
                member for name, member in value.items() if not isinstance(member, str) or name in ("const", "pattern")
            )
            waiting.extend(value)
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and len(value) > MAX_LITERAL_CHARACTERS:
            refuse(
                kind,
                f"The schema spells out a text of {len(value)} characters and at most {MAX_LITERAL_CHARACTERS} are "
                "taken; shorten it.",
            )


def _check_divisors(divisors: list[Decimal], references: int, kind: GrammarKind) -> None:
    if not divisors:
        return
    if all(0 < divisor < 10**15 and divisor.as_tuple().exponent >= -15 for divisor in divisors):  # type: ignore[operator]
        scale = 10 ** max(0, *(-divisor.normalize().as_tuple().exponent for divisor in divisors))  # type: ignore[operator]
        together = lcm(*(int(divisor * scale) for divisor in divisors))
        if together <= MAX_DIVISOR and together * (len(divisors) + references) <= _MAX_REMAINDERS:
            return
    refuse(
        kind,
        f"The schema's `multipleOf` divisors are too large: their least common multiple in the smallest decimal place, "
        f"at most {MAX_DIVISOR}, decides. Use rounder numbers or leave `multipleOf` out.",
    )
