"""Ollama's dialect: `POST /api/pull`. A name that is here is here; any other is an address, and pulled by a job.

The last client that leaves before the end cancels the job that was begun for it; what has come stays for the next time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.documents import errors
from service.api.ollama_documents import LINES, OllamaError
from service.api.ollama_models import OllamaStatus
from service.api.ollama_names import bare_digest, meant
from service.api.ollama_shapes import OllamaTransferBody
from service.api.ollama_statuses import drained, lines
from service.api.responses import error_from, json_response
from service.api.services import Services, Use
from service.api.streams import LineStream, unless_gone
from service.domain.addresses import parse_address
from service.domain.errors import BlobCorrupt, InvalidName, JobFailed, ModelNotFound
from service.domain.jobs import ENDED, Job, JobStatus, PullSpec
from service.domain.reach import admit, origin_of
from service.domain.remote import RemoteLevel

router = APIRouter(prefix="/api", tags=["ollama"])

_FETCH = "fetch"


@router.post(
    "/pull",
    summary="Pull a model (Ollama)",
    response_model=OllamaStatus,
    responses={
        200: {"description": "How far it is, in lines unless `stream` is false.", "content": LINES},
        **errors(404, 409, 422, 429, 502, 503, 507, body=True, model=OllamaError),
    },
)
async def pull(body: OllamaTransferBody, request: Request, services: Use) -> Response:
    """Succeeds at once for a name that is here. Others are fetched: from the hub, a registry, or a file's address."""
    here = await _here(services, body.ref)
    if here is None:
        address = parse_address(body.ref, param="model")
        admit(origin_of(address, services.looks.access), services.looks.access.hosts)
        statuses = _statuses(services, address.display)
    else:
        statuses = _told(here)
    if body.stream is False:
        await unless_gone(request.receive, drained(statuses))
        return json_response({"status": "success"})
    return LineStream(lines(statuses), close=lambda: None, stall_seconds=services.options.stream_stall_seconds)


async def _here(services: Services, name: str) -> list[dict[str, Any]] | None:
    """The statuses of a name that is here; None for one that is not, or whose file is damaged."""
    try:
        variant = (await meant(services, name)).variant
    except (ModelNotFound, BlobCorrupt, InvalidName):
        return None
    return [_layer(variant.digest, variant.size_bytes, variant.size_bytes), *_ENDING]


async def _told(statuses: list[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
    for status in ({"status": "pulling manifest"}, *statuses):
        yield status


async def _statuses(services: Services, address: str) -> AsyncGenerator[dict[str, Any], None]:
    """The statuses, in Ollama's order and words. Raises what the job ends with."""
    yield {"status": "pulling manifest"}
    model, choice = await services.looks.at(address)
    level = next(level for level in model.levels if level.choice == choice)
    total = level.size_bytes
    digest = level.files[0].digest
    job, is_new = await services.jobs.begin(PullSpec(name="", source=address))
    if is_new:
        services.ollama_pulls.add(job.id)
    try:
        if job.status not in ENDED:
            async with aclosing(services.jobs.subscribe(job.id)) as events:
                async for event in events:
                    job = event.job
                    yield _progress(job, level, digest, total)
            job = await services.jobs.get(job.id)
    finally:
        _leave(services, job)
    if job.error is not None:
        raise error_from(job.error.code, job.error.message)
    if job.status is not JobStatus.SUCCEEDED:
        raise JobFailed("The job was cancelled; send the request again.")
    variant = await services.find(job.result[0])
    yield _layer(digest or variant.digest, total or variant.size_bytes, total or variant.size_bytes)
    for status in _ENDING:
        yield status


def _leave(services: Services, job: Job) -> None:
    """One client listens no more: a job that nobody else waits for is not worth its line."""
    if job.status in ENDED:
        services.ollama_pulls.discard(job.id)
    elif job.id in services.ollama_pulls and not services.jobs.is_followed(job.id) and not services.pool.draining:
        services.ollama_pulls.discard(job.id)
        services.background.start(services.jobs.cancel(job.id), name=f"cancel {job.id}")


_ENDING: tuple[dict[str, Any], ...] = (
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
)


def _progress(job: Job, level: RemoteLevel, digest: str | None, total: int) -> dict[str, Any]:
    share = next((step.progress for step in job.steps if step.name == _FETCH), 0.0)
    if digest is None or not total:
        # Nobody has said what it will be: a layer without a digest is none to Ollama's clients.
        return {"status": f"pulling {level.files[0].name}"}
    return _layer(digest, total, int(share * total))


def _layer(digest: str, total: int, completed: int) -> dict[str, Any]:
    return {
        "status": f"pulling {bare_digest(digest)[:12]}",
        "digest": digest,
        "total": total,
        "completed": completed,
    }
