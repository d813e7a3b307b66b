"""The levels of one model that could be run or compared, with what is known of each. Reads the store; decides nothing.

Everything here blocks on the database: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.api.catalogue import as_level, best_sources, missing_levels
from service.api.services import Services
from service.domain.catalog import LevelPlan, Variant
from service.domain.evaluation import Card, Divergence, Estimate
from service.domain.frontier import Point, Yardstick, common_yardstick, measured_by
from service.domain.names import parse_ref
from service.domain.recommend import (
    Basis,
    Bounds,
    Candidate,
    Loss,
    Pace,
    expected_loss,
    expected_pace,
    sensitivity,
)

_NOUGHT = Estimate(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Levels:
    """The variants made from one source, that source among them, and the newest first of what was measured on each.

    `yardstick` is what most of them were measured with; None: nothing was measured.
    """

    source: Variant
    members: tuple[Variant, ...]
    runs: Mapping[int, Sequence[Card]]
    yardstick: Yardstick | None

    @property
    def base_digest(self) -> str:
        """What losses are held to."""
        return self.source.digest if self.yardstick is None else self.yardstick.base_digest

    def card(self, variant: Variant) -> Card | None:
        """The newest figures of the variant that can be compared with those of the others."""
        return measured_by(self.yardstick, self.runs[variant.id])

    def divergence(self, variant: Variant) -> Divergence | None:
        """What the variant lost, where it was measured with the common yardstick."""
        card = self.card(variant)
        return card.text.divergence if card is not None and card.text is not None else None

    def label(self, variant: Variant) -> str:
        """What to call the variant among the others."""
        return variant.quantization if variant.flavour.lower() == self.source.flavour.lower() else variant.tag


def levels_of(services: Services, name: str) -> Levels:
    """The levels of the model that `name` means. Raises InvalidName and ModelNotFound."""
    named = services.catalog.resolve_source(parse_ref(name))
    stored = [variant for variant in services.catalog.variants(named.model.display) if not variant.corrupt]
    by_digest = {variant.digest: variant for variant in stored}
    origin = _origin(named, by_digest)
    family = [variant for variant in stored if variant.flavour.lower() == origin.flavour.lower()]
    (source,) = best_sources(family) or [origin]
    members = tuple(
        variant
        for variant in stored
        if variant in family or _origin(variant, by_digest).digest in (source.digest, origin.digest)
    )
    runs = {variant.id: services.laboratory.evaluations(variant.id) for variant in members}
    found = common_yardstick(runs.values(), source.digest) or common_yardstick(runs.values())
    return Levels(source, members, runs, found)


def points_of(levels: Levels) -> list[Point]:
    """Every variant with a comparable loss, and the source at nought when any has one."""
    found = []
    for variant in levels.members:
        divergence = levels.divergence(variant)
        is_source = levels.yardstick is not None and variant.digest == levels.base_digest
        if divergence is None and not is_source:
            continue
        found.append(
            Point(
                name=variant.name,
                label=levels.label(variant),
                size_bytes=variant.size_bytes,
                bits_per_weight=variant.facts.bits_per_weight,
                mean_kld=_NOUGHT if is_source or divergence is None else divergence.mean_kld,
                is_source=is_source,
            )
        )
    return found


def candidates_of(services: Services, levels: Levels, bounds: Bounds, machine: str) -> list[Candidate]:
    """Everything that could be run: what is stored, and what could be made of the source and is smaller than it.

    Speeds count when they were measured on `machine`.
    """
    return _candidates(services, levels, bounds, machine, makeable(services, levels))


def stored_candidates(services: Services, levels: Levels, bounds: Bounds, machine: str) -> list[Candidate]:
    """As `candidates_of`, without what would have to be made."""
    return _candidates(services, levels, bounds, machine, ())


def _candidates(
    services: Services, levels: Levels, bounds: Bounds, machine: str, plans: Sequence[LevelPlan]
) -> list[Candidate]:
    measured = {
        variant.quantization: divergence.mean_kld.value
        for variant in levels.members
        if _is_plain(variant) and (divergence := levels.divergence(variant)) is not None
    }
    factor = sensitivity(measured)
    speeds = [
        (variant.size_bytes, speed.tokens_per_second)
        for variant in levels.members
        if (speed := _measured_pace(levels.runs[variant.id], machine)) is not None
    ]
    found = []
    for variant in levels.members:
        pace = _measured_pace(levels.runs[variant.id], machine) or expected_pace(variant.size_bytes, speeds)
        loss = _loss(levels, variant, factor)
        found.append(_candidate(services, variant, bounds, loss, pace, stored=True))
    for plan in plans:
        level = as_level(levels.source, plan)
        loss, pace = expected_loss(plan.quantization, factor), expected_pace(plan.size_bytes, speeds)
        found.append(_candidate(services, level, bounds, loss, pace, stored=False))
    return sorted(found, key=lambda candidate: (-candidate.size_bytes, candidate.name))


def makeable(services: Services, levels: Levels) -> list[LevelPlan]:
    """Levels that are not there yet and would be smaller than their source."""
    source = levels.source
    return [
        plan
        for plan in missing_levels(source, levels.members, services.catalog.plans(source.digest))
        if plan.error is None and plan.size_bytes < source.size_bytes
    ]


def _origin(variant: Variant, by_digest: Mapping[str, Variant]) -> Variant:
    """The variant at the stored end of a lineage."""
    seen = {variant.digest}
    while (parent := by_digest.get(variant.lineage.source_digest or "")) is not None and parent.digest not in seen:
        seen.add(parent.digest)
        variant = parent
    return variant


def _loss(levels: Levels, variant: Variant, factor: float | None) -> Loss | None:
    if variant.digest == levels.base_digest:
        return Loss(0.0, Basis.SOURCE)
    divergence = levels.divergence(variant)
    if divergence is not None:
        return Loss(max(0.0, divergence.mean_kld.value), Basis.MEASURED, divergence.mean_kld.error)
    return expected_loss(variant.quantization, factor) if _is_plain(variant) else None


def _is_plain(variant: Variant) -> bool:
    """Whether this is what its label says, so that published figures of that label say something of it."""
    recipe = variant.lineage.recipe
    return recipe is None or replace(recipe, importance_matrix=None).is_stock


def _measured_pace(runs: Sequence[Card], machine: str) -> Pace | None:
    for card in runs:
        if card.speed is not None and card.machine == machine and card.speed.generation_tokens_per_second > 0:
            return Pace(card.speed.generation_tokens_per_second, Basis.MEASURED)
    return None


def _candidate(
    services: Services, variant: Variant, bounds: Bounds, loss: Loss | None, pace: Pace | None, *, stored: bool
) -> Candidate:
    need, largest = services.pool.room_for(variant, bounds.context, bounds.memory_bytes)
    return Candidate(
        name=variant.name,
        quantization=variant.quantization,
        stored=stored,
        size_bytes=variant.size_bytes,
        bits_per_weight=variant.facts.bits_per_weight,
        need=need,
        largest_context=largest,
        loss=loss,
        pace=pace,
    )
