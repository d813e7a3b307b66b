"""What a grammar may cost is told from its text alone, quickly and whatever the text holds."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidGrammar
from service.domain.generation import GrammarKind
from service.engine import grammar_limits as limits
from service.engine.gbnf import parse_gbnf
from service.engine.lexemes import to_lark


def check(kind: GrammarKind, source: str) -> object:
    limits.check_size(kind, source)
    match kind:
        case GrammarKind.JSON_SCHEMA:
            return limits.check_schema(source)
        case GrammarKind.REGEX:
            return limits.check_regex(source)
        case GrammarKind.GBNF:
            return to_lark(parse_gbnf(source))
        case GrammarKind.LARK:
            return limits.check_lark(source)


def deep_schema(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


def chain(length: int, *, nested: int = 1) -> str:
    definitions = {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(length)}
    for name, definition in definitions.items():
        for _ in range(nested):
            definition = {"items": definition}
        definitions[name] = definition
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{length}": {"type": "integer"}}})


HOSTILE = [
    (GrammarKind.JSON_SCHEMA, chain(1200)),
    (GrammarKind.JSON_SCHEMA, chain(60, nested=26)),
    (
        GrammarKind.JSON_SCHEMA,
        json.dumps({"$ref": "#/x/0", "x": [{"items": {"$ref": f"#/x/{number + 1}"}} for number in range(1200)]}),
    ),
    (
        GrammarKind.JSON_SCHEMA,
        json.dumps(
            {
                "$ref": "#n0",
                "$defs": {
                    f"a{number}": {"$anchor": f"n{number}", "items": {"$ref": f"#n{number + 1}"}}
                    for number in range(900)
                },
            }
        ),
    ),
    (GrammarKind.GBNF, "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000),
    (GrammarKind.GBNF, "root ::= " + "(" * 8000 + '"a"' + ")" * 8000),
    (GrammarKind.GBNF, 'root ::= (("a"*)*)*'),
    (GrammarKind.GBNF, 'root ::= "a"{1000000}'),
    (GrammarKind.GBNF, 'root ::= (("a"{1000}){1000}){1000}'),
    (GrammarKind.GBNF, "root ::= a" + "0 \nroot ::= a" * 20_000),
    (GrammarKind.REGEX, "(" * 8000 + "a" + ")" * 8000),
    (GrammarKind.REGEX, "a{1000000}"),
    (GrammarKind.REGEX, "((a{1000}){1000}){1000}"),
    (GrammarKind.REGEX, "x" * 20_000),
    (GrammarKind.REGEX, "\ud800"),
    (GrammarKind.LARK, "start: " + "(" * 8000 + '"a"' + ")" * 8000),
    (GrammarKind.LARK, "start: " + "[" * 8000 + '"a"' + "]" * 8000),
    (GrammarKind.LARK, "start: A0\n" + "\n".join(f"A{n}: {'(' * 28}A{n + 1}{')' * 28}" for n in range(200))),
    (GrammarKind.LARK, 'start: "a"{1000000}'),
    (GrammarKind.LARK, 'start: "a" ~ 1..1000000'),
    (GrammarKind.LARK, "start: /a{1000000}/"),
    (GrammarKind.LARK, 'start: %json {"type": "integer", "multi\\u0070leOf": 999983}'),
    (GrammarKind.LARK, "start: %json " + '{"a":' * 3000),
    (GrammarKind.LARK, "start: %json"),
    (GrammarKind.JSON_SCHEMA, deep_schema(40)),
    (GrammarKind.JSON_SCHEMA, deep_schema(2000)),
    (GrammarKind.JSON_SCHEMA, "[" * 60_000),
    (GrammarKind.JSON_SCHEMA, '{"description":"' + "x" * 70_000 + '"}'),
    (GrammarKind.JSON_SCHEMA, '{"const":"' + "x" * 60_000 + '"}'),
    (GrammarKind.JSON_SCHEMA, '{"enum":["' + "x" * 60_000 + '"]}'),
    (GrammarKind.JSON_SCHEMA, '{"properties":{"' + "x" * 60_000 + '":{}}}'),
    (GrammarKind.JSON_SCHEMA, '{"type":"string","pattern":"a{1000000}"}'),
    (GrammarKind.JSON_SCHEMA, '{"properties":{"const":{"type":"string","pattern":"a{1000000}"}}}'),
    (GrammarKind.JSON_SCHEMA, '{"patternProperties":{"a{1000000}":{}}}'),
    (GrammarKind.JSON_SCHEMA, '{"type":"integer","multipleOf":999983}'),
    (
        GrammarKind.JSON_SCHEMA,
        '{"allOf":[' + ",".join(f'{{"multipleOf":{n}}}' for n in (2, 3, 5, 7, 11, 13, 17)) + "]}",
    ),
    (GrammarKind.JSON_SCHEMA, '{"multipleOf":1e-300}'),
    (GrammarKind.JSON_SCHEMA, '{"$ref":"https://example.com/schema.json"}'),
    (GrammarKind.JSON_SCHEMA, '{"items":{"$ref":"other.json#/a"}}'),
    (GrammarKind.JSON_SCHEMA, '{"minimum":NaN}'),
    (GrammarKind.JSON_SCHEMA, '{"minimum":' + "9" * 60_000 + "}"),
    (GrammarKind.JSON_SCHEMA, "[]"),
    (GrammarKind.JSON_SCHEMA, "false"),
    (GrammarKind.JSON_SCHEMA, "{"),
    (GrammarKind.JSON_SCHEMA, ""),
]


@pytest.mark.parametrize(("kind", "source"), HOSTILE, ids=lambda value: str(value)[:40])
def test_a_hostile_grammar_is_refused_within_a_tenth_of_a_second(kind, source):
    started = time.thread_time()
    with pytest.raises(InvalidGrammar) as caught:
        check(kind, source)
    assert time.thread_time() - started < 0.1
    assert caught.value.param == ("response_format" if kind is GrammarKind.JSON_SCHEMA else "grammar")
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (GrammarKind.REGEX, r"\{1000000\}[{1000000}(((]\p{Lu}\x{1F600}(\w+\s?){1,100}"),
        (GrammarKind.LARK, 'start: "((((" /[(]{3}/ // ((( {1000000}\n'),
        (GrammarKind.LARK, 'start: %json {"multipleOf": 0.01, "x-guidance": {"lenient": true}} A\nA: "b"~1..5'),
        (GrammarKind.LARK, "start: a0\n" + "\n".join(f'a{n}: ("x" | a{n + 1}*)\n | "y"' for n in range(400))),
        (GrammarKind.GBNF, 'root ::= "((((" [(){] # ((( {1000000}\n'),
        (GrammarKind.JSON_SCHEMA, deep_schema(limits.MAX_SCHEMA_DEPTH - 1)),
        (GrammarKind.JSON_SCHEMA, chain(200)),
        (GrammarKind.JSON_SCHEMA, '{"$defs":{"a":{"items":{"$ref":"#"}}},"items":{"$ref":"#/$defs/a"}}'),
        (GrammarKind.JSON_SCHEMA, '{"description":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}'),
        (GrammarKind.JSON_SCHEMA, '{"description":"' + "x" * 10_000 + '"}'),
        (GrammarKind.JSON_SCHEMA, '{"properties":{"$ref":{"$ref":"#/$defs/a"}},"$defs":{"a":{}}}'),
        (GrammarKind.JSON_SCHEMA, '{"properties":{"price":{"multipleOf":0.01},"five":{"multipleOf":5}}}'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_only_looks_hostile_is_taken(kind, source):
    check(kind, source)


def test_options_of_the_library_do_not_come_from_a_request():
    assert limits.check_schema('{"x-guidance":{"lenient":true},"type":"object"}') == {"type": "object"}
    lark = limits.check_lark('start: %json {"x-guidance":{"lenient":true},"type":"object"} "x"\n')
    assert lark == 'start: %json {"type": "object"} "x"\n'


def test_properties_keep_their_order():
    assert list(limits.check_schema('{"properties":{"b":{},"a":{}}}')["properties"]) == ["b", "a"]


_PIECES = st.lists(
    st.sampled_from(["(", ")", "[", "]", "{", "}", '"', "/", "\\", "#", "9", ",", "%json", "a", "\n", ":", "*", "|"])
)


@given(st.sampled_from(GrammarKind), st.one_of(st.text(max_size=200), _PIECES.map("".join), _PIECES.map(json.dumps)))
def test_any_text_is_taken_or_refused_and_nothing_else(kind, source):
    with contextlib.suppress(InvalidGrammar):
        check(kind, source)
