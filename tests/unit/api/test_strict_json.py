"""What counts as JSON, and how a number that is none is told: by the field it stands in."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.strict_json import MAX_JSON_DEPTH, check_json
from service.domain.errors import InvalidParameter, InvalidRequest, MalformedBody

NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000)
BODIES = {
    "/v1/generate": {"model": "gloss", "prompt": "x"},
    "/v1/quantize": {"model": "gloss:F16", "to": ["Q4_K_M"]},
    "/v1/chat/completions": {"model": "gloss", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "gloss", "prompt": "x"},
}


def is_number(schema) -> bool:
    return schema.get("type") in ("number", "integer") or any(is_number(member) for member in schema.get("anyOf", ()))


def numeric_fields(document, path) -> list[str]:
    """Every field of a route's body that takes a number, from the document the server itself publishes."""
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    shape = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    return [name for name, schema in shape["properties"].items() if is_number(schema)]


async def refusal(client, path, members: str):
    body = json.dumps(BODIES[path])[:-1] + f", {members}" + "}"
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:10])
@pytest.mark.parametrize("path", BODIES)
async def test_a_number_that_is_none_is_a_400_with_its_field(client, api, path, number):
    fields = numeric_fields(api.app.openapi(), path)
    assert len(fields) >= {"/v1/quantize": 1}.get(path, 11)
    for field in fields:
        status, error = await refusal(client, path, f'"{field}": {number}')
        assert (status, error["code"], error["param"]) == (400, "invalid_parameter", field)
        assert len(error["message"]) < 200
    assert api.pool.submitted == []


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:10])
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/quantize"])
async def test_a_bias_that_is_no_number_is_a_400_with_its_token(client, path, number):
    status, error = await refusal(client, path, f'"logit_bias": {{"5": 1, "7": {number}}}')
    assert (status, error["code"], error["param"]) == (400, "invalid_parameter", "logit_bias.7")


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:10])
async def test_it_is_told_for_unknown_and_nested_fields_too(client, number):
    status, error = await refusal(client, "/v1/chat/completions", f'"metadata": {{"a": [0, {number}]}}')
    assert (status, error["code"], error["param"]) == (400, "invalid_parameter", "metadata.a[1]")


@pytest.mark.parametrize("number", ["9" * 400, "1" + "0" * 308, "-" + "9" * 300, "1e308"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_number_far_out_of_its_range_is_told_the_same_way(client, api, path, number):
    for field in numeric_fields(api.app.openapi(), path):
        status, error = await refusal(client, path, f'"{field}": {number}')
        assert (status, error["code"], error["param"]) == (400, "invalid_parameter", field)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"a": NaN}', "a"),
        (b'{"a": [1, {"b": -Infinity}]}', "a[1].b"),
        (b'{"a": 1, "b": 1e999999999, "c": NaN}', "b"),
        (b"[0, Infinity]", "[1]"),
    ],
)
def test_the_first_number_at_fault_is_named(body, param):
    with pytest.raises(InvalidParameter) as refused:
        check_json(body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "body",
    [b"NaN", b'{"a": NaN', b'{"a": NaNNaN}', b'{"a": 1NaN}', b'{"a": -NaN}', b'{"a": nan}', b'{"a": inf}', b'{NaN: 1}',
     b'{"a": NaN, "b": "\xff"}'],
)  # fmt: skip
def test_what_is_no_json_beside_its_numbers_is_malformed(body):
    with pytest.raises(MalformedBody):
        check_json(body)


@pytest.mark.parametrize("text", ["NaN", "1e400", '\\"NaN', "Infinity"])
def test_words_in_strings_are_words(text):
    check_json(json.dumps({text: text, "a": [text]}).encode())


def test_the_depth_is_counted_before_numbers_are_looked_for():
    with pytest.raises(MalformedBody, match="deeper"):
        check_json(b"[" * 100_000 + b"NaN" + b"]" * 100_000)


def test_depth_is_counted_outside_strings_only():
    check_json(json.dumps({"a": "[" * 1000 + '\\"' + "{" * 1000}).encode())
    check_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH)
    with pytest.raises(MalformedBody):
        check_json(b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1))


@pytest.mark.parametrize(
    ("before", "unit", "after"),
    [
        *((b"", unit, b"") for unit in (b"[]", b'\\"', b'"\\', b'""', b"[", b'"', b"\\", b"{}", b",", b'"[', b"\x80")),
        (b"[", b"NaN,", b"1]"),
        (b"[", b"1e400,", b"1]"),
        (b"[", b"9", b"]"),
        (b"[0.", b"9", b"e400]"),
        (b"[", b'{"":1},', b"NaN]"),
        (b'["', b"\\n", b'",NaN]'),
        (b"[", b"NaN,", b"]"),
    ],
)
def test_no_body_takes_long_to_check(before, unit, after):
    body = before + unit * ((2 << 20) // len(unit)) + after
    started = time.perf_counter()
    with pytest.raises(InvalidRequest):
        check_json(body)
    # Quadratic work on two megabytes would take hours.
    assert time.perf_counter() - started < 5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


def _depth(value) -> int:
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 0


@given(json_values, st.booleans())
def test_whatever_json_writes_is_accepted_up_to_the_depth(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if _depth(value) <= MAX_JSON_DEPTH:
        check_json(body)
    else:
        with pytest.raises(MalformedBody):
            check_json(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_json_or_malformed(body):
    try:
        check_json(body)
    except InvalidRequest:
        return
    json.loads(body)
