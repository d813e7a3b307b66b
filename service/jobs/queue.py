"""The job table: enqueue, claim, report, finish, recover. Server process only, synchronous, every call one transaction.

    queued ──claim──> running ──finish──> succeeded | failed | cancelled
      │                 ├─release─> queued      (this server stops in good order)
      │                 └─recover─> queued      (the server before went down; attempts + 1, at most 3 times)
      │                             failed      (job_interrupted: it went down a fourth time)
      │                             cancelled   (a cancel had been asked for)
      └─request_cancel─> cancelled              (a running job only remembers the wish; the runner ends its child)

Every arrow is one UPDATE guarded by the statuses it may start from (`TRANSITIONS`), and one event in the same
transaction. Order is the order of `seq`: wall clocks jump. Knows no process and no file.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.domain.errors import JobFinished, JobNotFound, QueueFull
from service.domain.jobs import (
    ENDED,
    TRANSITIONS,
    Job,
    JobError,
    JobEvent,
    JobKind,
    JobSpec,
    JobStatus,
    Step,
)
from service.jobs.rows import from_snapshot, job_of, rested, to_snapshot, undone
from service.jobs.specs import digests_of, kind_of, source_of, spec_key
from service.store.database import now, read, to_json, write
from service.store.tables import EventKind, job_events, jobs

MAX_INTERRUPTIONS = 3
_RETRY_AFTER_SECONDS = 30
_ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)


class JobQueue:
    """Jobs and their events, in the database. Safe to call from any thread."""

    def __init__(self, engine: Engine, max_queued: int) -> None:
        """At most `max_queued` jobs wait at a time; the running ones do not count."""
        self._engine = engine
        self._max_queued = max_queued

    def enqueue(self, spec: JobSpec, steps: Sequence[Step]) -> tuple[Job, bool]:
        """Add a job, or find the active one that does the same: (job, whether it is new).

        Raises QueueFull, with `retry_after_seconds`, when too many are waiting.
        """
        key = spec_key(spec)
        try:
            with write(self._engine, of_catalogue=False) as connection:
                twin = _active(connection, key)
                return (twin, False) if twin is not None else (self._insert(connection, spec, key, steps), True)
        except IntegrityError:
            # Another process on the same database was faster by a moment; the unique index kept one of the two.
            with read(self._engine) as connection:
                twin = _active(connection, key)
            if twin is None:
                raise
            return twin, False

    def find_active(self, spec: JobSpec) -> Job | None:
        """The queued or running job that does the same work, if any."""
        with read(self._engine) as connection:
            return _active(connection, spec_key(spec))

    def claim(self, kinds: Collection[JobKind] = tuple(JobKind)) -> Job | None:
        """Take the job of these kinds that has waited longest, now running; None when none waits.

        A pull waits while another one fetches from the same address: what that one brings need not come again.
        """
        waiting = select(jobs).where(jobs.c.status == JobStatus.QUEUED, jobs.c.kind.in_(list(kinds)))
        with write(self._engine, of_catalogue=False) as connection:
            fetched = _fetched_from(connection) if JobKind.PULL in kinds else frozenset()
            for row in connection.execute(waiting.order_by(jobs.c.seq)).mappings():
                if row["kind"] != JobKind.PULL or source_of(job_of(row).spec) not in fetched:
                    return _move(connection, row["id"], JobStatus.RUNNING, started_at=now())
        return None

    def update_progress(
        self,
        job_id: str,
        progress: float,
        steps: Sequence[Step],
        eta_seconds: float | None,
        *,
        result: Sequence[str] | None = None,
    ) -> Job | None:
        """Write how far a running job is. None when the job runs no more.

        `result` marks the end of a step, and is what there is by now; None: a step is under way.

        A progress event replaces the progress event before it: a reader that resumes needs only the newest, and a job
        of many hours does not grow its log without bound.
        """
        landed = {} if result is None else {"result": to_json(list(result))}
        with write(self._engine, of_catalogue=False) as connection:
            changed = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status == JobStatus.RUNNING)
                .values(progress=progress, steps=to_json(list(steps)), eta_seconds=eta_seconds, **landed)
            )
            if changed.rowcount == 0:
                return None
            job = _get(connection, job_id)
            _add_event(connection, EventKind.PROGRESS if result is None else EventKind.LEVEL, job)
            return job

    def finish(
        self,
        job_id: str,
        status: JobStatus,
        *,
        steps: Sequence[Step],
        result: Sequence[str] = (),
        error: JobError | None = None,
    ) -> Job:
        """End a running job as succeeded, failed or cancelled. A job that has ended already is returned as it is."""
        assert status in ENDED
        values: dict[str, Any] = {
            "steps": to_json(list(steps)),
            "result": to_json(list(result)),
            "error_code": error.code if error else None,
            "error_message": error.message if error else None,
        }
        if status is JobStatus.SUCCEEDED:
            values["progress"] = 1.0
        with write(self._engine, of_catalogue=False) as connection:
            moved = _move(connection, job_id, status, only_from=JobStatus.RUNNING, **values)
            return moved if moved is not None else _get(connection, job_id)

    def release(self, job_id: str, steps: Sequence[Step]) -> Job:
        """Put a running job back in the queue, in its old place, because this server stops; not counted as an attempt.

        A job whose cancel was asked for meanwhile is cancelled instead.
        """
        with write(self._engine, of_catalogue=False) as connection:
            row = _row(connection, job_id)
            if row["status"] != JobStatus.RUNNING:
                return job_of(row)
            to = JobStatus.CANCELLED if row["cancel_requested"] else JobStatus.QUEUED
            moved = _move(connection, job_id, to, steps=to_json(rested(steps)))
            assert moved is not None
            return moved

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; remember the wish for a running one (it stays running until its child is gone).

        Raises JobNotFound, and JobFinished when it has ended.
        """
        with write(self._engine, of_catalogue=False) as connection:
            row = _row(connection, job_id)
            if JobStatus(row["status"]) in ENDED:
                raise JobFinished(f"The job has already ended as {row['status']}; there is nothing to cancel.")
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            if row["status"] == JobStatus.RUNNING:
                return job_of(row)
            moved = _move(connection, job_id, JobStatus.CANCELLED, steps=to_json(undone(job_of(row).steps)))
            assert moved is not None
            return moved

    def recover(self) -> int:
        """Put right what a server that went down left running; the count of those jobs. Call at every start."""
        with write(self._engine, of_catalogue=False) as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status == JobStatus.RUNNING)).mappings().all()
            for row in rows:
                steps = job_of(row).steps
                if row["cancel_requested"]:
                    _move(connection, row["id"], JobStatus.CANCELLED, steps=to_json(undone(steps)))
                elif row["attempts"] >= MAX_INTERRUPTIONS:
                    _move(
                        connection,
                        row["id"],
                        JobStatus.FAILED,
                        steps=to_json(undone(steps, JobStatus.FAILED)),
                        error_code="job_interrupted",
                        error_message=f"The server went down {row['attempts'] + 1} times while this job ran. Look for "
                        "the cause in its log (memory is the usual one), then ask again: finished parts are kept.",
                    )
                else:
                    values = {"attempts": row["attempts"] + 1, "steps": to_json(rested(steps))}
                    _move(connection, row["id"], JobStatus.QUEUED, **values)
            return len(rows)

    def get(self, job_id: str) -> Job:
        """One job. Raises JobNotFound."""
        with read(self._engine) as connection:
            return _get(connection, job_id)

    def list(self, status: JobStatus | None = None, limit: int = 100) -> list[Job]:
        """The newest jobs first."""
        query = select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if status is not None:
            query = query.where(jobs.c.status == status)
        with read(self._engine) as connection:
            return [job_of(row) for row in connection.execute(query).mappings()]

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs are kept in each status, 0 included; one query, whatever the length of the history."""
        query = select(jobs.c.status, func.count()).group_by(jobs.c.status)
        with read(self._engine) as connection:
            found = {JobStatus(status): count for status, count in connection.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def events_after(self, job_id: str, after_id: int = 0) -> Sequence[JobEvent]:
        """The events of a job with ids above `after_id`, oldest first. Raises JobNotFound."""
        return self.job_and_events(job_id, after_id)[1]

    def job_and_events(self, job_id: str, after_id: int) -> tuple[Job, Sequence[JobEvent]]:
        """A job as it stands, and its events with ids above `after_id`, of the same moment. Raises JobNotFound."""
        with read(self._engine) as connection:
            job = _get(connection, job_id)
            query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after_id)
            rows = connection.execute(query.order_by(job_events.c.id)).mappings().all()
        return job, [
            JobEvent(id=row["id"], kind=row["kind"], job=from_snapshot(row["job"]), created_at=row["created_at"])
            for row in rows
        ]

    def newest_event_id(self, job_id: str) -> int:
        """The id of a job's newest event. Raises JobNotFound."""
        with read(self._engine) as connection:
            _row(connection, job_id)
            return _newest_event_id(connection, job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether someone wants this job cancelled. Raises JobNotFound."""
        with read(self._engine) as connection:
            return bool(_row(connection, job_id)["cancel_requested"])

    def active_digests(self) -> frozenset[str]:
        """Blobs that waiting and running jobs still need: the sweep must leave them."""
        with read(self._engine) as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status.in_(_ACTIVE))).mappings()
            specs = [job_of(row).spec for row in rows]
        return frozenset(digest for spec in specs for digest in digests_of(spec))

    def has_active(self, kinds: Collection[JobKind] = tuple(JobKind)) -> bool:
        """Whether a job of these kinds is queued or running."""
        active = select(jobs.c.id).where(jobs.c.status.in_(_ACTIVE), jobs.c.kind.in_(list(kinds))).limit(1)
        with read(self._engine) as connection:
            return connection.scalar(active) is not None

    def awaits(self, source: str) -> bool:
        """Whether a job that fetches from this address is queued."""
        fetching = [JobKind.PULL, JobKind.ADAPTER]
        queued = select(jobs).where(jobs.c.status == JobStatus.QUEUED, jobs.c.kind.in_(fetching))
        with read(self._engine) as connection:
            return any(source_of(job_of(row).spec) == source for row in connection.execute(queued).mappings())

    def waiting(self) -> int:
        """How many jobs are queued."""
        with read(self._engine) as connection:
            return _count_queued(connection)

    def prune(self, keep: int = 1000) -> int:
        """Forget the oldest ended jobs and their events beyond the newest `keep`; how many."""
        ended = select(jobs.c.id).where(jobs.c.status.in_(list(ENDED))).order_by(jobs.c.seq.desc())
        with write(self._engine, of_catalogue=False) as connection:
            old = list(connection.scalars(ended.offset(keep)))
            for job_id in old:
                connection.execute(delete(job_events).where(job_events.c.job_id == job_id))
                connection.execute(delete(jobs).where(jobs.c.id == job_id))
            return len(old)

    def _insert(self, connection: Connection, spec: JobSpec, key: str, steps: Sequence[Step]) -> Job:
        if _count_queued(connection) >= self._max_queued:
            raise QueueFull(
                f"{self._max_queued} jobs are waiting already; try again when some have ended.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        job_id = f"job_{secrets.token_hex(8)}"
        values = {
            "id": job_id,
            "kind": kind_of(spec),
            "status": JobStatus.QUEUED,
            "spec_key": key,
            "spec": to_json(spec),
            "progress": 0.0,
            "steps": to_json(list(steps)),
            "result": "[]",
            "attempts": 0,
            "cancel_requested": False,
            "created_at": now(),
        }
        connection.execute(insert(jobs).values(values))
        job = _get(connection, job_id)
        _add_event(connection, EventKind.STATUS, job)
        return job


def _row(connection: Connection, job_id: str) -> RowMapping:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise JobNotFound("There is no job with that id; GET /v1/jobs lists the ones there are.")
    return row


def _get(connection: Connection, job_id: str) -> Job:
    return job_of(_row(connection, job_id))


def _active(connection: Connection, key: str) -> Job | None:
    query = select(jobs).where(jobs.c.spec_key == key, jobs.c.status.in_(_ACTIVE))
    row = connection.execute(query).mappings().first()
    return None if row is None else job_of(row)


def _fetched_from(connection: Connection) -> frozenset[str | None]:
    """The addresses of the pulls that run."""
    query = select(jobs).where(jobs.c.status == JobStatus.RUNNING, jobs.c.kind == JobKind.PULL)
    return frozenset(source_of(job_of(row).spec) for row in connection.execute(query).mappings())


def _count_queued(connection: Connection) -> int:
    count = select(func.count()).select_from(jobs).where(jobs.c.status == JobStatus.QUEUED)
    return int(connection.scalar(count) or 0)


def _move(
    connection: Connection, job_id: str, to: JobStatus, *, only_from: JobStatus | None = None, **values: Any
) -> Job | None:
    """One arrow of the diagram and its event; None when the job is not where the arrow starts."""
    sources = [status for status, targets in TRANSITIONS.items() if to in targets]
    if only_from is not None:
        sources = [only_from]
    if to in ENDED:
        values |= {"finished_at": now(), "eta_seconds": None}
    if to is JobStatus.QUEUED:
        values |= {"started_at": None, "eta_seconds": None}
    changed = connection.execute(
        update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sources)).values(status=to, **values)
    )
    if changed.rowcount == 0:
        return None
    job = _get(connection, job_id)
    _add_event(connection, EventKind.STATUS, job)
    return job


def _add_event(connection: Connection, kind: EventKind, job: Job) -> None:
    newest = _newest_event_id(connection, job.id)
    if kind is EventKind.PROGRESS:
        connection.execute(
            delete(job_events).where(job_events.c.job_id == job.id, job_events.c.kind == EventKind.PROGRESS)
        )
    values = {"job_id": job.id, "id": newest + 1, "kind": kind, "job": to_snapshot(job), "created_at": now()}
    connection.execute(insert(job_events).values(values))


def _newest_event_id(connection: Connection, job_id: str) -> int:
    return int(connection.scalar(select(func.max(job_events.c.id)).where(job_events.c.job_id == job_id)) or 0)
