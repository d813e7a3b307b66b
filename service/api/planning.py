"""Dry runs: what levels of a model would be with these options, and whether this machine holds them. Makes nothing.

Plans of plain levels are kept of every source; whatever else is asked for is worked out in a child process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.api.catalogue import as_level, fits
from service.api.catalogue_shapes import PlanShape, TensorShape
from service.api.laboratory_bodies import QuantizeBody
from service.api.laboratory_specs import recipe_of, target_of, wanted_levels
from service.api.services import Services
from service.domain.catalog import LevelPlan, Variant
from service.domain.estimates import QuantizeRun, level_seconds, quantize_seconds, slowness
from service.domain.evaluation import Target
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import Recipe
from service.domain.steps_back import LADDER, applicable, downwards


async def plan(services: Services, source: Variant, body: QuantizeBody) -> list[dict[str, Any]]:
    """The plan of each level asked for; with `target`, of every plain level that keeps to its size, largest first.

    With `until` in the order in which they would be tried; where none is named, those of the ladder that apply.
    """
    recipe = await asyncio.to_thread(recipe_of, services, body)
    levels = tuple(QUANTIZATIONS) if body.target is not None else wanted_levels(body)
    if body.until is not None:
        levels = levels or LADDER
    has_importance = body.imatrix is not None or recipe.importance_matrix is not None
    plans: Sequence[LevelPlan]
    if recipe.is_stock and not has_importance and not body.tensors:
        plans = await asyncio.to_thread(_kept_plans, services, source, levels)
    else:
        plans = await services.jobs.plan(source, [recipe.at(level) for level in levels], has_importance=has_importance)
    if body.target is not None:
        plans = within(plans, target_of(body.target))
    if body.until is not None:
        plans = _downwards(plans, source, named=body.to is not None, has_importance=has_importance)
    return await asyncio.to_thread(_shapes, services, source, plans, body, recipe, has_importance)


def _kept_plans(services: Services, source: Variant, levels: Sequence[str]) -> list[LevelPlan]:
    kept = {plan.quantization: plan for plan in services.catalog.plans(source.digest)}
    missing = "No plan is stored for this level; import the file again."
    return [kept.get(level) or LevelPlan(level, 0, 0.0, False, error=missing) for level in levels]


def _downwards(plans: Sequence[LevelPlan], source: Variant, *, named: bool, has_importance: bool) -> list[LevelPlan]:
    by_level = {plan.quantization: plan for plan in plans}
    labels = tuple(by_level) if named else applicable(plans, source.size_bytes, has_importance=has_importance)
    return [by_level[label] for label in downwards(labels, by_level)]


def within(plans: Sequence[LevelPlan], target: Target) -> list[LevelPlan]:
    """The plans that can be made and keep to the size of the budget, largest first."""
    found = [
        plan
        for plan in plans
        if plan.error is None
        and (target.size_bytes is None or plan.size_bytes <= target.size_bytes)
        and (target.bits_per_weight is None or plan.bits_per_weight <= target.bits_per_weight)
    ]
    return sorted(found, key=lambda plan: -plan.size_bytes)


@dataclass(frozen=True, slots=True)
class _Machine:
    """What plans are held against: bytes that the disk and the GPUs may take, threads, and how slow they are."""

    disk_bytes: int
    gpu_bytes: int | None
    threads: int
    slowness: float


def _shapes(
    services: Services,
    source: Variant,
    plans: Sequence[LevelPlan],
    body: QuantizeBody,
    recipe: Recipe,
    has_importance: bool,
) -> list[dict[str, Any]]:
    threads = services.options.job_threads
    here = _Machine(
        disk_bytes=services.blobs.free_bytes() - services.blobs.reserve_bytes,
        gpu_bytes=services.options.gpu_memory_bytes,
        threads=body.threads or threads,
        slowness=slowness(runs_so_far(services.catalog.variants(), threads)),
    )
    shapes = []
    for level in plans:
        shape = _shape(services, source, level, pruned(as_level(source, level), recipe), body, here)
        if level.error is None:
            seconds = _seconds(level, source, here, has_importance=has_importance)
            shape = shape.model_copy(update={"estimated_seconds": seconds})
        shapes.append(shape.model_dump())
    return shapes


def _shape(
    services: Services, source: Variant, plan: LevelPlan, level: Variant, body: QuantizeBody, here: _Machine
) -> PlanShape:
    makeable = plan.error is None
    need = services.pool.memory_needed(level, body.context)
    on_gpu_bytes = need.total_bytes - need.runtime_bytes
    return PlanShape(
        quantization=plan.quantization,
        source=source.name,
        size_bytes=plan.size_bytes,
        bits_per_weight=plan.bits_per_weight,
        needs_imatrix=plan.needs_imatrix,
        fallbacks=list(plan.fallbacks),
        types=dict(plan.types),
        estimated_seconds=None,
        memory_bytes=need.total_bytes if makeable else 0,
        fits=makeable and fits(services, level, body.context),
        fits_gpu=None if here.gpu_bytes is None else makeable and on_gpu_bytes <= here.gpu_bytes,
        fits_disk=makeable and plan.size_bytes <= here.disk_bytes,
        notes=notes(source, plan, allow_requantize=body.allow_requantize),
        tensors=[
            TensorShape(name=tensor.name, shape=list(tensor.shape), type=tensor.type, size_bytes=tensor.size_bytes)
            for tensor in plan.tensors
        ]
        if body.tensors
        else None,
        error=plan.error,
    )


def _seconds(plan: LevelPlan, source: Variant, here: _Machine, *, has_importance: bool) -> float:
    if plan.tensors:
        seconds = quantize_seconds(
            plan.tensors, threads=here.threads, has_importance=has_importance, slowness=here.slowness
        )
    else:
        seconds = level_seconds(
            plan.quantization,
            source.facts.parameters,
            threads=here.threads,
            has_importance=has_importance,
            slowness=here.slowness,
        )
    return round(seconds, 1)


def runs_so_far(variants: Iterable[Variant], threads: int) -> list[QuantizeRun]:
    """The levels made here, oldest first, as if all had been made with that many threads."""
    return [
        QuantizeRun(
            quantization=variant.quantization,
            parameters=variant.facts.parameters,
            threads=threads,
            has_importance=variant.lineage.recipe.importance_matrix is not None,
            seconds=variant.lineage.duration_seconds,
        )
        for variant in sorted(variants, key=lambda variant: variant.id)
        if variant.lineage.recipe is not None and variant.lineage.duration_seconds is not None
    ]


def notes(source: Variant, plan: LevelPlan, *, allow_requantize: bool) -> list[str]:
    """What to know before the level is made. Plans that are kept of every source carry none of their own."""
    found = list(plan.notes)
    if plan.error is None and not found and plan.size_bytes >= source.size_bytes:
        more = "larger than" if plan.size_bytes > source.size_bytes else "as large as"
        found.append(f"The file would be {more} its source ({source.size_bytes} bytes) and hold no more than that.")
    if source.lossy and not allow_requantize:
        found.append(f"{source.name} has lost precision already: making this needs allow_requantize.")
    return found


def pruned(level: Variant, recipe: Recipe) -> Variant:
    """The level without the blocks that the recipe leaves out, for working out its memory."""
    shape = level.facts.shape
    left = max(1, shape.layers - len(recipe.prune_layers))
    return replace(level, facts=replace(level.facts, shape=replace(shape, layers=left)))
