"""What becomes of files that were fetched, once the job that fetched them has ended. Server process, one loop.

They go when the job has what it wanted of them, or they are refused; they stay where a later job can go on with them,
and as long as another job works with them, waits for them, or has not looked yet whether it needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from service.domain.errors import InvalidModel, NotSupported, QuantryError
from service.domain.jobs import JobError, JobSpec, JobStatus
from service.jobs.queue import JobQueue
from service.jobs.specs import source_of
from service.store.partials import Partials

_log = structlog.get_logger("jobs")


@dataclass(slots=True)
class _Fetching:
    """A run that fetches from the address `source` into `folder`; None: it has not looked yet."""

    source: str
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class _Left:
    """What a run has left. `keep`: a later one may go on with it."""

    source: str
    keep: bool


class Transfers:
    """Folders among the transfers that jobs fetch into. All methods are called on the event loop."""

    def __init__(self, queue: JobQueue, partials: Partials) -> None:
        """`queue` is asked for jobs that wait."""
        self._queue = queue
        self._partials = partials
        self._running: dict[str, _Fetching] = {}
        self._left: dict[str, _Left] = {}

    def begin(self, job_id: str, spec: JobSpec) -> None:
        """A job begins to run."""
        source = source_of(spec)
        if source is not None:
            self._running[job_id] = _Fetching(source)

    def found(self, job_id: str, folder: str) -> None:
        """It has looked, and fetches into this folder."""
        if job_id in self._running:
            self._running[job_id].folder = folder

    async def end(self, job_id: str, *, keep: bool) -> None:
        """It runs no more; `keep` says whether what it has left is to be gone on with."""
        mine = self._running.pop(job_id, None)
        if mine is None:
            return
        if mine.folder is not None:
            before = self._left.get(mine.folder)
            self._left[mine.folder] = _Left(mine.source, keep and (before is None or before.keep))
        if any(other.folder is None for other in self._running.values()):
            return
        used = {other.folder for other in self._running.values()}
        for folder in [folder for folder in self._left if folder not in used]:
            left = self._left.pop(folder)
            if not await asyncio.to_thread(self._settled, folder, left):
                self._left.setdefault(folder, left)

    def _settled(self, folder: str, left: _Left) -> bool:
        try:
            if self._queue.awaits(left.source):
                return False
            self._partials.end(folder, keep=left.keep)
        except (QuantryError, OSError, ValueError) as problem:
            # It goes by its age; the job's end must be told all the same.
            _log.error("what was fetched could not be removed", folder=folder[:80], problem=str(problem))
        return True


def is_gone_on_with(status: JobStatus, error: JobError | None, result: Sequence[str]) -> bool:
    """Whether what a job that ends so, with that result, has fetched is of use to a later one. Pure.

    What is no model, or none that can be had here, would be none the next time either.
    """
    if status is JobStatus.QUEUED:
        return True
    if result:  # also of one that was ended after it had brought what it was to bring
        return False
    if status is JobStatus.FAILED and error is not None:
        return error.code not in (InvalidModel.code, NotSupported.code)
    return status is not JobStatus.SUCCEEDED
