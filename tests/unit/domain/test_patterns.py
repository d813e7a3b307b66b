"""Promises of the patterns of tensor names: what is let through is bounded and means the same to every engine."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.patterns import MAX_COST, PatternError, exactly, pattern_cost

NAME = "blk.12.ffn_down_exps.weight"


@pytest.mark.parametrize(
    ("pattern", "cost"),
    [
        ("ffn_down", 1),
        (r"^blk\.12\.", 1),
        (r"^blk\.(0|1|2)\.attn_(q|k)\.weight$", 6),
        (r"blk\.\d+\.ffn", 64),
        (r"blk\.[0-9]{1,2}\.ffn_.*", 2 * 64),
        (r"blk\.1?[02]\.", 2),
        (r"(?:attn_)?output", 2),
        (r"[^a-f]_k", 1),
        (r"a.*?b", 64),
        (r"ffn_(up|down)?\.weight", 3),
        ("a|b|", 3),
        (r"x{3}", 1),
        (r"x{3,}", 62),
    ],
)
def test_a_pattern_costs_the_ways_it_can_match(pattern: str, cost: int) -> None:
    assert pattern_cost(pattern) == cost
    re.compile(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "", "x" * 257, "(a", "a)", "(a+)+", "(a|b)*", "(a){2}", "a**", "a+?+", "a???",
        "*a", "^*", "$?", "a{b", "a{3,1}", "a{99}",
        "[a", "[]", "[^]", "[z-a]", "[a--b]", "[a&&b]", "[[:alpha:]]", r"\b",
        r"\1", r"(?=a)", r"(?i)a", r"(?P<n>a)", "ä", "a\nb", "a\\",
        "(" * 20 + "a" + ")" * 20, "(a)?*", "a}b",
    ],
)  # fmt: skip
def test_what_could_run_away_or_differ_between_engines_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        pattern_cost(pattern)


@given(st.text(alphabet="ab.*+?|()[]{}0129,^$\\d-", max_size=20))
def test_every_text_is_refused_or_compiles_without_a_warning(text: str) -> None:
    try:
        cost = pattern_cost(text)
    except PatternError:
        return
    assert cost >= 1
    re.compile(text).search(NAME)


@settings(deadline=None)  # the test measures by itself
@given(st.lists(st.sampled_from(["a*", "a+", "a?", ".*", "(a|a)", "a", "(a|aa)?", "a{1,9}"]), min_size=1, max_size=12))
def test_what_the_limit_lets_through_ends_soon(parts: list[str]) -> None:
    pattern = "".join(parts) + "x"
    if pattern_cost(pattern) > MAX_COST:
        return
    started = time.process_time()
    assert re.search(pattern, "a" * 63) is None
    assert time.process_time() - started < 5


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_categories=["C"]), min_size=1, max_size=30))
def test_a_name_can_be_found_exactly(name: str) -> None:
    assert re.search(exactly(name), name)
    assert not re.search(exactly(name), name + "x")
    assert not re.search(exactly(name), "x" + name)
