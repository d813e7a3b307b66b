"""`GET /v1/recommend` and `GET /v1/frontier`: which level of a model to run, and what each one costs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from service.api import advice_words
from service.api.advice_shapes import (
    AdvisedShape,
    ConsideredShape,
    FrontierPointShape,
    FrontierShape,
    LossShape,
    MemoryShape,
    PaceShape,
    RecommendationShape,
)
from service.api.catalogue import advice_on, reference_shape
from service.api.contenders import Levels, candidates_of, levels_of, makeable, points_of
from service.api.documents import errors
from service.api.frontier_svg import Theme, frontier_svg
from service.api.laboratory_shapes import CardShape, EstimateShape
from service.api.responses import json_response
from service.api.services import Services, Use
from service.api.shapes import MAX_TOKENS, NAME_PATTERN
from service.domain.errors import InvalidName, ModelNotFound
from service.domain.frontier import Judged, judge
from service.domain.memory import bounded_context
from service.domain.recommend import Bounds, Candidate, Considered, Hindrance, recommend
from service.domain.sizes import SIZE_PATTERN, parse_size
from service.machine import available_bytes, description

router = APIRouter(prefix="/v1", tags=["laboratory"])

SVG = "image/svg+xml"
# The picture has its own style and nothing else: a browser that opens it runs and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

Model = Annotated[
    str,
    Query(
        min_length=1,
        max_length=600,
        description="The model; with a flavour or a level in its tag, the levels of the same source.",
        json_schema_extra={"pattern": NAME_PATTERN},
    ),
]
Memory = Annotated[
    str | None,
    Query(max_length=32, pattern=SIZE_PATTERN, description="Memory it may take, e.g. 16GiB; else what there is."),
]
Context = Annotated[int | None, Query(ge=1, le=MAX_TOKENS, description="Tokens of context; else the server's.")]
MaxKld = Annotated[
    float | None,
    Query(gt=0, le=100, allow_inf_nan=False, description="Most mean KL divergence to the source, in nats."),
]
MinSpeed = Annotated[
    float | None,
    Query(gt=0, le=1e6, allow_inf_nan=False, description="Least tokens per second of generation, one request alone."),
]


@router.get(
    "/recommend", summary="Recommend a level to run here", response_model=RecommendationShape, responses=errors(404)
)
async def recommendation(
    services: Use,
    model: Model,
    memory: Memory = None,
    context: Context = None,
    max_kld: MaxKld = None,
    min_speed: MinSpeed = None,
) -> Response:
    """The smallest level that loses little enough, fits and is fast enough; with the runner-up and the next level up.

    Losses are those that were measured on this model; where none was, what published figures suggest, and it says so.
    """
    memory_bytes = None if memory is None else parse_size(memory, param="memory")

    def found() -> RecommendationShape:
        levels = _levels(services, model)
        tokens = bounded_context(levels.source.facts, context or services.options.context_length)
        bounds = Bounds(memory_bytes or memory_here(services), tokens, max_kld, min_speed)
        return _recommendation(services, levels, bounds, memory_asked=memory_bytes is not None)

    return json_response((await asyncio.to_thread(found)).model_dump(mode="json"))


@router.get(
    "/frontier",
    summary="Size against loss of a model's variants, as figures or as a picture",
    response_model=FrontierShape,
    responses={
        200: {"description": "The figures; with `format=svg`, the picture.", "content": {SVG: {}}},
        **errors(404),
    },
)
async def frontier(
    services: Use,
    model: Model,
    format: Annotated[Literal["json", "svg"], Query(description="Figures or a picture.")] = "json",  # noqa: A002 - the field of the API
    theme: Annotated[Theme, Query(description="Colours of the picture; auto: as the reader prefers.")] = Theme.AUTO,
) -> Response:
    """What no other variant beats in both size and loss is on the front; the others are dominated, and by which.

    Only what was measured here counts, and only figures of the same source, text and windows are compared.
    """

    def drawn() -> tuple[bytes, str, dict[str, str]]:
        levels = _levels(services, model)
        judged = judge(points_of(levels))
        seen = {one.point.name for one in judged}
        missing = [variant for variant in levels.members if variant.name not in seen]
        if format == "svg":
            picture = advice_words.picture(levels, judged, [levels.label(variant) for variant in missing])
            return frontier_svg(picture, theme).encode(), SVG, {"Content-Security-Policy": _POLICY}
        shape = _frontier(levels, judged, [variant.name for variant in missing])
        return shape.model_dump_json().encode(), "application/json", {}

    # Placing many labels takes a tenth of a second.
    content, media_type, headers = await asyncio.to_thread(drawn)
    return Response(content, media_type=media_type, headers=headers)


def memory_here(services: Services) -> int:
    """What a model may take on this machine now: its budget, or what is free and what our own workers would give."""
    free = available_bytes() + services.pool.memory_held_bytes
    return max(1, min(services.pool.memory_budget_bytes, free))


def _levels(services: Services, name: str) -> Levels:
    try:
        return levels_of(services, name)
    except (ModelNotFound, InvalidName) as error:
        error.param = error.param or "model"
        raise


def _recommendation(services: Services, levels: Levels, bounds: Bounds, *, memory_asked: bool) -> RecommendationShape:
    found = recommend(candidates_of(services, levels, bounds, description()), bounds)
    source = levels.source
    base_stored = any(variant.digest == levels.base_digest for variant in levels.members)

    def advised(candidate: Candidate | None) -> AdvisedShape | None:
        if candidate is None:
            return None
        (one,) = [one for one in found.considered if one.candidate is candidate]
        return _advised(services, levels, one)

    return RecommendationShape(
        model=source.model.display,
        source=source.name,
        memory_bytes=bounds.memory_bytes,
        memory_asked=memory_asked,
        context_length=bounds.context,
        max_kld=bounds.kld,
        max_kld_asked=bounds.max_kld is not None,
        min_speed=bounds.min_speed,
        reason=found.reason,
        why=advice_words.why(found),
        cost=advice_words.cost(found),
        recommended=advised(found.choice),
        runner_up=advised(found.runner_up),
        next_up=advised(found.next_up),
        next_up_needs=advice_words.next_up_needs(found),
        warnings=advice_words.warnings(
            found, lossy_source=source.name if source.lossy else None, source_stored=base_stored
        ),
        considered=[ConsideredShape(**_considered(one)) for one in found.considered],
    )


def _considered(one: Considered) -> dict[str, Any]:
    candidate = one.candidate
    return {
        "name": candidate.name,
        "quantization": candidate.quantization,
        "stored": candidate.stored,
        "size_bytes": candidate.size_bytes,
        "bits_per_weight": candidate.bits_per_weight,
        "memory": MemoryShape(total_bytes=candidate.need.total_bytes, **asdict(candidate.need)),
        "fits": Hindrance.MEMORY not in one.hindrances,
        "largest_context": candidate.largest_context,
        "loss": LossShape.model_validate(candidate.loss, from_attributes=True) if candidate.loss else None,
        "speed": PaceShape.model_validate(candidate.pace, from_attributes=True) if candidate.pace else None,
        "hindrances": list(one.hindrances),
    }


def _advised(services: Services, levels: Levels, one: Considered) -> AdvisedShape:
    label = one.candidate.quantization
    stored = next((variant for variant in levels.members if variant.name == one.candidate.name), None)
    card = services.laboratory.cards([stored.id]).get(stored.id) if stored is not None else None
    lossy_source = levels.source.lossy if stored is None else stored.lineage.lossy_source
    return AdvisedShape(
        **_considered(one),
        advice=advice_on(label, lossy_source=lossy_source),
        card=CardShape.model_validate(card, from_attributes=True) if card else None,
        reference=reference_shape(label, lossy_source=lossy_source),
        make=None if stored is not None else _make(services, levels, label),
    )


def _make(services: Services, levels: Levels, label: str) -> dict[str, Any]:
    """The request that makes a level."""
    body: dict[str, Any] = {"model": levels.source.name, "to": [label]}
    if levels.source.lossy:
        body["allow_requantize"] = True
    if any(plan.quantization == label and plan.needs_imatrix for plan in makeable(services, levels)):
        body["imatrix"] = "auto"
    return body


def _frontier(levels: Levels, judged: tuple[Judged, ...], missing: list[str]) -> FrontierShape:
    card = next((card for variant in levels.members if (card := levels.card(variant)) is not None), None)
    text = card.text if card is not None else None
    return FrontierShape(
        model=levels.source.model.display,
        source=text.divergence.base_name if text is not None and text.divergence is not None else None,
        dataset=text.dataset if text is not None else None,
        window=text.window if text is not None else None,
        chunks=text.chunks if text is not None else None,
        tokens=text.tokens if text is not None else None,
        data=[
            FrontierPointShape(
                name=one.point.name,
                label=one.point.label,
                size_bytes=one.point.size_bytes,
                bits_per_weight=one.point.bits_per_weight,
                mean_kld=EstimateShape.model_validate(one.point.mean_kld, from_attributes=True),
                is_source=one.point.is_source,
                on_front=one.on_front,
                dominated_by=one.dominated_by.name if one.dominated_by is not None else None,
            )
            for one in judged
        ],
        unmeasured=missing,
    )
