"""`/v1/models/{model}/desired`: the levels that a model's owner wants to have, kept by the service."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from service.api.desired_shapes import DesiredBody, DesiredLevelShape, DesiredShape
from service.api.documents import errors
from service.api.path_parameters import ModelRef
from service.api.services import Services, Use
from service.domain.desired import AUTO, Desired, WishState
from service.domain.errors import DesiredNotFound, InvalidName
from service.domain.names import ModelKey, parse_ref
from service.domain.quants import parse_label

router = APIRouter(prefix="/v1", tags=["native"])


@router.put(
    "/models/{ref:path}/desired",
    summary="Say which levels of a model are wanted",
    responses=errors(404, 409, 422, 429, 503, 507, body=True),
)
async def put_desired(ref: ModelRef, body: DesiredBody, services: Use) -> DesiredShape:
    """The service makes what is missing, now and whenever it is missing again, and says what is left.

    It takes the place of what was wanted before; levels that are no longer in it stay.
    """
    model = _model_of(ref)
    matrix = body.importance_matrix
    if matrix is not None and matrix != AUTO:
        await asyncio.to_thread(services.laboratory.importance_matrix, matrix)
    levels = tuple(dict.fromkeys(parse_label(level, param="levels") for level in body.levels))
    await asyncio.to_thread(services.catalog.resolve_source, model.display)
    await services.wishes.put(model, Desired(levels, matrix, body.allow_requantize))
    return await _shape(services, model)


@router.get("/models/{ref:path}/desired", summary="Which levels of a model are wanted", responses=errors(404))
async def get_desired(ref: ModelRef, services: Use) -> DesiredShape:
    """Each with its state: stored, damaged, missing, queued, running, failed, cancelled or impossible."""
    return await _shape(services, _model_of(ref))


@router.delete("/models/{ref:path}/desired", summary="Want no levels of a model any more", responses=errors(404))
async def delete_desired(ref: ModelRef, services: Use) -> DesiredShape:
    """Variants and running jobs stay as they are. The answer is what was wanted."""
    model = _model_of(ref)
    shape = await _shape(services, model)
    await asyncio.to_thread(services.desired.delete, model)
    return shape


async def _shape(services: Services, model: ModelKey) -> DesiredShape:
    found = await asyncio.to_thread(services.wishes.progress, model)
    if found is None:
        raise DesiredNotFound(
            f"Nothing is wanted of {model.display}; PUT the levels under /v1/models/{model.display}/desired.",
            param="model",
        )
    wish, wished_at, levels = found
    return DesiredShape(
        model=model.display,
        levels=[
            DesiredLevelShape(
                quantization=level.quantization,
                state=level.state,
                name=level.name,
                job=level.job_id,
                reason=level.reason,
            )
            for level in levels
        ],
        importance_matrix=wish.importance_matrix,
        allow_requantize=wish.allow_requantize,
        left=sum(level.state is not WishState.STORED for level in levels),
        updated_at=wished_at,
    )


def _model_of(ref: str) -> ModelKey:
    parsed = parse_ref(ref)
    if parsed.tag is not None:
        raise InvalidName(
            f"Levels are wanted of a model, not of one of its tags; write {parsed.key.display}.", param="model"
        )
    return parsed.key
