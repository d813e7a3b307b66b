"""Which variant is in memory where: admit, load, evict, route, drain. In the server process, on its event loop.

A variant has at most one worker. Loads are admitted under a memory budget: the least recently used idle worker makes
room, a busy one never. A worker that dies is started again after a pause; three deaths within a minute give its
variant a minute's rest (quarantine).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from service.domain.catalog import Variant
from service.domain.errors import (
    BlobCorrupt,
    Busy,
    DoesNotFit,
    QuantryError,
    QueueFull,
    ShuttingDown,
    WorkerQuarantined,
)
from service.domain.generation import GenerationRequest
from service.domain.memory import MemoryNeed, Placement, largest_context, memory_need, place
from service.workers.ladder import Rung, parse_rung
from service.workers.slots import DEATHS_TO_QUARANTINE, Slot, WorkerStatus
from service.workers.stream import Stream
from service.workers.supervisor import Worker, WorkerOptions, WorkerState

log = structlog.get_logger("pool")

_REAP_SECONDS = 0.5
_POLL_SECONDS = 0.05


class RungMemory(Protocol):
    """Remembers the rung of the launch ladder that held, by machine and blob."""

    def rung(self, machine: str, digest: str) -> str | None:
        """The rung that held last time."""

    def set_rung(self, machine: str, digest: str, rung: str) -> None:
        """Remember it."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What the pool may use. `context_length` and `parallel` are per variant."""

    worker: WorkerOptions
    machine: str
    context_length: int
    parallel: int
    memory_budget_bytes: int
    max_loaded_models: int
    max_queued_requests: int
    keep_alive_seconds: float
    queue_timeout_seconds: float


