"""Following a job: its stored events, then what happens, until it has ended. Server process, one loop.

A follower holds one snapshot at most, the newest progress that is not in the database; everything else it reads from
there when it is ready for more. So a slow one costs nothing, misses no level and no ending, and never holds up a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from service.domain.jobs import ENDED, Job, JobEvent
from service.jobs.queue import JobQueue
from service.store.database import now
from service.store.tables import EventKind

# A look at the database without having been told, for what another server on it does with the job.
_RECHECK_SECONDS = 15.0


@dataclass(slots=True, eq=False)
class _Follower:
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    stored: bool = True  # the database has something new
    fresh: Job | None = None  # progress newer than what the database has


class Followers:
    """Who follows which job. Used on the event loop only."""

    def __init__(self, queue: JobQueue) -> None:
        """`queue` is read for the stored events."""
        self._queue = queue
        self._followers: dict[str, set[_Follower]] = {}
        self._closed = False

    def has(self, job_id: str) -> bool:
        """Whether anybody follows this job."""
        return job_id in self._followers

    def stored(self, job_id: str) -> None:
        """The database has a new event of this job."""
        for follower in self._followers.get(job_id, ()):
            follower.stored, follower.fresh = True, None
            follower.woken.set()

    def fresh(self, job: Job) -> None:
        """The job has come further; the database does not know yet."""
        for follower in self._followers.get(job.id, ()):
            follower.fresh = job
            follower.woken.set()

    def close(self) -> None:
        """End every iterator after what is stored now; the server stops."""
        self._closed = True
        for followers in self._followers.values():
            for follower in followers:
                follower.stored = True
                follower.woken.set()

    async def follow(self, job_id: str, after_id: int) -> AsyncGenerator[JobEvent, None]:
        """As `JobRunner.subscribe`."""
        follower = _Follower()
        self._followers.setdefault(job_id, set()).add(follower)
        try:
            async for event in self._events(follower, job_id, after_id):
                yield event
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]

    async def _events(self, follower: _Follower, job_id: str, after_id: int) -> AsyncGenerator[JobEvent, None]:
        newest_id = await asyncio.to_thread(self._queue.newest_event_id, job_id)
        # An id that was never given would hide everything up to it: such a follower begins with the newest event.
        last_id = after_id if after_id <= newest_id else newest_id - 1
        while True:
            follower.woken.clear()
            if follower.stored:
                follower.stored = False
                closed = self._closed
                job, events = await asyncio.to_thread(self._queue.job_and_events, job_id, last_id)
                for event in events:
                    assert event.id is not None  # it is stored
                    last_id = event.id
                    yield event
                if job.status in ENDED or closed:
                    return
            elif follower.fresh is not None:
                job, follower.fresh = follower.fresh, None
                yield JobEvent(id=None, kind=EventKind.PROGRESS, job=job, created_at=now())
            else:
                try:
                    await asyncio.wait_for(follower.woken.wait(), _RECHECK_SECONDS)
                except TimeoutError:
                    follower.stored = True
