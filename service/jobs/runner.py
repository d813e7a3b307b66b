"""Runs queued jobs, each in a child process: progress in, cancel out, files committed. Server process, one loop.

    claim -> prepare (what is left to do) -> child -> commit each file as it comes -> finish
                                               └── dies, is cancelled, or the server stops: temps removed, then
                                                   failed | cancelled | queued again

The loop never blocks on disk or database: those calls run in threads. llama.cpp is in the child alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import structlog

from service.children import child_argv
from service.domain.errors import (
    Busy,
    DiskFull,
    InternalError,
    InvalidModel,
    JobChildDied,
    QuantryError,
    ShuttingDown,
    by_code,
)
from service.domain.jobs import ImportSpec, Job, JobError, JobEvent, JobStatus, QuantizeSpec, Step
from service.frames import BadFrame
from service.jobs.assignments import Assignment, discard_refused_upload, prepare
from service.jobs.child import Child, death
from service.jobs.events import Followers
from service.jobs.messages import Done, Failed, Made, Progress
from service.jobs.progress import Meter
from service.jobs.queue import JobQueue
from service.jobs.submission import enqueue_import, enqueue_quantize
from service.store.blobs import BlobStore
from service.store.catalog import Catalog

_STORE_EVERY_SECONDS = 0.5
_PUBLISH_EVERY_SECONDS = 0.1
_LOOK_AGAIN_SECONDS = 15.0
_STOP_SECONDS = 20.0
_CANCEL_SECONDS = 10.0
_FINISH_TRIES = 5
_FINISH_PAUSE_SECONDS = 1.0
_FROM_NOW = sys.maxsize

_log = structlog.get_logger("jobs")


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """`threads` 0: all cores. A child silent for `stall_seconds` is killed: one tensor never takes that long."""

    concurrency: int = 1
    argv: tuple[str, ...] = child_argv("service.jobs.steps")
    threads: int = 0
    niceness: int = 19
    stall_seconds: float = 3600.0
    keep_ended: int = 1000  # jobs in the history


class _Halt(Enum):
    """Why a run is being ended from outside."""

    CANCEL = auto()
    STOP = auto()


class _Halted(Exception):
    """The run was ended from outside before it was done."""


@dataclass(slots=True, eq=False)
class _Run:
    job: Job
    assignment: Assignment | None = None
    meter: Meter | None = None
    child: Child | None = None
    halt: _Halt | None = None
    started_at: float = field(default_factory=time.monotonic)
    stored_at: float = 0.0
    published_at: float = 0.0
    task: asyncio.Task[None] | None = None

    def is_halted(self) -> bool:
        return self.halt is not None

    def result(self) -> tuple[str, ...]:
        """What is there by now, also where the job is not done."""
        return () if self.assignment is None else self.assignment.result()

    def steps(self) -> tuple[Step, ...]:
        return self.job.steps if self.meter is None else self.meter.steps


class JobRunner:
    """The jobs of one server. All methods are called on its event loop."""

    def __init__(self, queue: JobQueue, catalog: Catalog, blobs: BlobStore, options: RunnerOptions) -> None:
        self._queue = queue
        self._catalog = catalog
        self._blobs = blobs
        self._options = options
        self._followers = Followers(queue)
        self._runs: dict[str, _Run] = {}
        self._woken = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopping = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the server before left running, and begin to work. The blob store has been started."""
        recovered = await asyncio.to_thread(self._queue.recover)
        if recovered:
            _log.warning("jobs recovered after the server went down", jobs=recovered)
        await asyncio.to_thread(self._queue.prune, self._options.keep_ended)
        self._dispatcher = asyncio.create_task(self._dispatch(), name="jobs")

    async def stop(self) -> None:
        """End the running children; their jobs go back to the queue. Followers get what is stored, then their end."""
        self._stopping = True
        self._woken.set()
        if self._dispatcher is not None:
            await asyncio.wait({self._dispatcher}, timeout=_STOP_SECONDS)
        tasks = {run.task for run in self._runs.values() if run.task is not None}
        await asyncio.gather(*(self._halt(run, _Halt.STOP) for run in list(self._runs.values())))
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        self._followers.close()

    # --- asking for work -----------------------------------------------------------------------------------------

    async def submit_import(self, spec: ImportSpec) -> Job:
        """Queue an import, or find the one under way for the same file and name.

        Raises InvalidName, InvalidParameter, BlobNotFound, DiskFull, QueueFull, ShuttingDown.
        """
        self._check_open()
        return await self._announce(await asyncio.to_thread(enqueue_import, spec, self._queue, self._blobs))

    async def submit_quantize(self, spec: QuantizeSpec) -> Job:
        """Queue the levels of one variant, or find the job under way for the same. Levels that are there count as done.

        Raises UnknownQuantization, ModelNotFound, NameTaken, LossySource, ImportanceMatrixRequired,
        QuantizationNotApplicable, BlobCorrupt, DiskFull, QueueFull, ShuttingDown.
        """
        self._check_open()
        job = await asyncio.to_thread(enqueue_quantize, spec, self._queue, self._catalog, self._blobs)
        return await self._announce(job)

    async def cancel(self, job_id: str) -> Job:
        """Cancel: at once when queued, else once its child is gone. Files that are finished stay.

        Raises JobNotFound, JobFinished.
        """
        job = await asyncio.to_thread(self._queue.request_cancel, job_id)
        self._followers.stored(job_id)
        if job.status is not JobStatus.RUNNING:
            return job
        run = self._runs.get(job_id)
        if run is not None:  # else it was claimed this moment, and sees the wish before it begins
            await self._halt(run, _Halt.CANCEL)
        return await self.wait(job_id, _CANCEL_SECONDS)

    # --- looking on ----------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job:
        """One job as stored. Raises JobNotFound."""
        return await asyncio.to_thread(self._queue.get, job_id)

    async def list(self, status: JobStatus | None = None, limit: int = 100) -> list[Job]:
        """The newest jobs first."""
        return await asyncio.to_thread(self._queue.list, status, limit)

    async def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs are kept in each status."""
        return await asyncio.to_thread(self._queue.counts)

    async def wait(self, job_id: str, timeout_seconds: float) -> Job:
        """The job once it has ended, or as it stands after `timeout_seconds`. Raises JobNotFound."""
        try:
            async with asyncio.timeout(timeout_seconds), aclosing(self._followers.follow(job_id, _FROM_NOW)) as events:
                async for _ in events:
                    pass
        except TimeoutError:
            pass
        return await self.get(job_id)

    def subscribe(self, job_id: str, after_id: int = 0) -> AsyncGenerator[JobEvent, None]:
        """The events after `after_id`, first the stored ones, then as they happen; ends after the job's last one.

        Ids only rise. A progress event that is not stored has none, so that resuming from any id misses nothing that
        is. Close the iterator when done. Raises JobNotFound on the first step.
        """
        return self._followers.follow(job_id, after_id)

    async def _announce(self, job: Job) -> Job:
        self._followers.stored(job.id)
        self._woken.set()
        return job

    def _check_open(self) -> None:
        if self._stopping:
            raise ShuttingDown("The server is stopping; try again when it is back.", retry_after_seconds=10)

    # --- running -------------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                while len(self._runs) < self._options.concurrency and not self._stopping:
                    job = await asyncio.to_thread(self._queue.claim)
                    if job is None:
                        break
                    run = self._runs[job.id] = _Run(job)
                    run.task = asyncio.create_task(self._run(run), name=job.id)
            except Exception:
                # A full disk or a locked database passes; the queue must outlive it.
                _log.exception("no job could be claimed; trying again")
            try:
                await asyncio.wait_for(self._woken.wait(), _LOOK_AGAIN_SECONDS)
            except TimeoutError:
                continue

    async def _run(self, run: _Run) -> None:
        job_id = run.job.id
        self._followers.stored(job_id)
        status = JobStatus.SUCCEEDED
        error: JobError | None = None
        try:
            if await asyncio.to_thread(self._queue.cancel_requested, job_id):
                run.halt = _Halt.CANCEL
            await self._execute(run)
        except _Halted:
            status = JobStatus.CANCELLED if run.halt is _Halt.CANCEL else JobStatus.QUEUED
        except QuantryError as problem:
            status, error = JobStatus.FAILED, JobError(problem.code, problem.message)
            if isinstance(problem, InvalidModel) and isinstance(run.job.spec, ImportSpec):
                await asyncio.to_thread(discard_refused_upload, run.job.spec, self._catalog, self._blobs)
        except Exception:
            _log.exception("a job failed on our own mistake", job=job_id)
            message = "The server made a mistake on this job; its log has the details. Report it, please."
            status, error = JobStatus.FAILED, JobError(InternalError.code, message)
        try:
            await asyncio.to_thread(self._remove_temps, job_id)
            await self._finish(run, status, error)
        finally:
            del self._runs[job_id]
            self._followers.stored(job_id)
            self._woken.set()

    async def _execute(self, run: _Run) -> None:
        options = self._options
        assignment = run.assignment = await asyncio.to_thread(
            prepare, run.job, self._catalog, self._blobs, options.niceness, options.threads
        )
        run.meter = Meter(assignment.steps, assignment.weights)
        if assignment.task is not None:
            await self._drive(run, run.meter, assignment)

    async def _drive(self, run: _Run, meter: Meter, assignment: Assignment) -> None:
        """Start the child and carry out what it says, to its end. Raises what it failed with, or _Halted."""
        if run.is_halted():
            raise _Halted
        assert assignment.task is not None
        child = run.child = await Child.start(self._options.argv, assignment.task)
        try:
            if run.is_halted():  # it came while the child was being started
                await child.terminate()
            done, failure = await self._listen(run, meter, assignment, child)
        except BaseException:
            await child.terminate()
            await child.ended()
            raise
        status = await child.ended()
        if done:
            return
        if run.is_halted():
            raise _Halted
        if failure is not None:
            raise failure
        _log.warning("a job's child died", job=run.job.id, status=status, stderr=child.stderr_tail[-2000:])
        raise death(run.job.kind, status, child.assertion)

    async def _listen(
        self, run: _Run, meter: Meter, assignment: Assignment, child: Child
    ) -> tuple[bool, QuantryError | None]:
        """Carry out what the child says until it says no more: (whether it is done, what it failed with)."""
        failure: QuantryError | None = None
        try:
            async for message in child.messages(self._options.stall_seconds):
                match message:
                    case Progress():
                        meter.advance(assignment.step_of(message.step), message.fraction, message.detail)
                        await self._report(run, meter)
                    case Made():
                        await asyncio.to_thread(assignment.accept, message)
                        meter.complete(assignment.step_of(message.step))
                        await self._report(run, meter, level=True)
                    case Failed():
                        failure = by_code(message.code)(message.message, param=message.param)
                    case Done():
                        return True, None
        except BadFrame as problem:
            _log.error("a job's child broke the protocol", job=run.job.id, problem=str(problem))
            await child.terminate()
            failure = JobChildDied("The job's process wrote something unreadable and was ended; start the job again.")
        except TimeoutError:
            await child.terminate()
            failure = JobChildDied(
                f"The job's process did nothing for {self._options.stall_seconds:.0f} seconds and was ended; start the "
                "job again, on a machine that is less busy."
            )
        return False, failure

    async def _report(self, run: _Run, meter: Meter, *, level: bool = False) -> None:
        """Tell the followers ten times a second at most, the database twice a second and at the end of every level."""
        moment = time.monotonic()
        eta_seconds = meter.eta_seconds(moment - run.started_at)
        run.job = replace(run.job, progress=meter.progress, steps=meter.steps, eta_seconds=eta_seconds)
        if level or moment - run.stored_at >= _STORE_EVERY_SECONDS:
            run.stored_at = run.published_at = moment
            try:
                await asyncio.to_thread(
                    self._queue.update_progress, run.job.id, meter.progress, meter.steps, eta_seconds, level=level
                )
            except (Busy, DiskFull) as problem:
                # A figure that is not stored is no reason to lose the work.
                _log.warning("progress was not stored", job=run.job.id, problem=problem.message)
            self._followers.stored(run.job.id)
        elif moment - run.published_at >= _PUBLISH_EVERY_SECONDS:
            run.published_at = moment
            self._followers.fresh(run.job)

    async def _finish(self, run: _Run, status: JobStatus, error: JobError | None) -> None:
        for _ in range(_FINISH_TRIES):
            try:
                await asyncio.to_thread(self._write_end, run, status, error)
                return
            except Exception:
                # With the database out of reach the job stays running there; the next start recovers it.
                _log.exception("the end of a job could not be stored; trying again", job=run.job.id, status=status)
                await asyncio.sleep(_FINISH_PAUSE_SECONDS)

    def _write_end(self, run: _Run, status: JobStatus, error: JobError | None) -> None:
        if status is JobStatus.QUEUED:
            self._queue.release(run.job.id, run.steps())
            return
        meter = run.meter
        if meter is not None:
            meter.end(status)
        self._queue.finish(run.job.id, status, steps=run.steps(), result=run.result(), error=error)
        self._queue.prune(self._options.keep_ended)

    async def _halt(self, run: _Run, why: _Halt) -> None:
        if run.halt is not _Halt.CANCEL:  # a wish to cancel outlives the stop of the server
            run.halt = why
        if run.child is not None:
            await run.child.terminate()

    def _remove_temps(self, job_id: str) -> None:
        try:
            for temp in self._blobs.incoming.glob(f"{job_id}-*"):
                temp.unlink(missing_ok=True)
        except OSError:
            # The next start removes it; the job's end must be told all the same.
            _log.exception("a temp file could not be removed", job=job_id)
