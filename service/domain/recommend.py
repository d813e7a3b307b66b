"""Which level of a model to run: the smallest that loses little enough, fits, and is fast enough. Pure.

A loss is what was measured on this model where it was, else what the published figures of one 7B model suggest; every
answer says which. Sizes in bytes, losses as mean KL divergence to the source in nats, speeds in tokens per second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.domain.frontier import pareto_front
from service.domain.memory import MemoryNeed
from service.domain.quants import PREFERENCE, QUANTIZATIONS, Family

ENOUGH_KLD = 0.01
"""The loss that nobody is asked to go below unless they ask for it: that of Q4_K_M in the published figures."""

NEAR_TIE = 1.25
"""Sizes and losses within this factor are as good as equal: a load takes longer than such a difference gains."""

_REFERENCE_PERPLEXITY = 5.9066  # of the model that the published figures are for, at F16
_SMALLEST_LOSS = 1e-5  # smaller ones say nothing about how sensitive a model is
_SPECIAL = frozenset({Family.TERNARY, Family.BINARY})  # for models that were trained for them


class Basis(StrEnum):
    """Where a figure comes from."""

    SOURCE = "source"  # the variant that the others are held to: nought by definition
    MEASURED = "measured"  # here, on this model
    REFERENCE = "reference"  # published for one 7B model
    ESTIMATED = "estimated"  # from a measured level of this model and the sizes of both


class Hindrance(StrEnum):
    """Why a level is not what to run."""

    MEMORY = "memory"
    LOSS = "loss"
    SPEED = "speed"
    UNKNOWN_LOSS = "unknown_loss"


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean KL divergence to the source. `error` is a standard error, for a measured one."""

    kld: float
    basis: Basis
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """Speed of generation, one request at a time."""

    tokens_per_second: float
    basis: Basis


@dataclass(frozen=True, slots=True)
class Candidate:
    """A level that is stored or could be made. `need` is what one request of the context asked for takes.

    `largest_context` is what the memory has room for, 0 where the weights alone are too much.
    """

    name: str
    quantization: str
    stored: bool
    size_bytes: int
    bits_per_weight: float
    need: MemoryNeed
    largest_context: int
    loss: Loss | None = None
    pace: Pace | None = None
    loaded: bool = False  # in memory now: what it needs it has


@dataclass(frozen=True, slots=True)
class Bounds:
    """What was asked for. `max_kld` None: `ENOUGH_KLD`, and if nothing keeps to that, the best that fits."""

    memory_bytes: int
    context: int
    max_kld: float | None = None
    min_speed: float | None = None

    @property
    def kld(self) -> float:
        """The loss that is little enough."""
        return ENOUGH_KLD if self.max_kld is None else self.max_kld


@dataclass(frozen=True, slots=True)
class Considered:
    """A candidate and everything that speaks against it; nothing does against the choice."""

    candidate: Candidate
    hindrances: tuple[Hindrance, ...]


