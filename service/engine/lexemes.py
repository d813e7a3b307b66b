"""Chooses the lexemes of a GBNF grammar and writes it as Lark, with the same meaning. Pure; side thread of the worker.

GBNF looks at single characters. llguidance cuts the text into lexemes first, each as long as it can be: `[0-9]* "7"`
would never end. So a regular part of a rule becomes one lexeme where nothing that may follow it could also lengthen it,
or lengthen a lexeme that may stand in its place; the others are taken apart, down to single characters.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from service.domain.generation import GrammarKind
from service.engine.gbnf import Characters, Choice, Node, Ranges, Reference, Repeat, Series, TokenNode
from service.engine.grammar_limits import check_levels, refuse

# What one lexeme's regular expression may hold, in ranges of characters.
_MAX_RANGES = 16_000
# For the choice of lexemes, of this thread's own time.
_MAX_CPU_SECONDS = 0.4


def to_lark(rules: dict[str, Node]) -> str:
    """The grammar in Lark. Raises InvalidGrammar when it has too many rules that look alike to find lexemes in time."""
    try:
        return _Writer(rules).lark()
    except RecursionError:
        refuse(GrammarKind.GBNF, "The grammar's rules refer to each other in too long a chain; write fewer rules.")


@dataclass(slots=True)
class _Automaton:
    """Positions of a lexeme's characters (Glushkov): which may come first, last, and after each, as bit sets.

    Counts are taken as `*` or `+`: that only makes lexemes look longer than they are.
    """

    characters: list[int]  # for each position the bit set of its character classes
    first: int
    last: int
    after: list[int]
    is_nullable: bool
    ranges: int  # of all positions together: what the regular expression grows with


class _Writer:
    """Chooses the lexemes and writes the Lark grammar."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}
        cuts: set[int] = set()
        self._nodes = 0
        for node in _all_nodes(rules.values()):
            self._nodes += 1
            if isinstance(node, Characters):
                cuts.update(bound for first, last in node.ranges for bound in (first, last + 1))
        # Characters between two cuts are alike to every class of the grammar: one bit stands for them.
        self._cuts = sorted(cuts)
        self._taken_apart: set[Node] = set()
        self._automata: dict[Node, _Automaton | None] = {}
        self._overlaps: dict[tuple[Node, Node], tuple[int, bool]] = {}
        self._next_rest = time.thread_time()
        self._deadline = self._next_rest + _MAX_CPU_SECONDS
        self._regular: set[str] = set()
        for name in self._in_order_of_use():
            self._regular.add(name)
            self._automaton(rules[name])

    def lark(self) -> str:
        """The whole grammar. Only rules that the root reaches are written."""
        while conflicts := self._conflicts():
            self._taken_apart |= conflicts
        waiting, seen = ["root"], {"root"}
        terminals: dict[str, str] = {}

        def refer(name: str) -> str:
            if name not in seen:
                seen.add(name)
                waiting.append(name)
            return f"r{self._numbers[name]}"

        def terminal(node: Node) -> str:
            return terminals.setdefault(self._regex(node), f"T{len(terminals)}")

        lines = [f"start: r{self._numbers['root']}"]
        while waiting:
            name = waiting.pop()
            lines.append(f"r{self._numbers[name]}: {self._write(self._rules[name], refer, terminal)}")
        check_levels([_depth(line) for line in lines] + [0] * len(terminals), GrammarKind.GBNF)
        lines += [f"{name}: /{regex}/" for regex, name in terminals.items()]
        return "\n".join(lines) + "\n"

    def _in_order_of_use(self) -> Iterator[str]:
        """Regular rules, each after those that it refers to: rules that reach neither themselves nor a token."""
        users: dict[str, list[str]] = {name: [] for name in self._rules}
        missing: dict[str, int] = {}
        for name, rule in self._rules.items():
            nodes = list(_all_nodes([rule]))
            needed = {node.name for node in nodes if isinstance(node, Reference)}
            for other in needed:
                users[other].append(name)
            # One that never comes: a token.
            missing[name] = len(needed) + any(isinstance(node, TokenNode) for node in nodes)
        ready = [name for name, count in missing.items() if count == 0]
        while ready:
            name = ready.pop()
            yield name
            for user in users[name]:
                missing[user] -= 1
                if missing[user] == 0:
                    ready.append(user)

    def _check_time(self) -> None:
        now = time.thread_time()
        if now > self._deadline:
            refuse(
                GrammarKind.GBNF, "The grammar has too many rules, or too many that look alike; write a smaller one."
            )
        if now > self._next_rest:
            # The engine's thread would wait for the interpreter's lock five milliseconds each time.
            time.sleep(0.0001)
            self._next_rest = now + 0.001

    def _is_lexeme(self, node: Node) -> bool:
        """Whether a node is written as one lexeme: regular, of bearable size, not taken apart."""
        if node in self._taken_apart or isinstance(node, Reference):
            return False
        automaton = self._automaton(node)
        return automaton is not None and bool(automaton.characters)

    def _automaton(self, node: Node) -> _Automaton | None:
        """Positions of a node; None where it is not regular or has too many."""
        if node not in self._automata:
            self._automata[node] = self._build(node)
        return self._automata[node]

    def _build(self, node: Node) -> _Automaton | None:
        if isinstance(node, Characters):
            return _Automaton([self._bits(node.ranges)], 1, 1, [0], is_nullable=False, ranges=len(node.ranges))
        if isinstance(node, Reference):
            return self._automaton(self._rules[node.name]) if node.name in self._regular else None
        if isinstance(node, TokenNode):
            return None
        whole = _Automaton([], 0, 0, [], is_nullable=not isinstance(node, Choice), ranges=0)
        if isinstance(node, Repeat) and node.most == 0:
            return whole
        for child in node.children:
            part = self._automaton(child)
            if part is None or whole.ranges + part.ranges > _MAX_RANGES:
                return None
            self._check_time()
            _append(whole, part, is_choice=isinstance(node, Choice))
        if isinstance(node, Repeat):
            if node.most != 1:
                for position in _members(whole.last):
                    whole.after[position] |= whole.first
            whole.is_nullable |= node.least == 0
        return whole

    def _bits(self, ranges: Ranges) -> int:
        bits = 0
        for first, last in ranges:
            start, end = bisect_left(self._cuts, first), bisect_right(self._cuts, last)
            bits |= (1 << end) - (1 << start)
        return bits

    def _conflicts(self) -> set[Node]:
        """Lexemes that could swallow the beginning of what must follow another lexeme, or themselves."""
        lexemes = [node for rule in self._rules.values() for node in self._lexemes_of(rule)]
        next_, first = self._next_lexemes({node: 1 << number for number, node in enumerate(lexemes)})
        automata = [self._known(node) for node in lexemes]
        starts = [_union(automaton.characters, automaton.first) for automaton in automata]
        # Lexemes that may stand in the same place.
        rivals = [0] * len(lexemes)
        waiting: list[tuple[int, int]] = []

        def meet(group: int) -> None:
            members = _members(group)
            self._check_time()
            for number in members:
                new = group & ~rivals[number]
                rivals[number] |= new
                waiting.extend((number, other) for other in _members(new))

        for group in {first, *next_}:
            meet(group)
        found: set[Node] = set()
        while waiting:
            one, other = waiting.pop()
            self._check_time()
            if not starts[one] & starts[other]:
                continue
            after, same = self._overlap(lexemes[one], lexemes[other])
            if after & _union(starts, next_[one]):
                found.add(lexemes[other])
            if same and one != other:
                # Where one text is both, whatever may follow either of them is possible.
                meet(next_[one] | next_[other])
        return found

    def _overlap(self, one: Node, other: Node) -> tuple[int, bool]:
        """Characters with which `other` can go on where `one` can end, and whether one text can be both."""
        known = self._overlaps.get((one, other))
        if known is not None:
            return known
        # Both at once, as deterministic automata: a state is the positions that each can have reached.
        a, b = self._known(one), self._known(other)
        blocks = _blocks({*a.characters, *b.characters})
        a_blocks = [_having(blocks, bits) for bits in a.characters]
        b_blocks = [_having(blocks, bits) for bits in b.characters]
        a_positions = [_at_block(a_blocks, block) for block in range(len(blocks))]
        b_positions = [_at_block(b_blocks, block) for block in range(len(blocks))]
        after, is_same = 0, False
        waiting = [(a.first, b.first)]
        seen = set(waiting)
        while waiting:
            self._check_time()
            from_a, from_b = waiting.pop()
            for block in _members(_union(a_blocks, from_a) & _union(b_blocks, from_b)):
                at_a, at_b = from_a & a_positions[block], from_b & b_positions[block]
                next_b = _union(b.after, at_b)
                if at_a & a.last:
                    is_same |= bool(at_b & b.last)
                    after |= _union(b.characters, next_b)
                state = (_union(a.after, at_a), next_b)
                if all(state) and state not in seen:
                    seen.add(state)
                    waiting.append(state)
        self._overlaps[one, other] = after, is_same
        return after, is_same

    def _known(self, node: Node) -> _Automaton:
        automaton = self._automata[node]
        assert automaton is not None
        return automaton

    def _lexemes_of(self, node: Node) -> Iterator[Node]:
        if self._is_lexeme(node):
            yield node
        else:
            for child in node.children:
                yield from self._lexemes_of(child)

    def _next_lexemes(self, bit: dict[Node, int]) -> tuple[list[int], int]:
        """For each lexeme the bit set of those that may come next, and the set of those that may come first."""
        nullable = dict.fromkeys(self._rules, False)
        first = dict.fromkeys(self._rules, 0)
        follow = dict.fromkeys(self._rules, 0)
        next_ = dict.fromkeys(bit, 0)

        def can_be_empty(node: Node) -> bool:
            if node in bit:
                return self._known(node).is_nullable
            if isinstance(node, Reference):
                return nullable[node.name]
            if isinstance(node, Choice):
                return any(map(can_be_empty, node.children))
            if isinstance(node, Repeat):
                return node.least == 0 or can_be_empty(node.children[0])
            return not isinstance(node, TokenNode) and all(map(can_be_empty, node.children))

        def starts(node: Node) -> int:
            if node in bit:
                return bit[node]
            if isinstance(node, Reference):
                return first[node.name]
            found = 0
            for child in node.children:
                found |= starts(child)
                if isinstance(node, Series) and not can_be_empty(child):
                    break
            return found

        def visit(node: Node, after: int) -> None:
            if node in bit:
                next_[node] |= after
            elif isinstance(node, Reference):
                follow[node.name] |= after
            elif isinstance(node, Series):
                for child in reversed(node.children):
                    visit(child, after)
                    after = starts(child) | (after if can_be_empty(child) else 0)
            else:
                if isinstance(node, Repeat) and node.most != 1:
                    after |= starts(node)
                for child in node.children:
                    visit(child, after)

        while True:
            self._check_time()
            before = (dict(nullable), dict(first), dict(follow))
            # What a rule can begin with mostly comes from later rules, what can follow it from earlier ones.
            for name, node in reversed(self._rules.items()):
                nullable[name] = can_be_empty(node)
                first[name] = starts(node)
            for name, node in self._rules.items():
                visit(node, follow[name])
            if before == (nullable, first, follow):
                return list(next_.values()), first["root"]

    def _write(self, node: Node, refer: Callable[[str], str], terminal: Callable[[Node], str]) -> str:
        if self._is_lexeme(node):
            return terminal(node)
        if isinstance(node, Reference):
            return refer(node.name)
        if isinstance(node, TokenNode):
            return node.text
        written = [self._write(child, refer, terminal) for child in node.children]
        if isinstance(node, Choice):
            return "(" + " | ".join(written) + ")"
        if isinstance(node, Repeat):
            return '""' if node.most == 0 else f"({written[0]}){_times(node)}"
        return "(" + " ".join(written) + ")" if written else '""'

    def _regex(self, node: Node) -> str:
        if isinstance(node, Characters):
            (first, last), *others = node.ranges
            if first == last and not others:
                return _escaped(first)
            return "[" + "".join(_range(first, last) for first, last in node.ranges) + "]"
        if isinstance(node, Reference):
            return self._regex(self._rules[node.name])
        written = [self._regex(child) for child in node.children]
        if isinstance(node, Choice):
            return "(?:" + "|".join(written) + ")"
        if isinstance(node, Repeat):
            return "" if node.most == 0 else f"(?:{written[0]}){_times(node)}"
        return "(?:" + "".join(written) + ")" if len(written) > 1 else "".join(written)


