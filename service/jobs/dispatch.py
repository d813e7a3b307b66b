"""Runs queued jobs, lane by lane, each to its end: claimed, run, cleaned up after, its end stored. Server process.

    claim -> run (jobs/run.py) -> finish
               └── its child dies, it is cancelled, or the server stops: temps removed, then
                   failed | cancelled | queued again

One loop, which never blocks on disk or database: those calls run in threads. Nothing that goes wrong with one job may
end the loop, nor keep the place of its lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog

from service.domain.errors import InternalError, InvalidModel, QuantryError
from service.domain.jobs import ImportSpec, Job, JobError, JobSpec, JobStatus
from service.jobs.assignments.bench import Bench
from service.jobs.assignments.imports import discard_refused_upload
from service.jobs.assignments.verify import VerifyAssignment
from service.jobs.events import Followers
from service.jobs.lanes import Lane, kinds_in, lane_of
from service.jobs.mending import remedy_for
from service.jobs.options import RunnerOptions
from service.jobs.queue import JobQueue
from service.jobs.run import Halt, Halted, Run, RunOptions
from service.jobs.transfers import Transfers, is_gone_on_with
from service.store.stores import Stores

_LOOK_AGAIN_SECONDS = 15.0
_STOP_SECONDS = 20.0
_FINISH_PAUSE_SECONDS = 1.0
_MOST_FINISH_PAUSE_SECONDS = 15.0
_FINISH_TRIES_AT_STOP = 5

_log = structlog.get_logger("jobs")


class Dispatcher:
    """The runs of one server. All methods are called on its event loop."""

    def __init__(
        self,
        queue: JobQueue,
        stores: Stores,
        options: RunnerOptions,
        followers: Followers,
        *,
        bench_of: Callable[[Job], Bench],
        submit: Callable[[JobSpec], Awaitable[Job]],
    ) -> None:
        """`bench_of` makes the place where a claimed job works; `submit` queues the jobs that mend what one found."""
        self._queue = queue
        self._stores = stores
        self._options = options
        self._followers = followers
        self._bench_of = bench_of
        self._submit = submit
        self._transfers = Transfers(queue, stores.partials)
        self._runs: dict[str, Run] = {}
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.create_task(self._dispatch(), name="jobs")

    def wake(self) -> None:
        """A job was queued."""
        self._woken.set()

    def run_of(self, job_id: str) -> Run | None:
        """The run of a job that this server is working on."""
        return self._runs.get(job_id)

    async def stop(self) -> None:
        """End the running children; their jobs go back to the queue."""
        self._stopping = True
        self.wake()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=_STOP_SECONDS)
        tasks = {run.task for run in self._runs.values() if run.task is not None}
        await asyncio.gather(*(run.end(Halt.STOP) for run in list(self._runs.values())))
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)

    async def _dispatch(self) -> None:
        while not self._stopping:
            self._woken.clear()
            for lane in Lane:
                try:
                    await self._fill(lane)
                except Exception:
                    # A full disk or a locked database passes; the queue must outlive it.
                    _log.exception("no job could be claimed; trying again", lane=lane)
            try:
                await asyncio.wait_for(self._woken.wait(), _LOOK_AGAIN_SECONDS)
            except TimeoutError:
                continue

    async def _fill(self, lane: Lane) -> None:
        """Begin jobs of a lane until it is full or none waits."""
        places = {Lane.WORK: self._options.concurrency, Lane.PULL: self._options.pulls, Lane.CARE: 1}[lane]
        while not self._stopping and sum(lane_of(run.job.kind) is lane for run in self._runs.values()) < places:
            job = await asyncio.to_thread(self._queue.claim, kinds_in(lane))
            if job is None:
                break
            self._transfers.begin(job.id, job.spec)
            run = self._runs[job.id] = self._run_of(job)
            run.task = asyncio.create_task(self._run(run), name=job.id)

    def _run_of(self, job: Job) -> Run:
        options = RunOptions(
            self._options.argv,
            self._options.stall_seconds,
            self._options.is_serving,
            partial(self._transfers.found, job.id),
        )
        return Run(job, self._bench_of(job), self._queue, self._followers, options)

    async def _run(self, run: Run) -> None:
        self._followers.stored(run.job.id)
        try:
            status, error = await self._outcome(run)
            in_use = frozenset[Path]().union(
                *(other.bench.derived for other in self._runs.values() if other is not run)
            )
            await asyncio.to_thread(self._clean_up, run, status, error, in_use)
            await self._transfers.end(run.job.id, keep=is_gone_on_with(status, error, run.result()))
            await self._finish(run, status, error)
        finally:
            del self._runs[run.job.id]
            self._followers.stored(run.job.id)
            self.wake()

    async def _outcome(self, run: Run) -> tuple[JobStatus, JobError | None]:
        """Carry the job out: how it ended. Raises nothing."""
        try:
            if await asyncio.to_thread(self._queue.cancel_requested, run.job.id):
                run.halt = Halt.CANCEL
            await run.execute()
            if isinstance(run.assignment, VerifyAssignment) and run.assignment.repairs:
                await self._mend(run.assignment)
        except Halted:
            return (JobStatus.CANCELLED if run.halt is Halt.CANCEL else JobStatus.QUEUED), None
        except QuantryError as problem:
            return JobStatus.FAILED, JobError(problem.code, problem.message)
        except Exception:
            _log.exception("a job failed on our own mistake", job=run.job.id)
            message = "The server made a mistake on this job; its log has the details. Report it, please."
            return JobStatus.FAILED, JobError(InternalError.code, message)
        return JobStatus.SUCCEEDED, None

    async def _mend(self, verified: VerifyAssignment) -> None:
        """Have what was found damaged made or fetched again, each by a job of its own."""
        for digest in verified.damaged:
            remedy = await asyncio.to_thread(remedy_for, digest, self._stores)
            if isinstance(remedy, str):
                verified.note_remedy(digest, f"is damaged: {remedy}")
                continue
            try:
                job = await self._submit(remedy)
            except QuantryError as problem:
                verified.note_remedy(digest, f"is damaged and cannot be mended now: {problem.message}")
            else:
                verified.note_remedy(digest, f"is damaged; {job.id} mends it", job.id)

    def _clean_up(self, run: Run, status: JobStatus, error: JobError | None, in_use: frozenset[Path]) -> None:
        """Remove what only this run needed; what a cancelled job has begun, too; an upload that is refused.

        Derived files that are `in_use` by other runs stay. Raises nothing: the job's end must be told all the same, and
        the next start removes what is left.
        """

        def remove_files() -> None:
            for temp in self._stores.blobs.incoming.glob(f"{run.job.id}-*"):
                temp.unlink(missing_ok=True)
            if status is JobStatus.CANCELLED:
                self._stores.derived.discard(run.begun - in_use)
            self._stores.derived.prune(in_use)

        def discard_refused() -> None:
            if error is not None and error.code == InvalidModel.code and isinstance(run.job.spec, ImportSpec):
                discard_refused_upload(run.job.spec, self._stores)

        steps = [remove_files, discard_refused]
        if status is not JobStatus.QUEUED:
            steps.append(run.settle)
        for step in steps:
            try:
                step()
            except Exception:
                _log.exception("not all that a job leaves could be removed", job=run.job.id)

    async def _finish(self, run: Run, status: JobStatus, error: JobError | None) -> None:
        """Store the end of a job, however long the database cannot take it; a server that stops gives up soon.

        A job that is left running there is recovered at the next start, and finds what it has made.
        """
        tries, pause_seconds = 0, _FINISH_PAUSE_SECONDS
        while True:
            try:
                await asyncio.to_thread(self._write_end, run, status, error)
                return
            except Exception:
                _log.exception("the end of a job could not be stored; trying again", job=run.job.id, status=status)
            tries += 1
            if self._stopping and tries >= _FINISH_TRIES_AT_STOP:
                return
            await asyncio.sleep(_FINISH_PAUSE_SECONDS if self._stopping else pause_seconds)
            pause_seconds = min(2 * pause_seconds, _MOST_FINISH_PAUSE_SECONDS)

    def _write_end(self, run: Run, status: JobStatus, error: JobError | None) -> None:
        if status is JobStatus.QUEUED:
            self._queue.release(run.job.id, run.steps())
            return
        if run.meter is not None:
            run.meter.end(status)
        self._queue.finish(run.job.id, status, steps=run.steps(), result=run.result(), error=error)
        self._queue.prune(self._options.keep_ended)
