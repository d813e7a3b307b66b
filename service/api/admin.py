"""`/health`, `/ready`, `/version`, `/metrics`: for load balancers, operators and Prometheus."""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from typing import Literal

from fastapi import APIRouter, Response

from service.api.documents import errors
from service.api.services import Services, Use
from service.api.shapes import Shape
from service.domain.errors import ShuttingDown

router = APIRouter(tags=["admin"])


class HealthShape(Shape):
    """Alive."""

    status: Literal["ok"] = "ok"


class VersionShape(Shape):
    """What runs here."""

    name: Literal["quantry"] = "quantry"
    version: str
    llama_build: str | None
    python: str


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the process alive", responses=errors())
async def health() -> HealthShape:
    """200 as long as the server answers at all. Needs no key."""
    return HealthShape()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="May requests be sent", responses=errors(503))
async def ready(services: Use) -> HealthShape:
    """503 while the server shuts down. Needs no key."""
    if services.pool.draining:
        raise ShuttingDown("The server is shutting down; send requests to another one.", retry_after_seconds=5)
    return HealthShape()


@router.get("/version", summary="Versions", responses=errors())
async def version(services: Use) -> VersionShape:
    """Of the service, of llama.cpp, and of Python."""
    options = services.options
    return VersionShape(version=options.version, llama_build=options.llama_build, python=platform.python_version())


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=errors())
async def metrics(services: Use) -> Response:
    """Text format. Counters since the start; gauges as of now."""
    services.metrics.set_workers(Counter(status.state for status in services.pool.status()), services.pool.queue_depth)
    await asyncio.to_thread(_look_at_store, services)
    services.metrics.set_jobs({status.value: count for status, count in (await services.jobs.counts()).items()})
    return Response(services.metrics.render(), media_type=services.metrics.content_type)


def _look_at_store(services: Services) -> None:
    variants = services.catalog.variants()
    models = {variant.model.folded for variant in variants}
    services.metrics.set_store(len(models), len(variants), services.blobs.total_bytes())
