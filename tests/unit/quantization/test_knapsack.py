"""The knapsack against trying everything, and what its bound promises."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from service.quantization import knapsack
from service.quantization.knapsack import Choice, Items, Mix, fastest, least_loss, least_size, smallest

_choices = st.builds(
    Choice,
    size=st.integers(1, 40).map(lambda blocks: 32 * blocks),
    loss=st.floats(0, 1, allow_subnormal=False),
    seconds=st.floats(0, 1, allow_subnormal=False),
)
_items = st.lists(st.lists(_choices, min_size=1, max_size=4), min_size=1, max_size=5)


def _all(items: Items) -> list[Mix]:
    every = itertools.product(*(range(len(item)) for item in items))
    return [knapsack._mix(items, picks, 0.0) for picks in every]


@given(items=_items, share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_no_mix_within_the_bytes_loses_less(items: Items, share: float) -> None:
    largest = sum(max(choice.size for choice in item) for item in items)
    budget = smallest(items) + int(share * (largest - smallest(items)))
    found = least_loss(items, budget)
    best = min(mix.loss for mix in _all(items) if mix.size <= budget)
    assert found is not None
    assert found.size <= budget
    assert math.isclose(found.loss, best, rel_tol=1e-9, abs_tol=1e-12)
    assert found.bound <= found.loss


@given(items=_items, bytes_share=st.floats(0, 1), seconds_share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_both_budgets_are_kept_and_the_bound_holds(items: Items, bytes_share: float, seconds_share: float) -> None:
    every = _all(items)
    budget = smallest(items) + int(bytes_share * (max(mix.size for mix in every) - smallest(items)))
    seconds = seconds_share * max(mix.seconds for mix in every)
    possible = [mix for mix in every if mix.size <= budget and mix.seconds <= seconds]
    found = least_loss(items, budget, seconds)
    if found is None:
        # Sums of seconds in another order may differ by a rounding error.
        assert not [mix for mix in possible if mix.seconds < seconds * (1 - 1e-9)]
        return
    assert found.size <= budget
    assert found.seconds <= seconds * (1 + 1e-9)
    best = min(mix.loss for mix in possible or [found])
    assert found.bound <= best + 1e-6
    assert best <= found.loss + 1e-12


@given(items=_items, share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_no_mix_of_so_little_loss_is_smaller(items: Items, share: float) -> None:
    every = _all(items)
    limit = share * max(mix.loss for mix in every)
    found = least_size(items, limit)
    possible = [mix for mix in every if mix.loss <= limit]
    assert (found is None) == (not possible)
    if found is not None:
        assert found.loss <= limit
        assert found.size == min(mix.size for mix in possible)


def test_a_budget_below_the_smallest_mix_has_no_solution() -> None:
    items = [[Choice(64, 0.5), Choice(32, 1.0)], [Choice(96, 0.1)]]
    assert smallest(items) == 128
    assert least_loss(items, 127) is None
    assert fastest(items, 127) is None
    found = least_loss(items, 128)
    assert found is not None
    assert found.picks == (1, 0)


def test_sizes_without_a_common_unit_are_rounded_and_the_bound_says_how_near() -> None:
    primes = [Choice(1_000_003 * step + 17 * step * step, 1.0 / step) for step in range(1, 12)]
    items = [[Choice(c.size + 7 * i, c.loss * (1 + i % 5)) for c in primes] for i in range(600)]
    budget = smallest(items) * 5
    found = least_loss(items, budget)
    assert found is not None
    assert found.size <= budget
    assert found.loss <= found.bound * 1.001
