"""Levels from high precision downwards: in which order, what each may lose, and whether it has kept to that. Pure.

Server and job child both judge by this: the child to stop, the server to decide what stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.domain.catalog import LevelPlan
from service.domain.evaluation import Card
from service.domain.quants import QUANTIZATIONS

LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""The levels that are tried when none are named."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a level may lose against its source. At least one is set."""

    max_kld: float | None = None  # mean KL divergence, in nats
    max_perplexity_ratio: float | None = None  # of the level's perplexity to the source's
    min_same_top: float | None = None  # share of tokens with the same most likely token


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a level keeps to a bound; `figures` says by what, for people."""

    within: bool
    figures: str


def judge(bound: Bound, card: Card) -> Verdict:
    """The verdict on a measured level. One without divergence is the source itself; a figure that is no number breaks
    every bound.
    """
    if card.text is None or card.text.divergence is None:
        return Verdict(True, "the source itself")
    divergence = card.text.divergence
    measured = (
        ("mean KLD", divergence.mean_kld.value, bound.max_kld, 1),
        ("perplexity ratio", _exp(divergence.log_perplexity_ratio.value), bound.max_perplexity_ratio, 1),
        ("same top token", divergence.same_top.value, bound.min_same_top, -1),
    )
    kept, broken = [], []
    for name, value, limit, sign in measured:
        if limit is None:
            continue
        if sign * value <= sign * limit:
            kept.append(f"{name} {value:.5g} keeps to {limit:g}")
        else:
            broken.append(f"{name} {value:.5g} is {'above' if sign > 0 else 'below'} {limit:g}")
    return Verdict(not broken, ", ".join(broken or kept))


def downwards(levels: Iterable[str], plans: Mapping[str, LevelPlan]) -> tuple[str, ...]:
    """The levels by size, largest first; one without a plan, or without a size there, by its nominal bits."""
    by_bits = sorted(levels, key=lambda label: -QUANTIZATIONS[label].bits_per_weight)
    return tuple(sorted(by_bits, key=lambda label: -_bits(label, plans.get(label))))


def applicable(plans: Iterable[LevelPlan], source_bytes: int, *, has_importance: bool) -> tuple[str, ...]:
    """The levels that can be made and would be smaller than their source."""
    return tuple(
        plan.quantization
        for plan in plans
        if plan.error is None and (has_importance or not plan.needs_imatrix) and plan.size_bytes < source_bytes
    )


def _bits(label: str, plan: LevelPlan | None) -> float:
    return plan.bits_per_weight if plan is not None and plan.size_bytes else QUANTIZATIONS[label].bits_per_weight


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