class Pool:
    """All workers of this server."""

    def __init__(self, options: PoolOptions, *, path_of: Callable[[str], Path], rungs: RungMemory) -> None:
        """`path_of` gives the file of a blob digest."""
        self._options = options
        self._path_of = path_of
        self._rungs = rungs
        self._slots: dict[str, Slot] = {}
        self._reaper: asyncio.Task[None] | None = None
        self.draining = False

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin unloading what nobody uses."""
        self._reaper = asyncio.create_task(self._reap())

    def begin_drain(self) -> None:
        """Take no new requests; what runs goes on."""
        self.draining = True

    async def stop(self, drain_seconds: float) -> None:
        """Let running requests end for at most `drain_seconds`, then end every worker."""
        self.begin_drain()
        busy = [asyncio.create_task(slot.worker.wait_until_idle()) for slot in self._slots.values() if slot.worker]
        if busy:
            _, late = await asyncio.wait(busy, timeout=drain_seconds)
            for waiter in late:
                waiter.cancel()
        if self._reaper is not None:
            self._reaper.cancel()
        loads = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        error = ShuttingDown("The server is shutting down; send the request to it again later.", retry_after_seconds=5)
        workers = [slot.worker for slot in self._slots.values() if slot.worker is not None]
        await asyncio.gather(*(worker.stop(error) for worker in workers))

    # --- requests ----------------------------------------------------------------------------------------------

    async def submit(self, variant: Variant, request: GenerationRequest) -> Stream:
        """Start a generation, loading the variant first where needed.

        Raises QueueFull, Busy, DoesNotFit, LoadFailed, WorkerQuarantined, BlobCorrupt or ShuttingDown. Cancelling
        this call gives the place in the queue back.
        """
        self._refuse_when_draining()
        if self.queue_depth >= self._options.max_queued_requests:
            raise QueueFull(
                f"{self._options.max_queued_requests} requests are waiting already. Try again in a moment, or raise "
                "QUANTRY_MAX_QUEUED_REQUESTS.",
                retry_after_seconds=1,
            )
        started = time.monotonic()
        slot = self._slot(variant)
        was_ready = slot.worker is not None and slot.worker.state is WorkerState.READY
        worker = await self._ready_worker(slot)
        slot.last_used = time.monotonic()
        return worker.submit(request, load_seconds=0.0 if was_ready else slot.last_used - started)

    async def load(self, variant: Variant) -> None:
        """Have the variant in memory when this returns."""
        self._refuse_when_draining()
        slot = self._slot(variant)
        await self._ready_worker(slot)
        slot.last_used = time.monotonic()

    async def unload(self, variant: Variant) -> bool:
        """Take the variant out of memory once its requests have ended; False when it was not loaded, nor loading.

        Requests that wait for a load under way run first: they were accepted.
        """
        slot = self._slots.get(variant.digest)
        if slot is None or (slot.worker is None and slot.loading is None):
            return False
        while slot.loading is not None or slot.waiting or slot.active:
            if slot.loading is None and slot.worker is not None and slot.active:
                await slot.worker.wait_until_idle()
            else:
                await asyncio.sleep(_POLL_SECONDS)
        await self._unload(slot)
        return True

    # --- what is there -----------------------------------------------------------------------------------------

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a model or for a free sequence."""
        return sum(slot.queued for slot in self._slots.values())

    def is_loaded(self, digest: str) -> bool:
        """True when a worker is ready with that blob."""
        slot = self._slots.get(digest)
        return slot is not None and slot.worker is not None and slot.worker.state is WorkerState.READY

    def memory_needed(self, variant: Variant, context: int | None = None) -> MemoryNeed:
        """What serving one request of `context` tokens takes; without `context`, what this server would reserve."""
        if context is not None:
            return memory_need(variant.facts, context)
        trained = variant.facts.shape.context_length or self._options.context_length
        return memory_need(variant.facts, min(self._options.context_length, trained) * self._options.parallel)

    @property
    def memory_budget_bytes(self) -> int:
        """What all workers together may take."""
        return self._options.memory_budget_bytes

    def status(self) -> tuple[WorkerStatus, ...]:
        """Every variant that is, was or shall be in memory since the start."""
        return tuple(
            slot.status(str(self._rung_of(slot)), self._options.keep_alive_seconds)
            for slot in self._slots.values()
            if slot.is_known
        )

    def _rung_of(self, slot: Slot) -> Rung:
        if slot.worker is not None:
            return slot.worker.rung
        return parse_rung(self._rungs.rung(self._options.machine, slot.variant.digest))

    # --- loading -----------------------------------------------------------------------------------------------

    def _slot(self, variant: Variant) -> Slot:
        if variant.corrupt:
            raise BlobCorrupt(f"The file of {variant.name} is damaged on disk. Delete it and make or import it again.")
        slot = self._slots.setdefault(variant.digest, Slot(variant))
        slot.variant = variant  # the same blob may have been renamed
        return slot

    async def _ready_worker(self, slot: Slot) -> Worker:
        rest = slot.quarantine_seconds_left
        if rest:
            raise WorkerQuarantined(
                f"The worker for {slot.variant.name} died {DEATHS_TO_QUARANTINE} times within a minute and rests. "
                "Try again later, or use another level; `quantry doctor` says more.",
                retry_after_seconds=int(rest) + 1,
            )
        if slot.worker is not None and slot.worker.state is WorkerState.READY and slot.unloading is None:
            return slot.worker
        if slot.loading is None:
            self._begin_load(slot, delay_seconds=0.0)
        assert slot.loading is not None
        slot.waiting += 1
        try:
            # One load serves everyone who waits for it; a client that leaves does not stop it.
            return await asyncio.shield(slot.loading)
        finally:
            slot.waiting -= 1

    def _begin_load(self, slot: Slot, delay_seconds: float) -> None:
        slot.loading = asyncio.create_task(self._load(slot, delay_seconds))
        slot.loading.add_done_callback(lambda task: self._load_ended(slot, task))

    def _load_ended(self, slot: Slot, task: asyncio.Task[Worker]) -> None:
        slot.loading = None
        if task.cancelled():
            slot.placement = None
            return
        error = task.exception()
        if error is None:
            return
        slot.placement = None
        if isinstance(error, QuantryError):
            slot.last_error = error.message
            log.warning("model not loaded", model=slot.variant.name, code=error.code, reason=error.message)
        else:
            log.error("loading failed", model=slot.variant.name, exc_info=error)

    async def _load(self, slot: Slot, delay_seconds: float) -> Worker:
        if slot.unloading is not None:
            await slot.unloading
        await asyncio.sleep(delay_seconds)
        slot.placement = await self._make_room(slot)
        remembered = await asyncio.to_thread(self._rungs.rung, self._options.machine, slot.variant.digest)
        worker = Worker(
            name=slot.variant.name,
            path=self._path_of(slot.variant.digest),
            placement=slot.placement,
            options=self._options.worker,
            rung=parse_rung(remembered),
            on_death=lambda worker: self._worker_died(slot, worker),
        )
        slot.worker = worker
        try:
            await worker.start()
        except BaseException:
            slot.worker = None
            # A file that llama.cpp refuses kills nothing, and is refused again the same way.
            if worker.deaths_while_loading:
                self._count_death(slot)
            raise
        slot.became_ready(worker)
        if worker.rung != parse_rung(remembered):
            await asyncio.to_thread(self._rungs.set_rung, self._options.machine, slot.variant.digest, str(worker.rung))
        return worker

    async def _make_room(self, slot: Slot) -> Placement:
        """Wait until the variant fits beside the others, unloading idle ones; the memory is then promised to it."""
        placement = self._place(slot.variant)
        deadline = time.monotonic() + self._options.queue_timeout_seconds
        while True:
            others = [other for other in self._slots.values() if other is not slot and other.placement is not None]
            used = sum(other.placement.need.total_bytes for other in others if other.placement is not None)
            fits = used + placement.need.total_bytes <= self._options.memory_budget_bytes
            if fits and len(others) < self._options.max_loaded_models:
                slot.placement = placement  # no await since the sum: nobody else can have taken it
                return placement
            idle = [other for other in others if other.is_idle]
            if idle:
                await self._unload(min(idle, key=lambda other: other.last_used))
            elif time.monotonic() > deadline:
                raise Busy(
                    f"{slot.variant.name} waits for memory that busy models hold. Try again later, unload one, or "
                    "raise QUANTRY_MEMORY_BUDGET_BYTES or QUANTRY_MAX_LOADED_MODELS.",
                    retry_after_seconds=5,
                )
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _place(self, variant: Variant) -> Placement:
        options = self._options
        placement = place(
            variant.facts,
            context_length=options.context_length,
            parallel=options.parallel,
            budget_bytes=options.memory_budget_bytes,
        )
        if placement is not None:
            return placement
        context = min(options.context_length, variant.facts.shape.context_length or options.context_length)
        need = memory_need(variant.facts, context)
        largest = largest_context(variant.facts, options.memory_budget_bytes)
        remedy = (
            f"The largest context that fits is {largest} tokens (QUANTRY_CONTEXT_LENGTH)"
            if largest
            else "No context fits: use a smaller level"
        )
        raise DoesNotFit(
            f"{variant.name} needs {need.total_bytes} bytes at a context of {context} tokens, and the "
            f"memory budget is {options.memory_budget_bytes} bytes. {remedy}, or raise QUANTRY_MEMORY_BUDGET_BYTES."
        )

    # --- unloading and death -----------------------------------------------------------------------------------

    async def _unload(self, slot: Slot) -> None:
        if slot.unloading is None:
            slot.unloading = asyncio.create_task(self._stop_worker(slot))
        # Whoever waits may leave; a worker that is half ended must not be forgotten for that.
        await asyncio.shield(slot.unloading)

    async def _stop_worker(self, slot: Slot) -> None:
        try:
            if slot.worker is not None:
                await slot.worker.stop()
        finally:
            slot.clear()
            slot.unloading = None

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            now = time.monotonic()
            for slot in list(self._slots.values()):
                if slot.active or slot.waiting:
                    slot.last_used = now
                elif slot.is_idle and now - slot.last_used > self._options.keep_alive_seconds:
                    log.info("unloading an idle model", model=slot.variant.name)
                    try:
                        await self._unload(slot)
                    except Exception:
                        log.exception("unloading failed", model=slot.variant.name)

    def _worker_died(self, slot: Slot, worker: Worker) -> None:
        slot.last_error = worker.last_error
        slot.clear()
        self._count_death(slot)
        if not slot.quarantine_seconds_left and not self.draining and slot.loading is None:
            self._begin_load(slot, slot.backoff_seconds)

    def _count_death(self, slot: Slot) -> None:
        if slot.count_death():
            log.error("worker quarantined", model=slot.variant.name, seconds=slot.quarantine_seconds_left)

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise ShuttingDown("The server is shutting down; try again later.", retry_after_seconds=5)
