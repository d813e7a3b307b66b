"""`/v1/jobs`: what runs, how far it is, and an end to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.api.catalogue_shapes import JobErrorShape, JobListing, JobShape, StepShape
from service.api.documents import EVENT_STREAM, errors
from service.api.responses import json_response
from service.api.services import Use
from service.api.streams import HEARTBEAT, EventStream, sse
from service.domain.jobs import (
    ENDED,
    AdapterSpec,
    BundleSpec,
    EvaluateSpec,
    ImportSpec,
    Job,
    JobEvent,
    JobSpec,
    JobStatus,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    VerifySpec,
)
from service.domain.names import parse_ref

router = APIRouter(prefix="/v1/jobs", tags=["native"])

# Proxies cut a connection that says nothing for half a minute or so.
HEARTBEAT_SECONDS = 15.0
_LIST_LIMIT = 1000


@router.get("", summary="List jobs, newest first", responses=errors())
async def list_jobs(
    services: Use, status: JobStatus | None = None, limit: Annotated[int, Query(ge=1, le=_LIST_LIMIT)] = 100
) -> JobListing:
    """All of them, or those of one status."""
    jobs = await services.jobs.list(status, limit)
    return JobListing(data=[job_shape(job) for job in jobs])


@router.get("/{job_id}", summary="Show one job", responses=errors(404))
async def show(job_id: str, services: Use) -> JobShape:
    """Its status, progress and result."""
    return job_shape(await services.jobs.get(job_id))


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events `status`, `progress` and `level`, each with the job.",
            "content": EVENT_STREAM,
        },
        204: {"description": "The job has ended and there is nothing new: do not reconnect."},
        **errors(404),
    },
)
async def events(
    job_id: str,
    services: Use,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Response:
    """The stream ends with the job. `Last-Event-ID` resumes it; comments every 15 seconds keep it open.

    Progress between two events that are stored comes without an id: clients keep the last one they have seen.
    """
    job = await services.jobs.get(job_id)
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 16 else 0
    following = services.jobs.subscribe(job_id, after)
    first: JobEvent | None = None
    if job.status in ENDED:
        first = await anext(following, None)
        if first is None:
            # An EventSource reconnects for ever; 204 is the one answer that stops it.
            return Response(status_code=204)
    return EventStream(
        _frames(first, following), close=lambda: None, stall_seconds=services.options.stream_stall_seconds
    )


@router.delete(
    "/{job_id}", summary="Cancel a job", responses={202: {"description": "It ends soon."}, **errors(404, 409)}
)
async def cancel(job_id: str, services: Use) -> Response:
    """200 when it is cancelled, 202 while its process still has to end, 409 when it had ended before."""
    job = await services.jobs.cancel(job_id)
    return json_response(job_shape(job).model_dump(), status=200 if job.status in ENDED else 202)


def accepted(job: Job) -> Response:
    """202 with the job and where to follow it; 200 for one that had nothing to do."""
    status = 200 if job.status is JobStatus.SUCCEEDED else 202
    return json_response(job_shape(job).model_dump(), status=status, headers={"Location": f"/v1/jobs/{job.id}"})


def job_shape(job: Job) -> JobShape:
    """A job as the API shows it. Paths of the server stay out."""
    model, levels = _subject(job.spec)
    return JobShape(
        id=job.id,
        kind=job.kind.value,
        status=job.status.value,
        model=model,
        levels=levels,
        progress=job.progress,
        steps=[
            StepShape(name=step.name, status=step.status.value, progress=step.progress, detail=step.detail)
            for step in job.steps
        ],
        eta_seconds=job.eta_seconds,
        result=list(job.result),
        error=JobErrorShape(code=job.error.code, message=job.error.message) if job.error else None,
        attempts=job.attempts,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _subject(spec: JobSpec) -> tuple[str, list[str]]:
    """What a job is about: a name, and the levels that it makes or the tags that it measures."""
    match spec:
        case ImportSpec():
            return spec.name, []
        case QuantizeSpec():
            return spec.source_name, list(spec.levels)
        case EvaluateSpec():
            refs = [parse_ref(variant.name) for variant in spec.variants]
            return refs[0].key.display, [ref.canonical_tag or "" for ref in refs]
        case RebuildSpec():
            return spec.variant.name, []
        case PullSpec():
            return spec.name, []
        case AdapterSpec():
            return spec.base.name, []
        case BundleSpec():
            return spec.name or "", []
        case VerifySpec():
            return ", ".join(spec.models), []
        case _:
            return spec.source_name, []


async def _frames(first: JobEvent | None, following: AsyncGenerator[JobEvent, None]) -> AsyncGenerator[bytes, None]:
    if first is not None:
        yield _frame(first)
    pending: asyncio.Task[JobEvent | None] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(following))
            await asyncio.wait({pending}, timeout=HEARTBEAT_SECONDS)
            if not pending.done():
                yield HEARTBEAT
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield _frame(event)
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await following.aclose()


async def _next(following: AsyncGenerator[JobEvent, None]) -> JobEvent | None:
    return await anext(following, None)


def _frame(event: JobEvent) -> bytes:
    return sse(job_shape(event.job).model_dump(), event=str(event.kind), event_id=event.id)
