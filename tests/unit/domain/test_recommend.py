"""Promises of the recommendation: it fits, it keeps to what was asked, and it says where its figures come from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.memory import MemoryNeed
from service.domain.quants import QUANTIZATIONS
from service.domain.recommend import (
    ENOUGH_KLD,
    Basis,
    Bounds,
    Candidate,
    Hindrance,
    Loss,
    Pace,
    Reason,
    expected_loss,
    expected_pace,
    recommend,
    reference_kld,
    sensitivity,
    stored_choice,
)

GIB = 1 << 30


def level(
    label: str, gib: float, kld: float | None = None, speed: float | None = None, *, stored: bool = True
) -> Candidate:
    size = int(gib * GIB)
    return Candidate(
        name=f"m:{label}",
        quantization=label,
        stored=stored,
        size_bytes=size,
        bits_per_weight=4.0,
        need=MemoryNeed(size, 0, 0, 0),
        largest_context=0,
        loss=None if kld is None else Loss(kld, Basis.MEASURED, 0.0),
        pace=None if speed is None else Pace(speed, Basis.MEASURED),
    )


def published(*labels: str) -> list[Candidate]:
    """Levels of a 7B model, nothing measured."""
    found = []
    for label in labels:
        reference = QUANTIZATIONS[label].reference
        assert reference is not None
        loss = expected_loss(label, None)
        assert loss is not None
        found.append(level(label, reference.size_gib, loss.kld, stored=False))
    return found


SEVEN_B = published(
    "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_L", "Q3_K_M", "Q2_K"
)

CANDIDATES = st.lists(
    st.builds(
        level,
        st.sampled_from(list(QUANTIZATIONS)),
        st.integers(1, 40).map(lambda tenths: tenths / 10),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(1, 100),
        stored=st.booleans(),
    ),
    max_size=12,
)
BOUNDS = st.builds(
    Bounds,
    st.integers(GIB // 10, 5 * GIB),
    st.just(4096),
    st.none() | st.floats(0.001, 1),
    st.none() | st.floats(1, 100),
)


@given(CANDIDATES, BOUNDS)
def test_what_is_recommended_fits_and_keeps_to_every_bound_that_was_asked(
    candidates: list[Candidate], bounds: Bounds
) -> None:
    found = recommend(candidates, bounds)
    for chosen in (found.choice, found.runner_up):
        if chosen is None:
            continue
        assert chosen.need.total_bytes <= bounds.memory_bytes
        if bounds.max_kld is not None:
            assert chosen.loss is not None
            assert chosen.loss.kld <= bounds.max_kld
        if bounds.min_speed is not None and chosen.pace is not None:
            assert chosen.pace.tokens_per_second >= bounds.min_speed


@given(CANDIDATES, BOUNDS)
def test_nothing_smaller_would_do(candidates: list[Candidate], bounds: Bounds) -> None:
    found = recommend(candidates, bounds)
    good = [one.candidate for one in found.considered if not one.hindrances]
    if good:
        assert found.choice is not None
        assert found.reason is Reason.LITTLE_LOSS
        assert found.choice.need.total_bytes == min(one.need.total_bytes for one in good)


@given(CANDIDATES, BOUNDS)
def test_there_is_a_choice_or_a_reason_why_not(candidates: list[Candidate], bounds: Bounds) -> None:
    found = recommend(candidates, bounds)
    with_choice = {Reason.LITTLE_LOSS, Reason.LEAST_LOSS, Reason.USUAL}
    assert (found.choice is not None) == (found.reason in with_choice)
    assert len(found.considered) == len(candidates)
    assert found.runner_up is None or found.runner_up is not found.choice


@given(CANDIDATES, BOUNDS)
def test_the_next_level_up_loses_less_and_is_the_smallest_that_does(
    candidates: list[Candidate], bounds: Bounds
) -> None:
    found = recommend(candidates, bounds)
    if found.choice is None or found.choice.loss is None:
        return
    less = [one for one in candidates if one.loss is not None and one.loss.kld < found.choice.loss.kld]
    if not less:
        assert found.next_up is None
    else:
        assert found.next_up is not None
        assert found.next_up.need.total_bytes == min(one.need.total_bytes for one in less)


@given(CANDIDATES, BOUNDS)
def test_more_memory_never_loses_more(candidates: list[Candidate], bounds: Bounds) -> None:
    before, after = recommend(candidates, bounds), recommend(candidates, _with_memory(bounds, 2 * bounds.memory_bytes))
    if before.reason is Reason.LITTLE_LOSS:
        assert after.choice == before.choice
    if before.choice is not None and before.choice.loss is not None:
        assert after.choice is not None
        assert after.choice.loss is not None
        assert after.choice.loss.kld <= max(bounds.kld, before.choice.loss.kld)


def _with_memory(bounds: Bounds, memory_bytes: int) -> Bounds:
    return Bounds(memory_bytes, bounds.context, bounds.max_kld, bounds.min_speed)


@pytest.mark.parametrize(
    ("memory_gib", "expected"), [(64, "Q4_K_M"), (3.7, "Q4_K_S"), (3.4, "Q3_K_L"), (2.7, "Q2_K"), (1, None)]
)
def test_a_7b_model_with_nothing_measured_gets_what_is_generally_advised(
    memory_gib: float, expected: str | None
) -> None:
    found = recommend(SEVEN_B, Bounds(int(memory_gib * GIB), 4096))
    assert (found.choice.quantization if found.choice else None) == expected


def test_the_runner_up_and_the_next_level_up_of_a_7b_model() -> None:
    found = recommend(SEVEN_B, Bounds(int(4.2 * GIB), 4096))
    assert found.choice is not None
    assert found.choice.quantization == "Q4_K_M"
    assert found.runner_up is not None
    assert found.runner_up.quantization == "Q4_K_S"
    assert found.next_up is not None
    assert found.next_up.quantization == "Q5_K_S"  # 4.33 GiB: it does not fit, and that is what is said


def test_the_runner_up_is_not_what_the_choice_beats() -> None:
    levels = [level("Q5_K_M", 4.4, 0.003), level("Q5_0", 4.3, 0.0045), level("Q5_K_S", 4.3, 0.004)]
    found = recommend(levels, Bounds(8 * GIB, 4096, max_kld=0.005))
    assert (found.choice, found.runner_up) == (levels[2], levels[0])
    beaten = recommend(levels[1:], Bounds(8 * GIB, 4096, max_kld=0.005))
    assert beaten.runner_up == levels[1]


def test_measured_figures_overrule_what_is_generally_advised() -> None:
    sensitive = [level("Q6_K", 5.15, 0.004), level("Q5_K_M", 4.45, 0.009), level("Q4_K_M", 3.8, 0.05)]
    found = recommend(sensitive, Bounds(64 * GIB, 4096))
    assert found.choice is not None
    assert found.choice.quantization == "Q5_K_M"


def test_a_bound_that_was_asked_is_kept_to_and_an_assumed_one_is_let_go() -> None:
    lossy = [level("Q3_K_M", 3, 0.2), level("Q2_K", 2.5, 0.4)]
    assumed = recommend(lossy, Bounds(4 * GIB, 4096))
    assert (assumed.choice, assumed.reason) == (lossy[0], Reason.LEAST_LOSS)
    asked = recommend(lossy, Bounds(4 * GIB, 4096, max_kld=ENOUGH_KLD))
    assert (asked.choice, asked.reason) == (None, Reason.TOO_LOSSY)


def test_without_a_choice_the_next_up_is_what_more_memory_would_buy() -> None:
    found = recommend([level("Q8_0", 8, 0.001), level("Q2_K", 2, 0.4)], Bounds(4 * GIB, 4096, max_kld=0.01))
    assert found.choice is None
    assert found.next_up is not None
    assert found.next_up.quantization == "Q8_0"


def test_a_level_that_is_too_slow_is_not_recommended() -> None:
    levels = [level("Q8_0", 8, 0.001, 10.0), level("Q4_K_M", 4, 0.009, 20.0)]
    assert recommend(levels, Bounds(64 * GIB, 4096, min_speed=15)).choice == levels[1]
    found = recommend(levels, Bounds(64 * GIB, 4096, min_speed=30))
    assert (found.choice, found.reason) == (None, Reason.TOO_SLOW)
    assert all(Hindrance.SPEED in one.hindrances for one in found.considered)


def test_levels_for_specially_trained_models_are_no_way_out_unless_they_are_what_is_stored() -> None:
    tiny = Bounds(GIB, 4096)
    assert recommend([level("Q1_0", 0.5, stored=False)], tiny).choice is None
    unknown = [level("Q1_0", 0.5, stored=False), level("IQ2_M", 0.9, stored=False)]
    found = recommend(unknown, tiny)
    assert (found.choice, found.reason) == (unknown[1], Reason.USUAL)
    assert recommend([level("TQ2_0", 0.5)], tiny).choice is not None


def test_a_stored_level_comes_before_an_equal_one_that_must_be_made() -> None:
    levels = [level("Q4_K_M", 4, 0.005, stored=False), level("Q4_K_M", 4, 0.005)]
    assert recommend(levels, Bounds(8 * GIB, 4096)).choice is levels[1]


def test_published_figures_rank_the_levels_as_published() -> None:
    by_loss = sorted(SEVEN_B, key=lambda one: one.loss.kld if one.loss else 0)
    assert [one.quantization for one in by_loss][:4] == ["F16", "Q8_0", "Q6_K", "Q5_K_M"]
    assert by_loss[-1].quantization == "Q2_K"
    assert reference_kld("Q4_K_M") == pytest.approx(math.log((5.9066 + 0.0535) / 5.9066))
    assert reference_kld("BF16") == 0
    assert reference_kld("IQ4_XS") is None
    assert reference_kld("no such level") is None


def test_a_model_that_loses_more_where_it_was_measured_is_expected_to_lose_more_elsewhere() -> None:
    usual, twice = reference_kld("Q4_K_M"), reference_kld("Q3_K_M")
    assert usual is not None
    assert twice is not None
    factor = sensitivity({"Q4_K_M": 4 * usual, "Q3_K_M": twice, "IQ4_XS": 9.0, "F16": 0.0})
    assert factor == pytest.approx(2.0)
    loss = expected_loss("Q5_K_M", factor)
    assert loss is not None
    assert loss.basis is Basis.REFERENCE
    assert loss.kld == pytest.approx(2 * (reference_kld("Q5_K_M") or 0))
    assert sensitivity({"IQ4_XS": 1.0, "Q8_0": 1e-9}) is None
    assert expected_loss("IQ4_XS", factor) is None


def test_an_unmeasured_speed_follows_from_the_nearest_measured_file() -> None:
    measured = [(8 * GIB, 10.0), (4 * GIB, 22.0)]
    pace = expected_pace(2 * GIB, measured)
    assert pace == Pace(44.0, Basis.ESTIMATED)
    assert expected_pace(2 * GIB, []) is None


# --- what to answer with now -------------------------------------------------------------------------------------


def now(*candidates: Candidate, loaded: str = "", gib: float = 16.0) -> str | None:
    """The label of `stored_choice`, with the levels named in `loaded` in memory."""
    here = [replace(candidate, loaded=candidate.quantization in loaded.split()) for candidate in candidates]
    choice = stored_choice(here, Bounds(int(gib * GIB), 4096))
    return None if choice is None else choice.quantization


F16, Q6, Q5, Q4, Q3 = (
    level("F16", 14.0, 0.0),
    level("Q6_K", 5.5, 0.0005),
    level("Q5_K_M", 4.8, 0.002),
    level("Q4_K_M", 4.1, 0.009),
    level("Q3_K_M", 3.3, 0.012),
)


def test_now_only_what_is_stored_is_chosen() -> None:
    assert now(F16, Q6, Q4) == "Q4_K_M"
    assert now(F16, Q6, replace(Q4, stored=False)) == "Q6_K"
    assert now(replace(Q4, stored=False)) is None


def test_now_a_loaded_level_wins_a_near_tie_and_no_other() -> None:
    assert now(F16, Q6, Q5, Q4, loaded="Q5_K_M") == "Q5_K_M"  # a sixth larger
    assert now(F16, Q6, Q5, Q4, loaded="Q6_K") == "Q4_K_M"  # a third larger: that much slower
    assert now(F16, Q6, Q4, Q3, loaded="Q3_K_M") == "Q3_K_M"  # hardly worse than what is enough
    assert now(F16, Q4, level("Q2_K", 2.8, 0.1), loaded="Q2_K") == "Q4_K_M"  # much worse
    assert now(F16, Q5, Q4, loaded="Q4_K_M Q5_K_M") == "Q4_K_M"


def test_now_what_is_loaded_fits_and_what_is_too_large_is_not_taken() -> None:
    assert now(F16, Q6, Q4, gib=3.0, loaded="Q4_K_M") == "Q4_K_M"
    assert now(F16, Q6, replace(Q4, stored=False), Q3, gib=4.0) == "Q3_K_M"


def test_now_the_smallest_is_named_where_nothing_fits() -> None:
    assert now(F16, Q6, Q4, gib=1.0) == "Q4_K_M"


def test_now_levels_of_unknown_loss_are_held_to_the_usual_one() -> None:
    odd = [level("Q4_K_M", 4.0), level("Q4_K_S", 3.8), level("Q2_K", 2.5)]
    assert now(*odd) == "Q4_K_M"
    assert now(*odd, loaded="Q4_K_S") == "Q4_K_S"
    assert now(*odd, loaded="Q2_K") == "Q4_K_M"


@given(CANDIDATES, BOUNDS)
def test_now_there_is_always_one_of_the_stored_and_nothing_loaded_changes_what_is_recommended(
    candidates: list[Candidate], bounds: Bounds
) -> None:
    stored = [candidate for candidate in candidates if candidate.stored]
    choice = stored_choice(candidates, bounds)
    assert (choice is None) == (not stored)
    recommended = recommend(stored, bounds).choice
    if recommended is not None:
        assert choice == recommended
