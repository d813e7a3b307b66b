"""Levels from the largest down: their order, and whether one keeps to its bound."""

from __future__ import annotations

import math

import pytest

from service.domain.catalog import LevelPlan
from service.domain.evaluation import Card, Divergence, Estimate, TextFigures
from service.domain.steps_back import LADDER, Bound, applicable, downwards, judge


def card(kld: float = 0.04, log_ratio: float = 0.01, same_top: float = 0.9) -> Card:
    def exact(value: float) -> Estimate:
        return Estimate(value, 0.0)

    divergence = Divergence(
        "m:F16", "sha256:x", exact(9.0), exact(log_ratio), exact(kld), 0.0, 0.0, 0.0, 0.0, 0.0, exact(0.0),
        exact(0.0), exact(same_top),
    )  # fmt: skip
    return Card("a machine", "b1", 1.0, TextFigures("evaluation", "sha256:y", 512, 1, 256, exact(9.1), divergence))


@pytest.mark.parametrize(
    ("bound", "within", "figures"),
    [
        (Bound(max_kld=0.05), True, "mean KLD 0.04 keeps to 0.05"),
        (Bound(max_kld=0.04), True, "mean KLD 0.04 keeps to 0.04"),
        (Bound(max_kld=0.03), False, "mean KLD 0.04 is above 0.03"),
        (Bound(max_perplexity_ratio=1.02), True, "perplexity ratio 1.0101 keeps to 1.02"),
        (Bound(max_perplexity_ratio=1.001), False, "perplexity ratio 1.0101 is above 1.001"),
        (Bound(min_same_top=0.9), True, "same top token 0.9 keeps to 0.9"),
        (Bound(min_same_top=0.95), False, "same top token 0.9 is below 0.95"),
        (
            Bound(0.05, 1.001, 0.95),
            False,
            "perplexity ratio 1.0101 is above 1.001, same top token 0.9 is below 0.95",
        ),
    ],
)
def test_a_level_is_judged_by_every_figure_that_is_bound(bound, within, figures):
    verdict = judge(bound, card())
    assert (verdict.within, verdict.figures) == (within, figures)


@pytest.mark.parametrize("bound", [Bound(max_kld=100.0), Bound(max_perplexity_ratio=1e6), Bound(min_same_top=1e-9)])
def test_a_figure_that_is_no_number_keeps_to_nothing(bound):
    assert not judge(bound, card(math.nan, math.nan, math.nan)).within
    assert not judge(Bound(max_perplexity_ratio=1e6), card(log_ratio=1e9)).within


def test_the_source_itself_has_lost_nothing():
    assert judge(Bound(max_kld=1e-9), Card("a machine", "b1", 1.0)).within


def test_levels_go_by_their_planned_size():
    plans = {plan.quantization: plan for plan in (LevelPlan("Q6_K", 9, 9.0, False), LevelPlan("Q8_0", 8, 8.5, False))}
    assert downwards(["Q2_K", "Q8_0", "Q6_K"], plans) == ("Q6_K", "Q8_0", "Q2_K")
    assert downwards(reversed(LADDER), {}) == LADDER


def test_what_cannot_be_made_or_is_no_smaller_does_not_apply():
    plans = [
        LevelPlan("Q8_0", 100, 8.5, False),
        LevelPlan("Q6_K", 99, 6.6, False),
        LevelPlan("Q4_K_M", 0, 0.0, False, error="no"),
        LevelPlan("IQ2_S", 20, 2.5, True),
    ]
    assert applicable(plans, 100, has_importance=False) == ("Q6_K",)
    assert applicable(plans, 100, has_importance=True) == ("Q6_K", "IQ2_S")