class Reason(StrEnum):
    """Why the choice is what it is."""

    LITTLE_LOSS = "little_loss"  # the smallest that loses no more than the bound
    LEAST_LOSS = "least_loss"  # nothing that fits keeps to the assumed bound: the one that loses least
    USUAL = "usual"  # nothing whose loss is known fits: what is usually preferred
    TOO_LARGE = "too_large"  # no choice: nothing fits
    TOO_LOSSY = "too_lossy"  # no choice: nothing that fits is known to keep to the loss asked for
    TOO_SLOW = "too_slow"  # no choice: nothing that fits is fast enough
    NOTHING = "nothing"  # no choice: there is no candidate


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The choice, the best of what it does not beat, and the next level up: the smallest that loses less.

    Without a choice `next_up` is the smallest that keeps to loss and speed, and would do with more memory.
    """

    bounds: Bounds
    choice: Candidate | None
    reason: Reason
    runner_up: Candidate | None
    next_up: Candidate | None
    considered: tuple[Considered, ...]


def recommend(candidates: Sequence[Candidate], bounds: Bounds) -> Recommendation:
    """Decide. A speed that nobody knows is taken to be fast enough; the answer shows that it is not known."""
    considered = tuple(Considered(candidate, hindrances(candidate, bounds)) for candidate in candidates)
    choice, reason = _choose(considered, bounds)
    return Recommendation(
        bounds=bounds,
        choice=choice,
        reason=reason,
        runner_up=_runner_up(choice, considered, bounds),
        next_up=_next_up(choice, considered),
        considered=considered,
    )


def stored_choice(candidates: Sequence[Candidate], bounds: Bounds) -> Candidate | None:
    """What to answer with now: of the stored ones the recommended, or a loaded one that is nearly as good.

    Where nothing fits, the smallest: whoever loads it can say why it does not. None: nothing is stored.
    """
    stored = [candidate for candidate in candidates if candidate.stored]
    choice = recommend(stored, bounds).choice
    if choice is None:
        return min(stored, key=_by_size, default=None)
    if choice.loaded:
        return choice
    near = [candidate for candidate in stored if candidate.loaded and _is_near(candidate, choice, bounds)]
    return min(near, key=_by_size, default=choice)


def _is_near(one: Candidate, choice: Candidate, bounds: Bounds) -> bool:
    """Whether loading the choice instead would be worth little: hardly faster, and hardly better."""
    if one.size_bytes > NEAR_TIE * choice.size_bytes:
        return False
    if one.loss is None or choice.loss is None:
        return one.loss is choice.loss and choice.size_bytes <= NEAR_TIE * one.size_bytes
    return one.loss.kld <= NEAR_TIE * max(bounds.kld, choice.loss.kld)


def hindrances(candidate: Candidate, bounds: Bounds) -> tuple[Hindrance, ...]:
    """Everything that speaks against a candidate."""
    found = []
    if candidate.need.total_bytes > bounds.memory_bytes and not candidate.loaded:
        found.append(Hindrance.MEMORY)
    if candidate.loss is None:
        found.append(Hindrance.UNKNOWN_LOSS)
    elif candidate.loss.kld > bounds.kld:
        found.append(Hindrance.LOSS)
    pace = candidate.pace
    if bounds.min_speed is not None and pace is not None and pace.tokens_per_second < bounds.min_speed:
        found.append(Hindrance.SPEED)
    return tuple(found)


def _choose(considered: Sequence[Considered], bounds: Bounds) -> tuple[Candidate | None, Reason]:
    if not considered:
        return None, Reason.NOTHING
    fitting = [one for one in considered if Hindrance.MEMORY not in one.hindrances]
    if not fitting:
        return None, Reason.TOO_LARGE
    usable = [one for one in fitting if Hindrance.SPEED not in one.hindrances]
    if not usable:
        return None, Reason.TOO_SLOW
    good = [one.candidate for one in usable if not one.hindrances]
    if good:
        return min(good, key=_by_size), Reason.LITTLE_LOSS
    if bounds.max_kld is not None:
        return None, Reason.TOO_LOSSY
    known = [one.candidate for one in usable if one.candidate.loss is not None]
    if known:
        return min(known, key=lambda candidate: (_kld(candidate), *_by_size(candidate))), Reason.LEAST_LOSS
    usual = [one.candidate for one in usable if one.candidate.stored or not _is_special(one.candidate.quantization)]
    if usual:
        return min(usual, key=_by_preference), Reason.USUAL
    return None, Reason.TOO_LOSSY


def _runner_up(choice: Candidate | None, considered: Sequence[Considered], bounds: Bounds) -> Candidate | None:
    """What would be chosen without the choice, of what that does not beat in both size and loss if there is any."""
    if choice is None:
        return None
    others = [one for one in considered if one.candidate is not choice]
    unbeaten = [one for one in others if not _beats(choice, one.candidate)]
    return _choose(unbeaten, bounds)[0] or _choose(others, bounds)[0]


def _beats(one: Candidate, other: Candidate) -> bool:
    return one.need.total_bytes <= other.need.total_bytes and _kld(one) <= _kld(other)


def _next_up(choice: Candidate | None, considered: Sequence[Considered]) -> Candidate | None:
    """The next step on the front of size and loss, whatever it takes."""
    known = [one for one in considered if one.candidate.loss is not None]
    if choice is None:
        only_memory = [one.candidate for one in known if one.hindrances == (Hindrance.MEMORY,)]
        return min(only_memory, key=_by_size, default=None)
    front = pareto_front([one.candidate for one in known], lambda candidate: candidate.need.total_bytes, _kld)
    if choice.loss is None:
        return None
    return min((other for other in front if _kld(other) < _kld(choice)), key=_by_size, default=None)


def _kld(candidate: Candidate) -> float:
    return math.inf if candidate.loss is None else candidate.loss.kld


def _by_size(candidate: Candidate) -> tuple[float, ...]:
    return candidate.need.total_bytes, candidate.size_bytes, _kld(candidate), not candidate.stored


def _by_preference(candidate: Candidate) -> tuple[float, ...]:
    label = candidate.quantization
    return PREFERENCE.index(label) if label in PREFERENCE else len(PREFERENCE), candidate.need.total_bytes


def _is_special(label: str) -> bool:
    level = QUANTIZATIONS.get(label)
    return level is not None and level.family in _SPECIAL


# --- figures where nothing was measured --------------------------------------------------------------------------


def reference_kld(label: str) -> float | None:
    """The published figure of a level as a loss: logarithm of perplexity / perplexity at F16; None: none is published.

    The mean of log-probabilities of the text's own tokens falls by that much; a KL divergence is of the same order.
    """
    level = QUANTIZATIONS.get(label)
    if level is None:
        return None
    if level.family is Family.FLOAT:
        return 0.0
    if level.reference is None or level.reference.perplexity_added is None:
        return None
    return math.log1p(level.reference.perplexity_added / _REFERENCE_PERPLEXITY)


def sensitivity(measured: Mapping[str, float]) -> float | None:
    """How much more this model loses than the published figures say: geometric mean over its measured plain levels.

    None when no measured level has a published figure to hold it to.
    """
    ratios = []
    for label, kld in measured.items():
        reference = reference_kld(label)
        if reference is not None and min(reference, kld) >= _SMALLEST_LOSS:
            ratios.append(math.log(kld / reference))
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def expected_loss(label: str, factor: float | None) -> Loss | None:
    """What an unmeasured plain level may lose: the published figure, times `sensitivity` where that is known."""
    reference = reference_kld(label)
    return None if reference is None else Loss(reference * (factor or 1.0), Basis.REFERENCE)


def expected_pace(size_bytes: int, measured: Sequence[tuple[int, float]]) -> Pace | None:
    """Generation reads every weight for every token: the speed of the measured file nearest in size, by their sizes.

    `measured` has pairs of size and tokens per second.
    """
    if not measured:
        return None
    nearest, speed = min(measured, key=lambda one: abs(math.log(one[0] / size_bytes)))
    return Pace(speed * nearest / size_bytes, Basis.ESTIMATED)
