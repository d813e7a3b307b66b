"""Jobs as rows and back: the columns of the job table, and the snapshots that events keep.

Server process; pure. What a spec is follows from the job's kind, in rows and in snapshots alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import msgspec
from sqlalchemy import RowMapping

from service.domain.jobs import SPECS, Job, JobError, JobKind, JobSpec, JobStatus, Step
from service.store.database import from_json


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A `Job` as an event keeps it: what the spec is follows from the kind."""

    id: str
    kind: JobKind
    status: JobStatus
    spec: msgspec.Raw
    progress: float
    steps: tuple[Step, ...]
    eta_seconds: float | None
    result: tuple[str, ...]
    error: JobError | None
    attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None


def from_snapshot(column: str) -> Job:
    """The job as it was when the event was written."""
    snapshot = from_json(column, _Snapshot)
    fields = {name: getattr(snapshot, name) for name in _Snapshot.__slots__}
    return Job(**{**fields, "spec": _spec(snapshot.kind, bytes(snapshot.spec).decode())})


def _spec(kind: JobKind, column: str) -> JobSpec:
    return from_json(column, SPECS[kind])


def job_of(row: RowMapping) -> Job:
    """The job in a row of the table."""
    kind = JobKind(row["kind"])
    error = JobError(row["error_code"], row["error_message"]) if row["error_code"] else None
    return Job(
        id=row["id"],
        kind=kind,
        status=JobStatus(row["status"]),
        spec=_spec(kind, row["spec"]),
        progress=row["progress"],
        steps=from_json(row["steps"], tuple[Step, ...]),
        eta_seconds=row["eta_seconds"],
        result=from_json(row["result"], tuple[str, ...]),
        error=error,
        attempts=row["attempts"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def to_snapshot(job: Job) -> str:
    """A job as the text that its event keeps."""
    return msgspec.json.encode(asdict(job)).decode()


def rested(steps: Sequence[Step]) -> list[Step]:
    """The steps of a job that goes back to the queue: what was under way starts again."""
    return [
        step if step.status is JobStatus.SUCCEEDED else Step(step.name, JobStatus.QUEUED, 0.0, None) for step in steps
    ]


def undone(steps: Sequence[Step], running: JobStatus = JobStatus.CANCELLED) -> list[Step]:
    """The steps of a job that ends unfinished."""
    return [
        step
        if step.status is JobStatus.SUCCEEDED
        else replace(step, status=running if step.status is JobStatus.RUNNING else JobStatus.CANCELLED)
        for step in steps
    ]
