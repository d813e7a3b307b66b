"""Promises of the frontier: nothing on it is beaten, everything else is, and only like is compared with like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.domain.evaluation import Card, Divergence, Estimate, TextFigures
from service.domain.frontier import (
    Point,
    Yardstick,
    common_yardstick,
    judge,
    measured_by,
    pareto_front,
    yardstick,
)

NOUGHT = Estimate(0.0, 0.0)


def point(name: str, size_bytes: int, kld: float) -> Point:
    return Point(name, name, size_bytes, 4.0, Estimate(kld, 0.0))


def card(kld: float = 0.1, *, base: str = "b", text: str = "t", chunks: int = 10, at: str = "1") -> Card:
    estimate = Estimate(kld, 0.0)
    divergence = Divergence(
        "m:F16", base, NOUGHT, NOUGHT, estimate, 0.0, 0.0, 0.0, 0.0, 0.0, NOUGHT, NOUGHT, Estimate(1.0, 0.0)
    )
    figures = TextFigures("evaluation", text, 512, chunks, 256 * chunks, Estimate(9.0, 0.1), divergence)
    return Card("a machine", "b1", 1.0, figures, created_at=at)


# Few values, so that equal sizes and equal losses come up.
POINTS = st.lists(
    st.builds(
        lambda name, size, kld: point(str(name), size, kld / 8), st.integers(), st.integers(1, 9), st.integers(0, 9)
    ),
    max_size=12,
)


def beats(one: Point, other: Point) -> bool:
    figures, others = (one.size_bytes, one.mean_kld.value), (other.size_bytes, other.mean_kld.value)
    return figures != others and all(left <= right for left, right in zip(figures, others, strict=True))


@given(POINTS)
def test_a_point_is_on_the_front_exactly_when_nothing_beats_it(points: list[Point]) -> None:
    judged = judge(points)
    assert sorted(map(repr, points)) == sorted(repr(one.point) for one in judged)
    for one in judged:
        assert one.on_front == (not any(beats(other, one.point) for other in points))


@given(POINTS)
def test_what_dominates_a_point_beats_it_is_on_the_front_and_loses_least_of_those(points: list[Point]) -> None:
    judged = judge(points)
    front = [one.point for one in judged if one.on_front]
    for one in judged:
        if one.dominated_by is not None:
            assert beats(one.dominated_by, one.point)
            assert one.dominated_by in front
            assert one.dominated_by.mean_kld.value == min(p.mean_kld.value for p in points if beats(p, one.point))


@given(POINTS)
def test_points_come_smallest_first_and_the_front_falls(points: list[Point]) -> None:
    judged = judge(points)
    sizes = [one.point.size_bytes for one in judged]
    losses = [one.point.mean_kld.value for one in judged if one.on_front]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)


def test_equal_points_are_all_on_the_front() -> None:
    twins = [point("a", 5, 0.1), point("b", 5, 0.1)]
    assert pareto_front(twins, lambda p: p.size_bytes, lambda p: p.mean_kld.value) == twins
    assert all(one.on_front for one in judge(twins))


def test_a_published_pair_is_judged_as_everyone_knows_it() -> None:
    judged = {one.point.name: one for one in judge([point("Q4_0", 3640, 0.0141), point("Q4_K_S", 3620, 0.0075)])}
    assert judged["Q4_K_S"].on_front
    assert judged["Q4_0"].dominated_by == judged["Q4_K_S"].point


def test_a_card_without_divergence_has_no_yardstick() -> None:
    assert yardstick(None) is None
    assert yardstick(Card("m", "b", 1.0)) is None
    assert yardstick(card(base="x", chunks=3)) == Yardstick("x", "t", 512, 3)


def test_the_yardstick_is_that_of_most_variants_and_of_the_latest_among_equals() -> None:
    many = [[card(text="one")], [card(text="one"), card(text="two")], [card(text="two")], [card(text="two")]]
    assert common_yardstick(many) == Yardstick("b", "two", 512, 10)
    equals = [[card(text="old", at="1")], [card(text="new", at="2")]]
    assert common_yardstick(equals) == Yardstick("b", "new", 512, 10)
    assert common_yardstick([[Card("m", "b", 1.0)]]) is None


def test_many_runs_on_one_variant_count_once() -> None:
    runs = [[card(text="one", at=str(at)) for at in range(9)], [card(text="two")], [card(text="two")]]
    assert common_yardstick(runs) == Yardstick("b", "two", 512, 10)


def test_only_figures_against_the_base_asked_for_count() -> None:
    runs = [[card(base="other")], [card(base="other")], [card(base="mine")]]
    assert common_yardstick(runs, "mine") == Yardstick("mine", "t", 512, 10)
    assert common_yardstick(runs, "none") is None


def test_the_newest_comparable_run_counts_and_one_that_is_no_number_does_not() -> None:
    stick = Yardstick("b", "t", 512, 10)
    newest = card(0.3, at="3")
    assert measured_by(stick, [card(0.1, at="1"), newest, card(0.2, at="4", chunks=2)]) == newest
    assert measured_by(stick, [card(float("nan"))]) is None
    assert measured_by(None, [newest]) is None
