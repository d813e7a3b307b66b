"""Runs queued jobs, each in a child process: progress in, cancel out, results taken in as they come. One loop.

    claim -> run (jobs/run.py) -> finish
               └── its child dies, it is cancelled, or the server stops: temps removed, then
                   failed | cancelled | queued again

Server process. The loop never blocks on disk or database: those calls run in threads. llama.cpp is in the child alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from service.children import child_argv
from service.domain.catalog import LevelPlan, Variant
from service.domain.errors import BlobCorrupt, InternalError, InvalidModel, QuantryError, ShuttingDown
from service.domain.jobs import (
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateSpec,
    EvaluateSpec,
    ImportSpec,
    Job,
    JobError,
    JobEvent,
    JobSpec,
    JobStatus,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    VerifySpec,
)
from service.domain.recipes import Recipe, check
from service.domain.remote import RemoteAccess
from service.domain.steps_back import LADDER
from service.jobs.admission import has_importance, is_stock, recipe_of
from service.jobs.assignments.bench import Bench
from service.jobs.assignments.imports import discard_refused_upload
from service.jobs.assignments.pull import discard_refused_pull
from service.jobs.assignments.verify import VerifyAssignment
from service.jobs.events import Followers
from service.jobs.lanes import Lane, kinds_in, lane_of
from service.jobs.mending import remedy_for
from service.jobs.planning import Planner
from service.jobs.queue import JobQueue
from service.jobs.run import Halt, Halted, Run, RunOptions
from service.jobs.submission import canonical, enqueue, in_order
from service.store import care
from service.store.stores import Stores

_LOOK_AGAIN_SECONDS = 15.0
_STOP_SECONDS = 20.0
_CANCEL_SECONDS = 10.0
_FINISH_TRIES = 5
_FINISH_PAUSE_SECONDS = 1.0
_FROM_NOW = sys.maxsize

_log = structlog.get_logger("jobs")


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """`threads` 0: all cores. A child silent for `stall_seconds` is killed: one tensor never takes that long.

    `concurrency` jobs run at a time, and beside them `pulls` pulls and one job that reads blobs again. While
    `is_serving` says so, jobs make way. `on_damaged` hears, from a thread, of blobs that turn out damaged.
    Pulls fetch with `access`, and take what fits `memory_bytes` where nobody says which level (0: nothing is known).
    """

    concurrency: int = 1
    pulls: int = 1
    argv: tuple[str, ...] = child_argv("service.jobs.steps")
    threads: int = 0
    niceness: int = 19
    stall_seconds: float = 3600.0
    plan_seconds: float = 120.0
    keep_ended: int = 1000  # jobs in the history
    is_serving: Callable[[], bool] = lambda: False
    access: RemoteAccess = field(default_factory=RemoteAccess)
    memory_bytes: int = 0
    on_damaged: Callable[[str], None] = lambda _digest: None


class JobRunner:
    """The jobs of one server. All methods are called on its event loop."""

    def __init__(self, queue: JobQueue, stores: Stores, options: RunnerOptions) -> None:
        self._queue = queue
        self._stores = stores
        self._options = options
        self._planner = Planner(options.argv, stores, options.plan_seconds)
        self._followers = Followers(queue)
        self._runs: dict[str, Run] = {}
        self._woken = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopping = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the server before left running, and begin to work. The blob store has been started."""
        await asyncio.to_thread(self._stores.derived.start)
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
        await asyncio.gather(*(run.end(Halt.STOP) for run in list(self._runs.values())))
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        self._followers.close()

    # --- asking for work -----------------------------------------------------------------------------------------

    async def submit_import(self, spec: ImportSpec) -> Job:
        """Queue an import, or find the one under way for the same file and name.

        Raises InvalidName, InvalidParameter, BlobNotFound, DiskFull, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_quantize(self, spec: QuantizeSpec) -> Job:
        """Queue the levels of one variant, or find the job under way for the same. Levels that are there count as done.

        Raises UnknownQuantization, ModelNotFound, NameTaken, LossySource, ImportanceMatrixRequired,
        QuantizationNotApplicable, BlobCorrupt, InvalidParameter, InvalidName, ImportanceMatrixNotFound,
        DatasetNotFound, DiskFull, QueueFull, ShuttingDown, and what `plan` raises.
        """
        return await self._submit(spec)

    async def submit_calibrate(self, spec: CalibrateSpec) -> Job:
        """Queue an importance matrix; the result of the job is its digest. An equal one that is stored counts as done.

        Raises ModelNotFound, BlobNotFound, BlobCorrupt, DatasetNotFound, InvalidParameter, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_evaluate(self, spec: EvaluateSpec) -> Job:
        """Queue measurements; each card is stored as it is ready. The result is the names of the variants.

        Raises ModelNotFound, BlobCorrupt, DatasetNotFound, InvalidParameter, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_budget(self, spec: BudgetSpec) -> Job:
        """Queue the search for a mix within a budget.

        Raises ModelNotFound, LossySource, BlobCorrupt, DatasetNotFound, ImportanceMatrixNotFound, InvalidParameter,
        InvalidName, DiskFull, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_rebuild(self, spec: RebuildSpec) -> Job:
        """Queue making a variant again from its recipe; `digest_mismatch` ends the job when it comes out different.

        Raises ModelNotFound, BlobNotFound when its source or importance matrix is gone, Conflict for a variant that was
        imported, BlobCorrupt for its source, DiskFull, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_pull(self, spec: PullSpec) -> Job:
        """Queue a pull, or find the one under way for the same address and name. The result is the variant's name.

        `name` "" is the one that goes with the address. Raises InvalidParameter and Forbidden for the address,
        InvalidName, QueueFull, ShuttingDown; what the other server says comes with the job.
        """
        return await self._submit(spec)

    async def submit_adapter(self, spec: AdapterSpec) -> Job:
        """Queue taking in an adapter, or find the job under way for the same; the result of the job is its name.

        Raises InvalidName, ModelNotFound, InvalidParameter, BlobNotFound, BlobCorrupt, Conflict, DiskFull, QueueFull,
        ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_bundle(self, spec: BundleSpec) -> Job:
        """Queue taking in a bundle; the result is the names of its variants. Those whose bytes are there count as done.

        Raises BlobNotFound, InvalidParameter, InvalidName, InvalidModel and DigestMismatch for what is no bundle,
        NameTaken, DiskFull, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def submit_verify(self, spec: VerifySpec) -> Job:
        """Queue reading blobs again, or find the job under way for the same ones.

        The result is the digests of those that are damaged, then with `repair` the ids of the jobs that mend them.
        Raises ModelNotFound, InvalidName, BlobNotFound, QueueFull, ShuttingDown.
        """
        return await self._submit(spec)

    async def repair(self, variant: Variant) -> Job:
        """Queue what makes or fetches a variant's blob again; where it is not known to be damaged, it is read first.

        Raises BlobCorrupt with what its owner can do where there is no such way, and as the jobs for it do.
        """
        if not variant.corrupt and await asyncio.to_thread(self._stores.blobs.has, variant.digest):
            return await self.submit_verify(VerifySpec(models=(variant.name,), repair=True))
        await asyncio.to_thread(care.condemn, self._stores.catalog, self._stores.blobs, variant.digest)
        self._options.on_damaged(variant.digest)
        remedy = await asyncio.to_thread(remedy_for, variant.digest, self._stores)
        if isinstance(remedy, str):
            raise BlobCorrupt(f"{variant.name} is damaged: {remedy}.", param="model")
        return await self._submit(remedy)

    async def plan(
        self, source: Variant, recipes: Sequence[Recipe], *, has_importance: bool = False
    ) -> tuple[LevelPlan, ...]:
        """What each recipe would make of `source`, in their order; in a child, within `plan_seconds`.

        `has_importance`: an importance matrix will be there, also where a recipe does not name it yet. A level that
        cannot be made, or an option that means nothing for this file, has the reason in `error`. Raises
        InvalidParameter for options that no file could have, BlobCorrupt, DeadlineExceeded, JobChildDied, ShuttingDown.
        """
        self._check_open()
        return await self._planner.plan(source, [check(recipe) for recipe in recipes], has_importance=has_importance)

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
            await run.end(Halt.CANCEL)
        return await self.wait(job_id, _CANCEL_SECONDS)

    async def _submit(self, asked: JobSpec) -> Job:
        self._check_open()
        spec = await asyncio.to_thread(canonical, asked, self._stores)
        if isinstance(spec, QuantizeSpec) and not is_stock(spec):
            await self._plan_levels(spec)
        if isinstance(spec, QuantizeSpec) and spec.until is not None:
            spec = await asyncio.to_thread(in_order, spec, self._bench())
        job = await asyncio.to_thread(enqueue, spec, self._queue, self._bench())
        self._followers.stored(job.id)
        self._woken.set()
        return job

    async def _plan_levels(self, spec: QuantizeSpec) -> None:
        """Have the plans that the job will be checked by: those made at import are for other options."""
        source = await asyncio.to_thread(self._stores.catalog.resolve, spec.source_name)
        levels = [recipe_of(label, source, spec.recipe) for label in spec.levels or LADDER]
        await self._planner.plan(source, levels, has_importance=has_importance(spec))

    def _bench(self, job: Job | None = None) -> Bench:
        options = self._options
        bench = Bench(self._stores, threads=options.threads, niceness=options.niceness, plan_of=self._planner.known)
        bench.on_damaged = options.on_damaged
        bench.access, bench.memory_bytes = options.access, options.memory_bytes
        if job is not None:
            bench.job_id, bench.done = job.id, job.result
            bench.said = {
                step.name: step.detail for step in job.steps if step.status is JobStatus.SUCCEEDED and step.detail
            }
        return bench

    def _check_open(self) -> None:
        if self._stopping:
            raise ShuttingDown("The server is stopping; try again when it is back.", retry_after_seconds=10)

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

    async def needed_digests(self) -> frozenset[str]:
        """The blobs that waiting and running jobs need."""
        return await asyncio.to_thread(self._queue.active_digests)

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

    # --- running -------------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                for lane in Lane:
                    await self._fill(lane)
            except Exception:
                # A full disk or a locked database passes; the queue must outlive it.
                _log.exception("no job could be claimed; trying again")
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
            run = self._runs[job.id] = self._run_of(job)
            run.task = asyncio.create_task(self._run(run), name=job.id)

    def _run_of(self, job: Job) -> Run:
        options = RunOptions(self._options.argv, self._options.stall_seconds, self._options.is_serving)
        return Run(job, self._bench(job), self._queue, self._followers, options)

    async def _run(self, run: Run) -> None:
        job_id = run.job.id
        self._followers.stored(job_id)
        status = JobStatus.SUCCEEDED
        error: JobError | None = None
        try:
            if await asyncio.to_thread(self._queue.cancel_requested, job_id):
                run.halt = Halt.CANCEL
            await run.execute()
            if isinstance(run.assignment, VerifyAssignment) and run.assignment.repairs:
                await self._mend(run.assignment)
        except Halted:
            status = JobStatus.CANCELLED if run.halt is Halt.CANCEL else JobStatus.QUEUED
        except QuantryError as problem:
            status, error = JobStatus.FAILED, JobError(problem.code, problem.message)
            if isinstance(problem, InvalidModel) and isinstance(run.job.spec, ImportSpec):
                await asyncio.to_thread(discard_refused_upload, run.job.spec, self._stores)
            if isinstance(problem, InvalidModel) and isinstance(run.job.spec, PullSpec):
                await asyncio.to_thread(discard_refused_pull, run.job.spec, self._stores)
        except Exception:
            _log.exception("a job failed on our own mistake", job=job_id)
            message = "The server made a mistake on this job; its log has the details. Report it, please."
            status, error = JobStatus.FAILED, JobError(InternalError.code, message)
        try:
            others = [other.bench.derived for other in self._runs.values() if other is not run]
            await asyncio.to_thread(self._clean_up, run, status, frozenset[Path]().union(*others))
            await self._finish(run, status, error)
        finally:
            del self._runs[job_id]
            self._followers.stored(job_id)
            self._woken.set()

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

    async def _finish(self, run: Run, status: JobStatus, error: JobError | None) -> None:
        for _ in range(_FINISH_TRIES):
            try:
                await asyncio.to_thread(self._write_end, run, status, error)
                return
            except Exception:
                # With the database out of reach the job stays running there; the next start recovers it.
                _log.exception("the end of a job could not be stored; trying again", job=run.job.id, status=status)
                await asyncio.sleep(_FINISH_PAUSE_SECONDS)

    def _write_end(self, run: Run, status: JobStatus, error: JobError | None) -> None:
        if status is JobStatus.QUEUED:
            self._queue.release(run.job.id, run.steps())
            return
        meter = run.meter
        if meter is not None:
            meter.end(status)
        self._queue.finish(run.job.id, status, steps=run.steps(), result=run.result(), error=error)
        self._queue.prune(self._options.keep_ended)

    def _clean_up(self, run: Run, status: JobStatus, others: frozenset[Path]) -> None:
        """Remove the files that only this run needed; what a cancelled job has begun, too. `others` are in use."""
        if status is not JobStatus.QUEUED:
            run.settle()
        try:
            for temp in self._stores.blobs.incoming.glob(f"{run.job.id}-*"):
                temp.unlink(missing_ok=True)
            if status is JobStatus.CANCELLED:
                self._stores.derived.discard(run.begun - others)
            self._stores.derived.prune(others)
        except OSError:
            # The next start removes it; the job's end must be told all the same.
            _log.exception("a file could not be removed", job=run.job.id)
