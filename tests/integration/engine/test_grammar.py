"""Grammars on real vocabularies: every finished text conforms, whatever is drawn; no step and no compile is slow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidGrammar
from service.domain.generation import Grammar, GrammarKind
from service.engine.grammar import Constraint, GrammarCompiler
from service.llama.context import Context
from service.llama.model import Model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema(value: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


@pytest.fixture(scope="module")
def gloss_model(gloss: Path) -> Iterator[Model]:
    model = Model(gloss, gpu_layers=0, use_extra_buffers=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def smollm2_model(smollm2: Path) -> Iterator[Model]:
    model = Model(smollm2, gpu_layers=0, use_extra_buffers=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def gloss_compiler(gloss_model: Model) -> GrammarCompiler:
    return GrammarCompiler(gloss_model)


@pytest.fixture(scope="module")
def smollm2_compiler(smollm2_model: Model) -> GrammarCompiler:
    return GrammarCompiler(smollm2_model)


def allowed(constraint: Constraint, model: Model) -> set[int]:
    logits = np.zeros(model.vocabulary_size, dtype=np.float32)
    constraint.mask(logits)
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


def ends(model: Model) -> set[int]:
    return {token for token in range(model.vocabulary_size) if model.is_end(token)}


def feed(constraint: Constraint, model: Model, text: str) -> None:
    for token in model.tokenize(text, add_special=False, parse_special=False):
        assert token in allowed(constraint, model), (text, model.piece(token))
        assert constraint.accept(token)


def random_text(constraint: Constraint, model: Model, seed: int, steps: int, *, end_bias: float = 3.0) -> str | None:
    """A text from random logits that lean towards short tokens of ASCII; None when it did not end in `steps`."""
    random = np.random.default_rng(seed)
    bias = _shortness(model)
    data = b""
    for _ in range(steps):
        logits = random.gumbel(size=model.vocabulary_size).astype(np.float32) + bias
        for token in ends(model):
            logits[token] += end_bias
        constraint.mask(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        assert constraint.accept(token), constraint.error
        data += model.piece(token)
        if model.is_end(token) or constraint.is_finished:
            return data.decode()
    return None


_biases: dict[int, Any] = {}


def _shortness(model: Model) -> Any:
    if id(model) not in _biases:
        closing = b'"}],'
        pieces = [model.piece(token) for token in range(model.vocabulary_size)]
        _biases[id(model)] = np.array(
            [(4.0 if piece[:1] and piece[:1] in closing else 0.0) - len(piece) / 4 for piece in pieces],
            dtype=np.float32,
        )
    return _biases[id(model)]


def greedy_text(model: Model, constraint: Constraint, prompt: str, steps: int) -> str | None:
    context = Context(model, cells=512, sequences=1, batch_tokens=256, threads=1, flash_attention=False)
    try:
        tokens = model.tokenize(prompt, add_special=True, parse_special=True)
        start, data = 0, b""
        for _ in range(steps):
            context.batch.clear()
            index = context.batch.add(tokens, start, 0, logits=1) + len(tokens) - 1
            assert context.decode() == 0
            start += len(tokens)
            logits = context.logits(index)
            constraint.mask(logits)
            token = int(logits.argmax())
            assert constraint.accept(token), constraint.error
            if model.is_end(token):
                return data.decode()
            data += model.piece(token)
            if constraint.is_finished:
                return data.decode()
            tokens = [token]
        return None
    finally:
        context.close()


@pytest.mark.parametrize("which", ["gloss", "smollm2"])
def test_greedy_text_of_a_model_conforms_to_its_schema(which, request):
    model: Model = request.getfixturevalue(f"{which}_model")
    compiler: GrammarCompiler = request.getfixturevalue(f"{which}_compiler")
    prompt = (
        "<|im_start|>user\nDescribe a person called Ann, 31, as JSON.<|im_end|>\n<|im_start|>assistant\n"
        if which == "smollm2"
        else "Ann is"
    )
    text = greedy_text(model, compiler.compile(schema(PERSON)), prompt, 150)
    assert text is not None
    assert jsonschema_rs.is_valid(PERSON, json.loads(text)), text


_LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 300},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
            {"type": "string", "maxLength": 8},
            {"type": "string", "minLength": 2, "maxLength": 4},
            {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]+$", "maxLength": 9},
            {"type": "string", "format": "date"},
            {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
            {"const": {"a": [1, "x"]}},
        ]
    ),
    st.lists(st.one_of(st.integers(-99, 99), st.booleans(), st.text(max_size=5)), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)


def _objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], optional: int, reference: bool) -> dict[str, Any]:
        names = list(properties)
        built = {
            "type": "object",
            "properties": properties,
            "required": names[optional:],
            "additionalProperties": False,
        }
        if reference and names:
            # `$defs` of inner schemas would need other paths: the schema itself is small enough to be put in twice.
            built["properties"] = {**properties, "again": {"anyOf": [{"type": "null"}, properties[names[0]]]}}
        return built

    names = st.text(min_size=1, max_size=6)
    return st.builds(build, st.dictionaries(names, children, min_size=1, max_size=3), st.integers(0, 2), st.booleans())


_SCHEMAS = st.recursive(
    _LEAVES,
    lambda children: st.one_of(
        _objects(children),
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 2},
            children,
            st.integers(0, 2),
        ),
        st.builds(
            lambda first, second: {"type": "array", "prefixItems": [first, second], "minItems": 2, "items": False},
            children,
            children,
        ),
        st.lists(children, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices}),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(value=_SCHEMAS, seed=st.integers(0, 2**32))
def test_every_text_that_ends_conforms_whatever_is_drawn(gloss_compiler, gloss_model, value, seed):
    constraint = gloss_compiler.compile(schema(value))
    text = random_text(constraint, gloss_model, seed, 400)
    if text is not None:
        assert jsonschema_rs.is_valid(value, json.loads(text)), (value, text)


def test_json_mode_gives_an_object_and_the_empty_schema_any_value(smollm2_compiler, smollm2_model):
    ended = [
        random_text(smollm2_compiler.compile(schema({"type": "object"})), smollm2_model, seed, 150) for seed in range(6)
    ]
    assert any(ended)
    assert all(isinstance(json.loads(text), dict) for text in ended if text is not None)
    first = {smollm2_model.piece(token)[:1] for token in allowed(smollm2_compiler.compile(schema({})), smollm2_model)}
    assert {b"{", b"[", b'"', b"t", b"f", b"n", b"1", b"-"} <= first
    assert b" " not in first


@pytest.mark.parametrize("text", ['{"a": 1, "b": [1, 2]}', '{"a":1,"b":[1,2]}', '{"a": 1,"b":[1, 2]}'])
def test_separators_have_one_space_or_none(smollm2_compiler, smollm2_model, text):
    value = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}
    constraint = smollm2_compiler.compile(schema(value))
    feed(constraint, smollm2_model, text)
    assert constraint.is_finished


def test_a_text_may_end_with_any_end_token_of_the_model_and_only_where_it_is_whole(smollm2_compiler, smollm2_model):
    finishing = ends(smollm2_model)
    assert len(finishing) > 1
    constraint = smollm2_compiler.compile(Grammar(GrammarKind.REGEX, "ab?"))
    assert not allowed(constraint, smollm2_model) & finishing
    feed(constraint, smollm2_model, "a")
    assert not constraint.is_finished
    assert finishing <= allowed(constraint, smollm2_model)
    for end in finishing:
        copy = constraint.copy()
        assert copy.accept(end)
        assert copy.is_finished
    feed(constraint, smollm2_model, "b")
    assert constraint.is_finished
    assert allowed(constraint, smollm2_model) == finishing


def test_control_tokens_are_no_text(smollm2_compiler, smollm2_model):
    constraint = smollm2_compiler.compile(Grammar(GrammarKind.REGEX, "(?s:.)*"))
    feed(constraint, smollm2_model, "x")
    tokens = allowed(constraint, smollm2_model)
    assert all(smollm2_model.piece(token) for token in tokens - ends(smollm2_model))


def test_a_token_that_is_not_allowed_fails_the_text(gloss_compiler, gloss_model):
    constraint = gloss_compiler.compile(Grammar(GrammarKind.REGEX, "[0-9]+"))
    (letter,) = gloss_model.tokenize("x", add_special=False, parse_special=False)[-1:]
    assert not constraint.accept(letter)
    assert constraint.error
    assert not constraint.is_finished
    assert constraint.forced() == []
    constraint.mask(np.zeros(gloss_model.vocabulary_size, dtype=np.float32))
    assert not constraint.accept(letter)


@pytest.mark.parametrize("which", ["gloss", "smollm2"])
def test_forced_tokens_are_those_that_the_grammar_takes(which, request):
    model: Model = request.getfixturevalue(f"{which}_model")
    compiler: GrammarCompiler = request.getfixturevalue(f"{which}_compiler")
    constraint = compiler.compile(Grammar(GrammarKind.LARK, 'start: "x" /[0-9]/ " is a long fixed sentence; " /[a-z]/'))
    feed(constraint, model, "x7")
    forced = constraint.forced()
    text = b"".join(map(model.piece, forced))
    assert text
    assert b" is a long fixed sentence; ".startswith(text)
    for token in forced:
        assert allowed(constraint, model) == {token}
        assert constraint.accept(token)


def test_copies_go_their_own_ways(gloss_compiler, gloss_model):
    constraint = gloss_compiler.compile(Grammar(GrammarKind.GBNF, 'root ::= "a" ("b" | "c") "d"'))
    feed(constraint, gloss_model, "a")
    copy = constraint.copy()
    feed(constraint, gloss_model, "bd")
    feed(copy, gloss_model, "cd")
    assert constraint.is_finished
    assert copy.is_finished


# llama.cpp's examples, in short: what its folder of grammars asks of the notation.
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
CHESS = r"""
root   ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move   ::= (pawn | castle) [+#]?
pawn   ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""
LIST = r"""
root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
JAPANESE = r"""
root ::= char+ ([ \t\n] char+)*
char ::= [ぁ-ゟ] | [ァ-ヿ] | [一-鿿]
"""
EXAMPLES = {
    "arithmetic": (ARITHMETIC, "1 +x2*(3-y) = 4\n"),
    "chess": (CHESS, "1. e4 e5\n2. O-O exd4+\n"),
    "list": (LIST, "- one\n- zwei ü\n"),
    "japanese": (JAPANESE, "日本 ひらカタ"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_grammars_like_those_of_llama_cpp_take_their_texts(gloss_compiler, gloss_model, name):
    source, text = EXAMPLES[name]
    constraint = gloss_compiler.compile(Grammar(GrammarKind.GBNF, source))
    feed(constraint, gloss_model, text)
    assert ends(gloss_model) <= allowed(constraint, gloss_model)


def _row(count: int) -> str:
    return json.dumps({"type": "object", "properties": {f"p{number}": {} for number in range(count)}})


REFUSED = [
    (GrammarKind.JSON_SCHEMA, '{"type":"object","properties":{"a":false},"required":["a"]}', "nsatisfiable"),
    (GrammarKind.JSON_SCHEMA, '{"type":"object","propertyNames":{"maxLength":3}}', "propertyNames"),
    (GrammarKind.JSON_SCHEMA, '{"not":{"type":"string"}}', "not"),
    (GrammarKind.JSON_SCHEMA, '{"type":"string","format":"iri"}', "iri"),
    (GrammarKind.JSON_SCHEMA, '{"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]}', "anyOf"),
    (GrammarKind.JSON_SCHEMA, '{"$ref":"#/$defs/missing"}', "missing"),
    (GrammarKind.JSON_SCHEMA, _row(1000), "120"),
    (GrammarKind.GBNF, "root ::= root", "matches no text"),
    (GrammarKind.REGEX, "a(?=b)", "look-around"),
    (GrammarKind.REGEX, "(", "regex"),
    (GrammarKind.LARK, 'begin: "a"', "start"),
    (GrammarKind.LARK, 'start: s\ns: s s | /[a-z]/ | /./ | ""', "too many choices"),
    (
        GrammarKind.LARK,
        "start: A0\n" + "\n".join(f"A{n}: A{n + 1} A{n + 1}" for n in range(40)) + '\nA40: "x"',
        "too large",
    ),
    (GrammarKind.LARK, "start: " + "%lark { start: " * 900 + '"a"' + " }" * 900, ""),
]


@pytest.mark.parametrize(("kind", "source", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_followed_is_refused_before_the_first_token(smollm2_compiler, kind, source, told):
    smollm2_compiler.compile(schema({}))
    started = time.thread_time()
    with pytest.raises(InvalidGrammar) as caught:
        smollm2_compiler.compile(Grammar(kind, source))
    assert time.thread_time() - started < 1
    assert told in caught.value.message


SLOW = [
    (GrammarKind.GBNF, 'root ::= s\ns ::= s s s | s s | "a" | "b" | ""'),
    (GrammarKind.GBNF, 'root ::= a*\na ::= b*\nb ::= c*\nc ::= "x"* a'),
    (GrammarKind.GBNF, "root ::= [a-z] root | [a-z]"),
    (GrammarKind.GBNF, 'root ::= [bc] x{1000}\nx ::= y{1000}\ny ::= "a"{1000}'),
    (GrammarKind.GBNF, 'root ::= [^"]* "x" root | "y"'),
    (GrammarKind.REGEX, "((a*)*)*"),
    (GrammarKind.REGEX, "(a|b)*a(a|b){100}"),
    (GrammarKind.REGEX, r"(\w+\s?){1,100}"),
    (GrammarKind.LARK, "start: A\nA: ~(~(~(/(.*a.{30})*/)))"),
    (GrammarKind.LARK, 'start: B A\nB: /[bc]/\nA: C{1000}\nC: D{1000}\nD: "a"{1000}'),
    (GrammarKind.LARK, '%ignore /(.|\\n)*/\nstart: "a" start | "b"'),
    (GrammarKind.JSON_SCHEMA, _row(120)),
    (GrammarKind.JSON_SCHEMA, '{"type":"array","items":{"type":"array","minItems":1000},"minItems":100000}'),
    (GrammarKind.JSON_SCHEMA, '{"type":"string","minLength":100000,"maxLength":1000000}'),
    (GrammarKind.JSON_SCHEMA, json.dumps({"enum": [f"value{number}" for number in range(4000)]})),
    (GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "items": {"const": "x" * 4000}, "minItems": 9})),
    (GrammarKind.JSON_SCHEMA, '{"type":"integer","multipleOf":9973}'),
]


@pytest.mark.parametrize(("kind", "source"), SLOW, ids=lambda value: str(value)[:40])
def test_a_hostile_grammar_takes_no_long_step(smollm2_compiler, smollm2_model, kind, source):
    smollm2_compiler.compile(schema({}))
    started = time.thread_time()
    try:
        constraint = smollm2_compiler.compile(Grammar(kind, source))
    except InvalidGrammar:  # its first tokens show it
        return
    finally:
        assert time.thread_time() - started < 1
    random = np.random.default_rng(0)
    finishing = list(ends(smollm2_model))
    for _ in range(120):
        logits = random.random(smollm2_model.vocabulary_size, dtype=np.float32)
        started = time.thread_time()
        constraint.mask(logits)
        logits[finishing] = -np.inf
        token = int(logits.argmax())
        if not np.isfinite(logits[token]):
            break
        going_on = constraint.accept(token)
        constraint.forced()
        spent = time.thread_time() - started
        assert spent < 0.075  # 39 ms is the longest that was measured
        if not going_on or constraint.is_finished:
            break
    assert constraint.error is None or "." in constraint.error


def test_a_step_over_its_time_fails_the_text(gloss_compiler, gloss_model, monkeypatch):
    constraint = gloss_compiler.compile(schema({}))
    monkeypatch.setattr("service.engine.grammar._MAX_STEP_CPU_SECONDS", 0.0)
    constraint.mask(np.zeros(gloss_model.vocabulary_size, dtype=np.float32))
    assert constraint.error
    assert not constraint.accept(0)


def _chain(levels: int, members: str) -> str:
    definitions = ",".join(
        f'"a{n}":' + members.replace("NEXT", f'{{"$ref":"#/$defs/a{n + 1}"}}') for n in range(levels)
    )
    return f'{{"$ref":"#/$defs/a0","$defs":{{{definitions},"a{levels}":{{"type":"integer"}}}}}}'


@pytest.mark.parametrize(
    ("levels", "members"),
    [
        (290, '{"items":NEXT}'),
        (195, '{"properties":{"x":NEXT}}'),
        (145, '{"allOf":[{"items":NEXT},{"minItems":1}]}'),
        (145, '{"anyOf":[NEXT,{"type":"null"}]}'),
        (19, '{"items":' * 28 + "NEXT" + "}" * 28),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_longest_chains_of_references_that_are_taken_fit_the_stack(gloss_compiler, levels, members):
    error = in_thread(gloss_compiler, Grammar(GrammarKind.JSON_SCHEMA, _chain(levels, members)))
    assert "references" not in str(error)


def in_thread(compiler: GrammarCompiler, grammar: Grammar) -> InvalidGrammar | None:
    """Compile as the engine's side thread does: a stack that overflows would end this process."""
    made: list[InvalidGrammar | None] = []

    def work() -> None:
        try:
            compiler.compile(grammar)
            made.append(None)
        except InvalidGrammar as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


@pytest.mark.parametrize("signs", ["()", "()?", "()*"])
def test_the_longest_chains_of_rules_that_are_taken_fit_the_stack(gloss_compiler, signs):
    opening, closing = signs[0] * 28, signs[1:] * 28
    source = "start: A0\n" + "\n".join(f"A{n}: {opening}A{n + 1}{closing}" for n in range(50)) + '\nA50: "x"'
    assert in_thread(gloss_compiler, Grammar(GrammarKind.LARK, source)) is None


def test_many_threads_compile_at_once_and_the_same_grammar_is_compiled_once(gloss_model, monkeypatch):
    compiler = GrammarCompiler(gloss_model)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for again in range(4):
                constraint = compiler.compile(schema({"const": f"text {(number + again) % 5}"}))
                feed(constraint, gloss_model, f'"text {(number + again) % 5}"')
                assert constraint.is_finished
        except BaseException as error:
            failures.append(error)

    # Masks share room, which is the engine thread's: here each thread has a turn of its own.
    turn = threading.Lock()
    original = Constraint.mask
    monkeypatch.setattr(Constraint, "mask", lambda self, logits: _in_turn(turn, original, self, logits))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(compiler._compiled) == 5


def _in_turn(turn: threading.Lock, mask: Any, constraint: Constraint, logits: Any) -> None:
    with turn:
        mask(constraint, logits)


def test_old_grammars_are_forgotten(gloss_model, monkeypatch):
    monkeypatch.setattr("service.engine.grammar._MAX_CACHED", 2)
    compiler = GrammarCompiler(gloss_model)
    for number in (1, 2, 1, 3):
        compiler.compile(schema({"const": number}))
    assert [json.loads(grammar.source)["const"] for grammar in compiler._compiled] == [1, 3]
