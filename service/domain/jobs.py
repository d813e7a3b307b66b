"""Slow work as values: what a job is asked to do, how far it is, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.domain.catalog import FileFacts, LevelPlan


class JobKind(StrEnum):
    """What a job does."""

    IMPORT = "import"
    QUANTIZE = "quantize"


class JobStatus(StrEnum):
    """Where a job stands.

    queued ──> running ──> succeeded
      │          │ ├─────> failed
      │          │ └─────> cancelled
      │          └───────> queued      (the server went down; at most `max_attempts` times)
      └──────────────────> cancelled
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({*ENDED, JobStatus.QUEUED}),
    **{status: frozenset() for status in ENDED},
}


@dataclass(frozen=True, slots=True)
class ImportSpec:
    """Bring one GGUF file into the store under `name`. Exactly one of `path` and `digest` is set."""

    name: str  # canonical reference as asked for
    path: str | None = None  # a file on the server
    digest: str | None = None  # a blob already uploaded


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """Make `levels` of the variant with blob `source_digest`, in the order given."""

    source_name: str
    source_digest: str
    levels: tuple[str, ...]
    allow_requantize: bool = False
    threads: int | None = None


JobSpec = ImportSpec | QuantizeSpec


@dataclass(frozen=True, slots=True)
class Step:
    """One visible part of a job, e.g. one level. `status` uses the words of `JobStatus`."""

    name: str
    status: JobStatus = JobStatus.QUEUED
    progress: float = 0.0  # 0 to 1
    detail: str | None = None  # e.g. "tensor 12 of 56"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: code and message of a `QuantryError`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the job table. Times are RFC 3339, UTC; durations are seconds."""

    id: str
    kind: JobKind
    status: JobStatus
    spec: ImportSpec | QuantizeSpec
    progress: float
    steps: tuple[Step, ...]
    eta_seconds: float | None
    result: tuple[str, ...]  # canonical names of the variants made or found
    error: JobError | None
    attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job. `id` counts up within the job; None for progress that is not stored."""

    id: int | None
    kind: str  # "status", "progress", "level"
    job: Job
    created_at: str


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file a job child has written to the store's incoming folder, hashed, validated and fsynced."""

    path: str
    digest: str
    size_bytes: int
    facts: FileFacts
    plans: tuple[LevelPlan, ...] = ()
    duration_seconds: float = 0.0
