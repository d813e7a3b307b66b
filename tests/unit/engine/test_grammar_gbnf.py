"""A GBNF grammar means the same after it was written as Lark, checked against a plain reading of it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from service.domain.errors import InvalidGrammar
from service.engine import lexemes
from service.engine.gbnf import Characters, Choice, Node, Reference, Repeat, Series, parse_gbnf
from service.engine.lexemes import to_lark

END = 256


class _Bytes:
    """A vocabulary of the 256 bytes and an end token."""

    eos_token_id = END
    bos_token_id = None
    tokens = [bytes([byte]) for byte in range(256)] + [b"\xff<end>"]
    special_token_ids = [END]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


def accepts(tokenizer: LLTokenizer, source: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(to_lark(parse_gbnf(source))), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


class Reading:
    """Where a node can end in a text when it begins at `start`: the plain reading, for short texts."""

    def __init__(self, rules: dict[str, Node], text: str) -> None:
        self._rules = rules
        self._text = text
        self._known: dict[tuple[Node, int], set[int]] = {}

    def ends(self, node: Node, start: int) -> set[int]:
        if (node, start) not in self._known:
            self._known[node, start] = self._ends(node, start)
        return self._known[node, start]

    def _all_ends(self, node: Node, starts: set[int]) -> set[int]:
        return set().union(*(self.ends(node, start) for start in starts))

    def _ends(self, node: Node, start: int) -> set[int]:
        match node:
            case Characters():
                character = self._text[start : start + 1]
                fits = character and any(low <= ord(character) <= high for low, high in node.ranges)
                return {start + 1} if fits else set()
            case Reference():
                return self.ends(self._rules[node.name], start)
            case Choice():
                return set().union(*(self.ends(child, start) for child in node.children))
            case Series():
                here = {start}
                for child in node.children:
                    here = self._all_ends(child, here)
                return here
            case Repeat():
                found = {start} if node.least == 0 else set()
                here = {start}
                longest = node.least + len(self._text) + 1
                for count in range(1, 1 + (longest if node.most is None else min(node.most, longest))):
                    here = self._all_ends(node.children[0], here)
                    if count >= node.least:
                        found |= here
                return found
        raise AssertionError(node)


def means_the_same(tokenizer: LLTokenizer, source: str, alphabet: str, length: int) -> None:
    rules = parse_gbnf(source)
    lark = to_lark(rules)
    origin = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not origin.is_error(), (lark, origin.get_error())
    for size in range(length + 1):
        for letters in product(alphabet, repeat=size):
            text = "".join(letters)
            matcher = origin.deep_copy()
            got = matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()
            assert got == (size in Reading(rules, text).ends(rules["root"], 0)), (source, text, lark)


@pytest.mark.parametrize(
    "source",
    [
        'root ::= [ab]* "a"',
        'root ::= "a"* "a" "b"*',
        'root ::= ("a" | "ab") ("c" | "bc")',
        'root ::= "ab" | "abc" | a\na ::= [abc] "b"?',
        'root ::= item+\nitem ::= [ab]+ "c" ws\nws ::= [c]*',
        'root ::= "a" root "b" | "c"?',
        'root ::= x{2,3} "a"\nx ::= "a" | "b"',
        'root ::= [a-b]{0,2} "b" | "" | "c" [^a]',
        'root ::= (word "c")* word\nword ::= [ab] [abc]*',
        'root ::= "a"? "b"? ("c" root)?',
        'root ::= "a"{0} "b" ("c"{2})?',
    ],
)
def test_lexemes_never_swallow_what_must_follow(tokenizer, source):
    means_the_same(tokenizer, source, "abc", 5)


_ATOMS = st.sampled_from(['"a"', '"b"', '"ab"', "[ab]", "[^a]", "x", "y", '""'])


@st.composite
def _grammars(draw: st.DrawFn) -> str:
    def body(levels: int) -> str:
        parts = []
        for _ in range(draw(st.integers(1, 3))):
            part = draw(_ATOMS) if levels == 0 or draw(st.booleans()) else f"({body(levels - 1)})"
            parts.append(part + draw(st.sampled_from(["", "", "", "?", "*", "+", "{2}", "{0,2}"])))
        text = " ".join(parts)
        return f"{text} | {body(0)}" if draw(st.booleans()) else text

    # `x` is regular and `y` may use it: no recursion, which llguidance may rightly refuse where it is endless.
    x = body(1).replace("x", '"b"').replace("y", "[ab]")
    y = body(1).replace("y", '"a"')
    return f"root ::= {body(2)}\ny ::= {y}\nx ::= {x}"


@settings(max_examples=25, deadline=None)
@given(source=_grammars())
def test_random_grammars_mean_the_same(tokenizer, source):
    try:
        parse_gbnf(source)
    except InvalidGrammar:  # an endless repetition of one
        return
    means_the_same(tokenizer, source, "ab", 4)


def test_recursive_rules_stay_rules(tokenizer):
    source = 'root ::= "(" root ")" | [0-9]+\n'
    assert accepts(tokenizer, source, "((42))")
    assert not accepts(tokenizer, source, "((42)")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r'root ::= "\x41\u00e9\U0001F600\"\\\n\t"', 'Aé😀"\\\n\t'),
        (r'root ::= [\]\-\^a] [^\x00-\x1f"] [-+] [+-]', "]é-+"),
        ("root ::= [ぁ-ゟ]+ .", "これ語"),
        ('# comment\nroot ::= # more\n  "a" ( # inside\n  "b" |\n "c" ) "d"\n\n', "abd"),
        ('root ::= a-b A_1\na-b ::= "/"\nA_1 ::= "x"', "/x"),
        ('root ::= "a" |\n "b"', "b"),
        ('\r\nroot ::= x\r\nx ::= "a"\r\n', "a"),
    ],
)
def test_the_notation_is_that_of_llama_cpp(tokenizer, source, text):
    assert accepts(tokenizer, source, text)
    assert not accepts(tokenizer, source, text + "\x7f")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('root ::= "a', "Line 1"),
        ('\nroot ::= "\\q"', "Line 2"),
        ("root ::= [z-a]", "range"),
        ("root ::= []", "class"),
        ("root ::= (a", "`)`"),
        ("root ::= other", "'other'"),
        ('a ::= "x"', "'root'"),
        ('root = "a"', "`::=`"),
        ('root ::= "a"{3', "{n}"),
        ('root ::= "a"{3,2}', "lower"),
        ('root ::= "\\ud800"', "surrogate"),
        ("", "'root'"),
    ],
)
def test_a_mistake_is_told_with_its_line(source, told):
    with pytest.raises(InvalidGrammar, match="needs") as caught:
        to_lark(parse_gbnf(source))
    assert told in caught.value.message


def test_tokens_are_named_as_in_llama_cpp():
    lark = to_lark(parse_gbnf('root ::= <think> !<[7]>* <[8]> "a"'))
    assert "<think>" in lark
    assert "<[^7]>" in lark
    assert "<[8]>" in lark


def test_the_search_for_lexemes_has_an_end(monkeypatch):
    monkeypatch.setattr(lexemes, "_MAX_CPU_SECONDS", 0.05)
    rules = "\n".join(f'w{number} ::= "w" [a-z]* [b-y]+ root?' for number in range(400))
    with pytest.raises(InvalidGrammar, match="look alike"):
        to_lark(parse_gbnf("root ::= " + " | ".join(f"w{number}" for number in range(400)) + "\n" + rules))
