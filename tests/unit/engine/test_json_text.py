"""Promises of JSON in pieces: valid text comes through as it is, almost valid text is mended, whatever the cuts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.json_text import JsonText

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(text: str, size: int = 1000) -> tuple[str, JsonText, int]:
    value, found, consumed = JsonText(), "", 0
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        taken = value.feed(piece, 0)
        found += value.take()
        consumed += taken
        if taken < len(piece):
            break
    return found, value, consumed


@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 7), st.sampled_from(["x", " ,", "}", "]"]))
def test_json_comes_through_and_ends_where_it_ends(value, indent, is_ascii, size, after) -> None:
    text = json.dumps([value], indent=indent, ensure_ascii=is_ascii)
    found, reader, consumed = read(text + after, size)
    assert (found, reader.is_complete, consumed) == (text, True, len(text))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"a": "one\ntwo\t"}', {"a": "one\ntwo\t"}),
        (r'{"a": "\$x \alpha \u12"}', {"a": r"\$x \alpha \u12"}),
        ('{"a": [1, 2, ], }', {"a": [1, 2]}),
        ('{"a": True, "b": None}', {"a": True, "b": None}),
    ],
)
def test_what_can_mean_nothing_else_is_mended(text: str, meant: object) -> None:
    for size in (1, 1000):
        found, reader, _ = read(text, size)
        assert reader.is_complete
        assert json.loads(found) == meant


@pytest.mark.parametrize(
    "text", ["{a: 1}", "{'a': 1}", '{"a" 1}', "[1 2]", "[1}", "{,}", "[tru]", "[01]", "[" * 200, "}"]
)
def test_what_is_wrong_ends_the_value_and_nothing_of_it_is_lost(text: str) -> None:
    found, reader, consumed = read(text)
    assert reader.is_bad
    assert found + reader.rest + text[consumed:] == text
