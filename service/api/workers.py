"""`/v1/workers`: what is in memory, and loading and unloading by hand."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request

from service.api.catalogue_shapes import LoadBody, UnloadedShape, WorkerListing, WorkerShape
from service.api.documents import errors
from service.api.path_parameters import Ref
from service.api.services import Services, Use
from service.api.streams import unless_gone
from service.domain.catalog import Variant
from service.domain.errors import Unavailable
from service.domain.memory import CacheChoice
from service.workers.placing import LoadOptions

router = APIRouter(prefix="/v1/workers", tags=["native"])


@router.get("", summary="List the workers", responses=errors())
async def list_workers(services: Use) -> WorkerListing:
    """One entry for each variant that is in memory, on its way there, or has failed."""
    pool = services.pool
    return WorkerListing(
        data=[WorkerShape(**asdict(status)) for status in pool.status()],
        queue_depth=pool.queue_depth,
        draining=pool.draining,
    )


@router.post(
    "/{ref:path}/load", summary="Load a variant into memory", responses=errors(404, 409, 429, 503, 504, body=True)
)
async def load(ref: Ref, request: Request, services: Use, body: LoadBody | None = None) -> WorkerShape:
    """Answers once the worker is ready and has been tried out.

    What the body asks for is remembered until the variant is unloaded by hand; a worker that is loaded otherwise ends
    its requests first and is started anew. Without a body, a worker that is ready stays as it is.
    """
    variant = await services.servable(ref)
    await unless_gone(request.receive, services.pool.load(variant, None if body is None else _asked(body)))
    return _worker(services, variant)


@router.post("/{ref:path}/unload", summary="Take a variant out of memory", responses=errors(404))
async def unload(ref: Ref, request: Request, services: Use) -> UnloadedShape:
    """Running generations end first. Unloading what is not loaded changes nothing."""
    variant = await services.find(ref)
    await unless_gone(request.receive, services.pool.unload(variant))
    return UnloadedShape(name=variant.name)


def _asked(body: LoadBody) -> LoadOptions:
    return LoadOptions(
        context_length=body.context_length,
        parallel=body.parallel,
        cache_type_k=None if body.cache_type_k is None else CacheChoice(body.cache_type_k),
        cache_type_v=None if body.cache_type_v is None else CacheChoice(body.cache_type_v),
    )


def _worker(services: Services, variant: Variant) -> WorkerShape:
    for status in services.pool.status():
        if status.digest == variant.digest:
            return WorkerShape(**asdict(status))
    raise Unavailable(f"{variant.name} was unloaded again meanwhile; try once more.")
