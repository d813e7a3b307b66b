"""Variants as the native API shows them. Decides what could still be made; changes nothing.

Everything here may run off the event loop: it only reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from service.api.catalogue_shapes import (
    AvailableShape,
    LineageShape,
    MeasurementShape,
    ReferenceShape,
    RemoteOriginShape,
    VariantShape,
)
from service.api.laboratory_shapes import CardShape, RecipeShape, SearchShape
from service.api.services import Services
from service.domain.catalog import LevelPlan, Lineage, Measurement, Variant
from service.domain.evaluation import Card
from service.domain.quants import QUANTIZATIONS, Family
from service.store.catalog import Catalog
from service.workers.placing import Level

REFERENCE_SOURCE = "published figures for one 7B model; not measured here"


def show_variant(services: Services, variant: Variant, context: int | None = None) -> VariantShape:
    """One variant."""
    aliases = services.catalog.aliases(variant)
    card = services.laboratory.cards([variant.id]).get(variant.id)
    return variant_shape(services, variant, aliases, services.catalog.measurements(variant.id), card, context)


def best_sources(variants: Sequence[Variant]) -> list[Variant]:
    """For each model and flavour the variant to quantize from: one that lost nothing, then the one with most bits."""
    families: defaultdict[tuple[str, str], list[Variant]] = defaultdict(list)
    for variant in variants:
        if not variant.corrupt:
            families[_family(variant)].append(variant)
    return [
        min(family, key=lambda variant: (variant.lossy, -variant.facts.bits_per_weight, variant.id))
        for family in families.values()
    ]


def missing_levels(source: Variant, variants: Sequence[Variant], plans: Sequence[LevelPlan]) -> list[LevelPlan]:
    """The plans of `source` whose level is not there yet."""
    there = _levels_there(variants)[_family(source)]
    return [plan for plan in plans if plan.quantization not in there]


def _family(variant: Variant) -> tuple[str, str]:
    return variant.model.folded, variant.flavour.lower()


def _levels_there(variants: Sequence[Variant]) -> defaultdict[tuple[str, str], set[str]]:
    """The levels that are stored of each model and flavour."""
    there: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for variant in variants:
        there[_family(variant)].add(variant.quantization)
    return there


def as_level(source: Variant, plan: LevelPlan) -> Variant:
    """What the plan of `source` would become, for working out its memory."""
    overhead_bytes = source.size_bytes - source.facts.tensor_bytes
    facts = replace(
        source.facts,
        quantization=plan.quantization,
        bits_per_weight=plan.bits_per_weight,
        tensor_bytes=max(0, plan.size_bytes - overhead_bytes),
    )
    return replace(source, quantization=plan.quantization, size_bytes=plan.size_bytes, facts=facts)


def smaller_levels(catalog: Catalog, variant: Variant) -> list[Level]:
    """What is smaller than `variant` of the same model and flavour: stored, or planned from the best stored source.

    Levels that llama.cpp refuses or that need an importance matrix are left out.
    """
    family = [
        other
        for other in catalog.variants(variant.model.display)
        if other.flavour.lower() == variant.flavour.lower() and not other.corrupt
    ]
    found = [
        Level(other.name, other.facts, stored=True, recommended=_recommended(other.quantization)) for other in family
    ]
    for source in best_sources(family):
        note = " with allow_requantize" if source.lossy else ""
        for plan in missing_levels(source, family, catalog.plans(source.digest)):
            if plan.error is None and not plan.needs_imatrix:
                level = as_level(source, plan)
                recommended = _recommended(plan.quantization)
                found.append(Level(level.name, level.facts, stored=False, recommended=recommended, note=note))
    return [level for level in found if level.facts.tensor_bytes < variant.facts.tensor_bytes]


def _recommended(quantization: str) -> bool:
    level = QUANTIZATIONS.get(quantization)
    return level is not None and level.recommended


def variant_shape(
    services: Services,
    variant: Variant,
    aliases: Sequence[str],
    measured: Sequence[Measurement],
    card: Card | None,
    context: int | None,
) -> VariantShape:
    """A variant with its names and figures."""
    facts = variant.facts
    level = QUANTIZATIONS.get(variant.quantization)
    return VariantShape(
        name=variant.name,
        aliases=list(aliases),
        model=variant.model.display,
        quantization=variant.quantization,
        bits_per_weight=facts.bits_per_weight,
        size_bytes=variant.size_bytes,
        digest=variant.digest,
        parameters=facts.parameters,
        context_length=facts.shape.context_length,
        recommended=level.recommended if level else False,
        advice=advice_on(variant.quantization, lossy_source=variant.lineage.lossy_source),
        reference=reference_shape(variant.quantization, lossy_source=variant.lineage.lossy_source),
        measured=[MeasurementShape(name=m.name, value=m.value, unit=m.unit, created_at=m.created_at) for m in measured],
        card=CardShape.model_validate(card, from_attributes=True) if card else None,
        memory_bytes=services.pool.memory_needed(variant, context).total_bytes,
        loaded=services.pool.is_loaded(variant.digest),
        lossy=variant.lossy,
        corrupt=variant.corrupt,
        pinned=variant.pinned,
        lineage=_lineage_shape(variant.lineage),
        created_at=variant.created_at,
        license=facts.license,
        chat_template=facts.template_verdict,
    )


def _lineage_shape(lineage: Lineage) -> LineageShape:
    return LineageShape(
        origin=lineage.origin,
        source=lineage.source_name,
        source_digest=lineage.source_digest,
        recipe=RecipeShape.model_validate(lineage.recipe, from_attributes=True) if lineage.recipe else None,
        llama_build=lineage.llama_build,
        duration_seconds=lineage.duration_seconds,
        lossy_source=lineage.lossy_source,
        search=SearchShape.model_validate(lineage.search, from_attributes=True) if lineage.search else None,
        converted_from=lineage.converted_from,
        remote=RemoteOriginShape.model_validate(lineage.remote, from_attributes=True) if lineage.remote else None,
    )


def available_shape(services: Services, source: Variant, plan: LevelPlan, context: int | None) -> AvailableShape:
    """What the plan of `source` would become."""
    level = QUANTIZATIONS[plan.quantization]
    planned = as_level(source, plan)
    return AvailableShape(
        model=source.model.display,
        quantization=plan.quantization,
        source=source.name,
        size_bytes=plan.size_bytes,
        bits_per_weight=plan.bits_per_weight,
        memory_bytes=services.pool.memory_needed(planned, context).total_bytes,
        fits=fits(services, planned, context),
        needs_imatrix=plan.needs_imatrix,
        lossy_source=source.lossy,
        error=plan.error,
        advice=advice_on(plan.quantization, lossy_source=source.lossy),
        recommended=level.recommended,
    )


def advice_on(label: str, *, lossy_source: bool) -> str | None:
    """The advice on a level; None for floats made of what had lost precision: they are not as lossless as it says."""
    level = QUANTIZATIONS.get(label)
    return None if level is None or (lossy_source and level.family is Family.FLOAT) else level.advice


def reference_shape(label: str, *, lossy_source: bool) -> ReferenceShape | None:
    """The published figures of a level with where they come from; None of a lossy source: they hold for none such."""
    level = QUANTIZATIONS.get(label)
    reference = level.reference if level is not None and not lossy_source else None
    if reference is None:
        return None
    return ReferenceShape(
        size_gib_7b=reference.size_gib, perplexity_added_7b=reference.perplexity_added, source=REFERENCE_SOURCE
    )


def fits(services: Services, variant: Variant, context: int | None) -> bool:
    """Whether one request of `context` tokens, else of what the server has, is within the memory budget."""
    # One request at a time is enough to be served; the pool lowers its parallelism before it refuses a variant.
    trained = variant.facts.shape.context_length or services.options.context_length
    tokens = context or min(services.options.context_length, trained)
    return services.pool.memory_needed(variant, tokens).total_bytes <= services.pool.memory_budget_bytes
