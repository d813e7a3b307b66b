"""Promises of the table of levels: complete, consistent, found by every spelling people use."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import UnknownQuantization
from service.domain.quants import (
    ALIASES,
    BY_FILE_TYPE,
    GGML_TYPES,
    PREFERENCE,
    QUANTIZATIONS,
    UNQUANTIZED_TYPES,
    Family,
    find_label,
    parse_label,
    preference,
)

# The published table for one 7B model: label, GiB, perplexity added to F16.
PUBLISHED = {
    "F32": (26.00, None),
    "F16": (13.00, 0.0),
    "Q8_0": (6.70, 0.0004),
    "Q6_K": (5.15, 0.0044),
    "Q5_K_M": (4.45, 0.0142),
    "Q5_K_S": (4.33, 0.0353),
    "Q5_1": (4.70, 0.0415),
    "Q5_0": (4.30, 0.0796),
    "Q4_K_M": (3.80, 0.0535),
    "Q4_K_S": (3.56, 0.1149),
    "Q4_1": (3.90, 0.1846),
    "Q3_K_L": (3.35, 0.1803),
    "Q4_0": (3.50, 0.2499),
    "Q3_K_M": (3.06, 0.2437),
    "Q3_K_S": (2.75, 0.5505),
    "Q2_K": (2.67, 0.8698),
}


def test_there_are_35_levels_each_with_its_own_file_type() -> None:
    assert len(QUANTIZATIONS) == 35
    assert len(BY_FILE_TYPE) == 35
    for label, level in QUANTIZATIONS.items():
        assert level.label == label
        assert level.advice
        assert level.base_type in {ggml.name for ggml in GGML_TYPES.values()}


def test_reference_figures_are_the_published_ones_and_no_others() -> None:
    found = {label: level.reference for label, level in QUANTIZATIONS.items() if level.reference is not None}
    assert {label: (r.size_gib, r.perplexity_added) for label, r in found.items()} == PUBLISHED


def test_the_recommended_levels_are_the_published_ones() -> None:
    assert {label for label, level in QUANTIZATIONS.items() if level.recommended} == {"Q4_K_M", "Q5_K_M", "Q5_K_S"}


def test_nominal_bits_are_those_of_the_main_type_or_of_the_published_mix() -> None:
    bits = {ggml.name: ggml.block_bytes * 8 / ggml.block_weights for ggml in GGML_TYPES.values()}
    mixes = {"IQ3_M", "IQ3_XS", "IQ2_M", "IQ2_S"}
    for label, level in QUANTIZATIONS.items():
        if label in mixes:
            assert abs(level.bits_per_weight - bits[level.base_type]) < 0.25
        else:
            assert level.bits_per_weight == bits[level.base_type], label


def test_the_table_runs_from_large_to_small() -> None:
    bits = [level.bits_per_weight for level in QUANTIZATIONS.values()]
    # Within a hand's breadth: nominal bits of neighbours cross where mixes are named by their main type.
    assert all(earlier + 0.25 >= later for earlier, later in itertools.pairwise(bits))
    assert next(iter(QUANTIZATIONS)) == "F32"
    assert list(QUANTIZATIONS)[-1] == "Q1_0"


def test_families_hold_together() -> None:
    for label, level in QUANTIZATIONS.items():
        assert (level.family is Family.FLOAT) == (level.base_type in UNQUANTIZED_TYPES)
        assert (level.family is Family.K_QUANT) == ("_K" in label)
        assert (level.family is Family.I_QUANT) == label.startswith("IQ")


def test_the_preference_ranks_every_level_once() -> None:
    assert sorted(PREFERENCE) == sorted(QUANTIZATIONS)
    assert preference("Q4_K_M") == 0
    assert preference("UNKNOWN") > preference("Q1_0")


@pytest.mark.parametrize(("text", "label"), [("Q4_K", "Q4_K_M"), ("q3_k", "Q3_K_M"), ("q5_K", "Q5_K_M")])
def test_aliases_name_the_medium_mix(text: str, label: str) -> None:
    assert find_label(text) == label


def test_aliases_shadow_no_level() -> None:
    assert not ALIASES.keys() & QUANTIZATIONS.keys()
    assert set(ALIASES.values()) <= QUANTIZATIONS.keys()


@given(st.sampled_from(sorted({*QUANTIZATIONS, *ALIASES})), st.data())
def test_labels_are_found_in_any_case(label: str, data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(label), max_size=len(label)))
    spelled = "".join(c.upper() if up else c.lower() for c, up in zip(label, upper, strict=True))
    assert find_label(spelled) == ALIASES.get(label, label)


@given(st.text(max_size=60))
def test_anything_else_is_refused_with_the_list_of_levels(text: str) -> None:
    if find_label(text) is not None:
        assert text.isascii()
        return
    with pytest.raises(UnknownQuantization) as caught:
        parse_label(text, param="to")
    assert caught.value.param == "to"
    assert "Q4_K_M" in caught.value.message
    assert "Q4_K = Q4_K_M" in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "text", ["", "Q4", "Q4_K_M ", " Q4_K_M", "Q4-K-M", "Q4_K_XL", "latest", "q4_k_m\n", "F64", "Q8_K", "Q4_K_\u017f"]
)
def test_near_misses_are_no_labels(text: str) -> None:
    assert find_label(text) is None
