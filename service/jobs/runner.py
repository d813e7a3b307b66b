"""The jobs of one server, as the rest of it sees them: asked for, cancelled, looked at, followed. On its loop.

What is asked for is checked and queued (jobs/submission.py); what is queued is run (jobs/dispatch.py). Calls on disk
and database run in threads; llama.cpp is in the children alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import structlog

from service.domain.catalog import LevelPlan, Variant
from service.domain.errors import BlobCorrupt, ShuttingDown
from service.domain.jobs import (
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateSpec,
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
from service.domain.recipes import Recipe, check
from service.domain.steps_back import LADDER
from service.jobs.admission import has_importance, is_stock, recipe_of
from service.jobs.assignments.bench import Bench
from service.jobs.dispatch import Dispatcher
from service.jobs.events import Followers
from service.jobs.mending import remedy_for
from service.jobs.options import RunnerOptions
from service.jobs.planning import Planner
from service.jobs.queue import JobQueue
from service.jobs.run import Halt
from service.jobs.submission import canonical, enqueue, in_order
from service.store import care
from service.store.stores import Stores

_CANCEL_SECONDS = 10.0
_FROM_NOW = sys.maxsize

_log = structlog.get_logger("jobs")


class JobRunner:
    """The jobs of one server. All methods are called on its event loop."""

    def __init__(self, queue: JobQueue, stores: Stores, options: RunnerOptions) -> None:
        self._queue = queue
        self._stores = stores
        self._options = options
        self._planner = Planner(options.argv, stores, options.plan_seconds)
        self._followers = Followers(queue)
        self._dispatcher = Dispatcher(
            queue, stores, options, self._followers, bench_of=self._bench, submit=self._submit
        )
        self._stopping = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the server before left running, and begin to work. The blob store has been started."""
        await asyncio.to_thread(self._stores.derived.start)
        recovered = await asyncio.to_thread(self._queue.recover)
        if recovered:
            _log.warning("jobs recovered after the server went down", jobs=recovered)
        await asyncio.to_thread(self._queue.prune, self._options.keep_ended)
        self._dispatcher.start()

    async def stop(self) -> None:
        """End the running children; their jobs go back to the queue. Followers get what is stored, then their end."""
        self._stopping = True
        await self._dispatcher.stop()
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
        run = self._dispatcher.run_of(job_id)
        if run is not None:  # else it was claimed this moment, and sees the wish before it begins
            await run.end(Halt.CANCEL)
        return await self.wait(job_id, _CANCEL_SECONDS)

    async def begin(self, asked: JobSpec) -> tuple[Job, bool]:
        """As the `submit_...` of its kind, and whether the job is new: else it was under way for somebody before."""
        self._check_open()
        spec = await asyncio.to_thread(canonical, asked, self._stores)
        if isinstance(spec, QuantizeSpec) and not is_stock(spec):
            await self._plan_levels(spec)
        if isinstance(spec, QuantizeSpec) and spec.until is not None:
            spec = await asyncio.to_thread(in_order, spec, self._bench())
        job, is_new = await asyncio.to_thread(enqueue, spec, self._queue, self._bench())
        self._followers.stored(job.id)
        self._dispatcher.wake()
        return job, is_new

    async def _submit(self, asked: JobSpec) -> Job:
        return (await self.begin(asked))[0]

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

    def is_followed(self, job_id: str) -> bool:
        """Whether anybody waits for the job, or listens to its events, now."""
        return self._followers.has(job_id)