def _append(whole: _Automaton, part: _Automaton, *, is_choice: bool) -> None:
    """Add a part beside what is there, or after it."""
    base = len(whole.characters)
    first, last = part.first << base, part.last << base
    whole.characters += part.characters
    whole.after += [positions << base for positions in part.after]
    whole.ranges += part.ranges
    if is_choice:
        whole.first |= first
        whole.last |= last
        whole.is_nullable |= part.is_nullable
        return
    for position in _members(whole.last):
        whole.after[position] |= first
    if whole.is_nullable:
        whole.first |= first
    whole.last = whole.last | last if part.is_nullable else last
    whole.is_nullable &= part.is_nullable


def _union(sets: Sequence[int], chosen: int) -> int:
    """All members of the chosen sets."""
    found = 0
    for number in _members(chosen):
        found |= sets[number]
    return found


def _having(sets: Sequence[int], bits: int) -> int:
    """The sets that share a member with `bits`."""
    return sum(1 << number for number, members in enumerate(sets) if members & bits)


def _at_block(blocks: Sequence[int], block: int) -> int:
    """The positions whose characters reach into a block."""
    return sum(1 << position for position, bits in enumerate(blocks) if bits >> block & 1)


def _blocks(sets: set[int]) -> list[int]:
    """The coarsest partition of all members such that each set is a union of blocks."""
    found: list[int] = []
    for bits in sets:
        rest = bits
        for block in list(found):
            shared = block & bits
            if shared and shared != block:
                found.remove(block)
                found += [shared, block ^ shared]
            rest &= ~block
        if rest:
            found.append(rest)
    return found


def _all_nodes(roots: Iterable[Node]) -> Iterator[Node]:
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children)


def _members(bits: int) -> list[int]:
    found = []
    digits = bin(bits)[:1:-1]
    at = digits.find("1")
    while at >= 0:
        found.append(at)
        at = digits.find("1", at + 1)
    return found


def _depth(line: str) -> int:
    """How deep the brackets of a rule are; it holds names and nothing that could hide a bracket."""
    depth = deepest = 0
    for character in line:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _times(node: Repeat) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.least, node.most))
    return short or (f"{{{node.least}}}" if node.most == node.least else f"{{{node.least},{node.most or ''}}}")


def _range(first: int, last: int) -> str:
    return _escaped(first) if first == last else f"{_escaped(first)}-{_escaped(last)}"


def _escaped(point: int) -> str:
    character = chr(point)
    return character if character.isascii() and character.isalnum() else rf"\x{{{point:X}}}"
