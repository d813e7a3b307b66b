"""The levels that a model's owner wants to have, and how far that wish has come. Pure.

missing ──a job is queued──> queued ──> running ──> stored ──its bytes rot──> damaged
   └── never tried: impossible            └─────> failed | cancelled    (tried again when it is wished for again;
                                                                         a failure also after an hour)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from service.domain.catalog import Variant
from service.domain.jobs import Job, JobStatus, QuantizeSpec

TRY_AGAIN_SECONDS = 3600.0
AUTO = "auto"
"""The word for an importance matrix that is computed where none is there."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What is wished for: canonical labels, each once. `importance_matrix` is a digest, `AUTO`, or None for none."""

    levels: tuple[str, ...]
    importance_matrix: str | None = None
    allow_requantize: bool = False


class WishState(StrEnum):
    """Where one level of a wish stands."""

    STORED = "stored"
    DAMAGED = "damaged"
    MISSING = "missing"
    QUEUED = "queued"
    RUNNING = "running"
    FAILED = "failed"
    CANCELLED = "cancelled"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class DesiredLevel:
    """One level of a wish. `name` is the variant's, made or to be made; `reason` says why it is not there."""

    quantization: str
    state: WishState
    name: str
    job_id: str | None = None
    reason: str | None = None


def progress_of(
    wish: Desired,
    wished_at: str,
    source: Variant,
    siblings: Iterable[Variant],
    jobs: Sequence[Job],
    refusal: Callable[[str], str | None],
    now: datetime,
) -> tuple[DesiredLevel, ...]:
    """How far each level of `wish` has come, in its order.

    `siblings` are the variants of the model, `source` the one to make levels from, `jobs` the known ones, newest first.
    `refusal` tells why a level cannot be made of the source. Times are RFC 3339, `now` is aware of its zone.
    """
    flavour = source.flavour.lower()
    there = {variant.quantization: variant for variant in siblings if variant.flavour.lower() == flavour}
    return tuple(
        _progress(label, wished_at, source, there.get(label), _newest_job(label, source, jobs), refusal, now)
        for label in wish.levels
    )


def hindered(levels: Sequence[DesiredLevel], why: str | None) -> tuple[DesiredLevel, ...]:
    """The same levels, those that no job could be queued for with the reason."""
    return tuple(replace(level, reason=why) if level.state is WishState.MISSING else level for level in levels)


def to_make(levels: Iterable[DesiredLevel]) -> tuple[str, ...]:
    """The labels that a job has to be queued for."""
    return tuple(level.quantization for level in levels if level.state is WishState.MISSING)


def _progress(
    label: str,
    wished_at: str,
    source: Variant,
    found: Variant | None,
    job: Job | None,
    refusal: Callable[[str], str | None],
    now: datetime,
) -> DesiredLevel:
    if found is not None:
        if found.corrupt:
            rotten = "its bytes no longer match their digest; repair it"
            return DesiredLevel(label, WishState.DAMAGED, found.name, reason=rotten)
        return DesiredLevel(label, WishState.STORED, found.name)
    tag = f"{source.flavour}-{label}" if source.flavour else label
    name = f"{source.model.display}:{tag}"
    if job is not None and job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        return DesiredLevel(label, WishState(job.status.value), name, job.id)
    reason = refusal(label)
    if reason is not None:
        return DesiredLevel(label, WishState.IMPOSSIBLE, name, reason=reason)
    if job is not None and _rests(job, label, wished_at, now):
        reason = "its job was cancelled; wish for it again" if job.error is None else job.error.message
        return DesiredLevel(label, WishState(job.status.value), name, job.id, reason)
    return DesiredLevel(label, WishState.MISSING, name)


def _newest_job(label: str, source: Variant, jobs: Sequence[Job]) -> Job | None:
    """The newest job that makes or was to make that level."""
    for job in jobs:
        spec = job.spec
        if (
            isinstance(spec, QuantizeSpec)
            and spec.source_digest == source.digest
            and label in spec.levels
            and (source.flavour if spec.flavour is None else spec.flavour).lower() == source.flavour.lower()
        ):
            return job
    return None


def _rests(job: Job, label: str, wished_at: str, now: datetime) -> bool:
    """Whether the level, which this job did not make, is left alone for now."""
    if job.created_at < wished_at:  # it was wished for anew since
        return False
    if job.status is JobStatus.FAILED and _was_kept_from(job, label):
        return False
    if job.status is JobStatus.CANCELLED:
        return True
    if job.status is not JobStatus.FAILED or job.finished_at is None:
        return False
    return now - datetime.fromisoformat(job.finished_at) < timedelta(seconds=TRY_AGAIN_SECONDS)


def _was_kept_from(job: Job, label: str) -> bool:
    """Whether a job that failed at another level had not begun this one: that says nothing against it."""
    spec = job.spec
    levels = spec.levels if isinstance(spec, QuantizeSpec) else ()
    states = {step.name: step.status for step in job.steps if step.name in levels}
    failed = any(state is JobStatus.FAILED for name, state in states.items() if name != label)
    return failed and states.get(label) is JobStatus.CANCELLED
