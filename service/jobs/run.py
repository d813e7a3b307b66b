"""One run of one job: its child started, listened to, ended; what it makes taken in as it comes. Server process.

    prepare (what is left to do) -> child -> take in each outcome -> done
                                       └── dies, or is halted: raises why

Knows the job's row only to report progress; what the end of the run means for the job is the runner's to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

import structlog

from service.domain.errors import Busy, DiskFull, JobChildDied, QuantryError, by_code
from service.domain.jobs import Job, Step
from service.frames import BadFrame
from service.jobs.assignments import assign
from service.jobs.assignments.bench import CHECKPOINT, Assignment, Bench
from service.jobs.assignments.pull import FETCH
from service.jobs.child import Child, death
from service.jobs.events import Followers
from service.jobs.making_way import make_way
from service.jobs.messages import Done, Failed, Progress, Transfer
from service.jobs.progress import Meter
from service.jobs.queue import JobQueue

_STORE_EVERY_SECONDS = 0.5
_PUBLISH_EVERY_SECONDS = 0.1

_log = structlog.get_logger("jobs")


class Halt(Enum):
    """Why a run is being ended from outside."""

    CANCEL = auto()
    STOP = auto()


class Halted(Exception):
    """The run was ended from outside before it was done."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`argv` starts a child. One that is silent for `stall_seconds` is killed. It makes way while `is_serving`.

    `on_transfer` hears of the folder that it fetches into.
    """

    argv: tuple[str, ...]
    stall_seconds: float
    is_serving: Callable[[], bool]
    on_transfer: Callable[[str], None] = lambda _folder: None


class Run:
    """A claimed job at work. `execute` once, on the event loop."""

    def __init__(self, job: Job, bench: Bench, queue: JobQueue, followers: Followers, options: RunOptions) -> None:
        self.job = job
        self.child: Child | None = None
        self.halt: Halt | None = None
        self.task: asyncio.Task[None] | None = None
        self.bench = bench
        self.begun: frozenset[Path] = frozenset()
        """Derived files that only this job has begun."""
        self.meter: Meter | None = None
        self._assignment: Assignment | None = None
        self._queue = queue
        self._followers = followers
        self._options = options
        self._started_at = time.monotonic()
        self._stored_at = 0.0
        self._published_at = 0.0

    @property
    def assignment(self) -> Assignment | None:
        """What the run has to do; None before that is known."""
        return self._assignment

    def result(self) -> tuple[str, ...]:
        """What is there by now, also where the job is not done."""
        return self.job.result if self._assignment is None else self._assignment.result()

    def steps(self) -> tuple[Step, ...]:
        """The steps as they stand."""
        return self.job.steps if self.meter is None else self.meter.steps

    async def end(self, why: Halt) -> None:
        """End the run from outside; returns when its child is gone."""
        if self.halt is not Halt.CANCEL:  # a wish to cancel outlives the stop of the server
            self.halt = why
        if self.child is not None:
            await self.child.terminate()

    async def execute(self) -> None:
        """Do what is left of the job. Raises what it failed with, Halted."""
        assignment = self._assignment = await asyncio.to_thread(self._prepare)
        meter = self.meter = Meter(assignment.steps, assignment.weights)
        if assignment.task is not None:
            await self._drive(meter, assignment)
        await asyncio.to_thread(assignment.conclude)

    def settle(self) -> None:
        """The job has ended: have removed what it is not to leave. Blocks; raises what hinders that."""
        if self._assignment is None or self.meter is None:
            return
        try:
            self._assignment.settle()
        finally:
            _note(self.meter, self._assignment)

    def _prepare(self) -> Assignment:
        assignment = assign(self.job.spec, self.bench)
        # A checkpoint is of use to this job alone, also one that an earlier run of it has left.
        self.begun = frozenset(
            path for path in self.bench.derived if path.name.startswith(CHECKPOINT) or not path.exists()
        )
        self.bench.stores.derived.use(self.bench.derived)
        return assignment

    async def _drive(self, meter: Meter, assignment: Assignment) -> None:
        """Start the child and carry out what it says, to its end."""
        if self._is_halted():
            raise Halted
        assert assignment.task is not None
        child = self.child = await Child.start(self._options.argv, assignment.task)
        making_way = asyncio.create_task(make_way(child, self._is_in_the_way))
        try:
            if self._is_halted():  # it came while the child was being started
                await child.terminate()
            done, failure = await self._listen(meter, assignment, child)
        except BaseException:
            await child.terminate()
            await child.ended()
            raise
        finally:
            making_way.cancel()
        status = await child.ended()
        if done:
            return
        if self._is_halted():
            raise Halted
        if failure is not None:
            raise failure
        _log.warning("a job's child died", job=self.job.id, status=status, stderr=child.stderr_tail[-2000:])
        raise death(self.job.kind, status, child.assertion)

    async def _listen(self, meter: Meter, assignment: Assignment, child: Child) -> tuple[bool, QuantryError | None]:
        """Carry out what the child says until it says no more: (whether it is done, what it failed with)."""
        failure: QuantryError | None = None
        try:
            async for message in child.messages(self._options.stall_seconds):
                match message:
                    case Progress():
                        meter.advance(assignment.step_of(message.step), message.fraction, message.detail)
                        await self._report(meter)
                    case Transfer():
                        self._options.on_transfer(message.folder)
                    case Failed():
                        failure = by_code(message.code)(message.message, param=message.param)
                    case Done():
                        return True, None
                    case outcome:
                        detail = await asyncio.to_thread(assignment.accept, outcome)
                        meter.complete(assignment.step_of(outcome.step), detail)
                        _note(meter, assignment)
                        await self._report(meter, landed=True)
        except BadFrame as problem:
            _log.error("a job's child broke the protocol", job=self.job.id, problem=str(problem))
            await child.terminate()
            failure = JobChildDied("The job's process wrote something unreadable and was ended; start the job again.")
        except TimeoutError:
            await child.terminate()
            failure = JobChildDied(
                f"The job's process did nothing for {self._options.stall_seconds:.0f} seconds and was ended; start the "
                "job again, on a machine that is less busy."
            )
        return False, failure

    async def _report(self, meter: Meter, *, landed: bool = False) -> None:
        """Tell the followers ten times a second at most, the database twice a second and when something has landed."""
        moment = time.monotonic()
        eta_seconds = meter.eta_seconds(moment - self._started_at)
        self.job = replace(self.job, progress=meter.progress, steps=meter.steps, eta_seconds=eta_seconds)
        if landed:
            self.job = replace(self.job, result=self.result())
        if landed or moment - self._stored_at >= _STORE_EVERY_SECONDS:
            self._stored_at = self._published_at = moment
            result = self.result() if landed else None
            try:
                await asyncio.to_thread(
                    self._queue.update_progress, self.job.id, meter.progress, meter.steps, eta_seconds, result=result
                )
            except (Busy, DiskFull) as problem:
                # A figure that is not stored is no reason to lose the work.
                _log.warning("progress was not stored", job=self.job.id, problem=problem.message)
            self._followers.stored(self.job.id)
        elif moment - self._published_at >= _PUBLISH_EVERY_SECONDS:
            self._published_at = moment
            self._followers.fresh(self.job)

    def _is_in_the_way(self) -> bool:
        """Whether inference goes on that the child slows down: while it fetches it waits for the network."""
        fetches = any(step.name == FETCH and step.progress < 1.0 for step in self.steps())
        return not fetches and self._options.is_serving()

    def _is_halted(self) -> bool:
        return self.halt is not None


def _note(meter: Meter, assignment: Assignment) -> None:
    for remark in assignment.remarks():
        meter.remark(remark.step, remark.detail, left_out=remark.left_out)
