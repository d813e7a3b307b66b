"""What requests may say of adapters, and what a worker is told of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.adapters import MAX_ADAPTERS, by_digest, check_name, check_uses
from service.domain.catalog import Adapter, AdapterFacts
from service.domain.errors import InvalidName, InvalidParameter
from service.domain.generation import AdapterUse
from service.domain.names import ModelKey

FACTS = AdapterFacts("llama", 4, 8.0, 2, 100)


def adapter(name: str, content: int) -> Adapter:
    key = ModelKey("registry.ollama.ai", "library", "gloss")
    return Adapter(key, name, f"sha256:{content:064x}", 1, FACTS, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("name", ["tone", "A", "_", "a.b-c_d", "9" * 80])
def test_names_are_words(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "-a", "a/b", "a b", "ä", "a" * 81, "a\n", "../x", "a:1"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize(
    "uses",
    [
        [AdapterUse(str(number)) for number in range(MAX_ADAPTERS + 1)],
        [AdapterUse("a", math.nan)],
        [AdapterUse("a", math.inf)],
        [AdapterUse("a", 100.5)],
    ],
    ids=["too many", "no number", "infinite", "too much"],
)
def test_what_no_request_may_ask_is_refused(uses: list[AdapterUse]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check_uses(uses)
    assert refused.value.param == "adapters"


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])))
def test_a_worker_is_told_each_file_once_with_the_sum_of_its_scales(scales: dict[str, float]) -> None:
    uses = [AdapterUse(name, scale) for name, scale in scales.items()]
    check_uses(uses)
    found = {name: adapter(name, ord(name) // 2) for name in scales}  # two names of each file
    told, needed = by_digest(uses, found)
    expected: dict[str, float] = {}
    for name, scale in scales.items():
        expected[found[name].digest] = expected.get(found[name].digest, 0.0) + scale
    assert {use.name: use.scale for use in told} == {digest: scale for digest, scale in expected.items() if scale}
    assert [one.digest for one in needed] == [use.name for use in told]
