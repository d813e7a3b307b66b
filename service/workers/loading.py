"""How a variant comes into memory and comes back after a death. Server process, on its loop.

A variant has at most one worker, and one load serves everyone who waits for it. A worker that dies is started again
after a pause; three deaths within a minute give its variant a minute's rest (quarantine).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from service.domain.catalog import Variant
from service.domain.errors import Busy, QuantryError, ShuttingDown, WorkerQuarantined
from service.domain.memory import Placement, Wish, place
from service.workers.ladder import Rung, parse_rung
from service.workers.options import PoolOptions
from service.workers.placing import (
    Level,
    LoadOptions,
    Sizes,
    check_asked,
    check_context,
    refusal,
    without_flash_attention,
)
from service.workers.residents import Residents
from service.workers.slots import DEATHS_TO_QUARANTINE, Slot
from service.workers.supervisor import Worker

log = structlog.get_logger("pool")


class RungMemory(Protocol):
    """Remembers the rung of the launch ladder that held, by machine and blob."""

    def rung(self, machine: str, digest: str) -> str | None:
        """The rung that held last time."""

    def set_rung(self, machine: str, digest: str, rung: str) -> None:
        """Remember it."""


class Loader:
    """Loads variants into workers."""

    def __init__(
        self,
        options: PoolOptions,
        residents: Residents,
        sizes: Sizes,
        *,
        path_of: Callable[[str], Path],
        rungs: RungMemory,
        smaller_levels: Callable[[Variant], Sequence[Level]],
    ) -> None:
        """The functions are those of `Pool`."""
        self._options = options
        self._residents = residents
        self._sizes = sizes
        self._path_of = path_of
        self._rungs = rungs
        self._smaller_levels = smaller_levels
        self.draining = False

    async def stop(self) -> None:
        """End the loads under way; who waits for them gets ShuttingDown."""
        self.draining = True
        loads = [slot.loading for slot in self._residents if slot.loading is not None]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    async def ready_worker(self, slot: Slot, context_length: int | None = None) -> Worker:
        """A worker with at least `context_length` tokens for a request; None: as many as the server gives.

        Nothing has been awaited between its being ready and the return. Raises as `Pool.submit`.
        """
        check_context(slot.variant, context_length)
        context = context_length or 0
        while True:
            rest = slot.quarantine_seconds_left
            if rest:
                raise WorkerQuarantined(
                    f"The worker for {slot.variant.name} died {DEATHS_TO_QUARANTINE} times within a minute and rests. "
                    "Try again later, or use another level; `quantry doctor` says more.",
                    retry_after_seconds=int(rest) + 1,
                )
            if slot.loading is None and slot.worker is not None and slot.worker.is_dying:
                await self._wait(slot, slot.worker.wait_until_over())  # the next one is on its way then
                continue
            ready = slot.ready_worker
            if ready is not None and slot.loading is None and context <= slot.wanted_context:
                return ready
            if slot.loading is None:
                self.begin(slot, context_length=context)
            assert slot.loading is not None
            tried = slot.loading_context
            try:
                await self._wait_for(slot, slot.loading)
            except QuantryError:
                # It may have been for a larger context than this request needs.
                if tried <= self._wish(slot, context).context_length:
                    raise

    async def reload_with(self, slot: Slot, asked: LoadOptions) -> None:
        """Remember what the operator asks, and begin to load the worker anew when it is loaded otherwise."""
        options = self._sizes.context_options(await self._remembered_rung(slot))
        check_asked(slot.variant, asked, flash_attention=options.flash_attention)
        placement = await self._placement(slot, self._sizes.wish(slot.variant, asked))
        slot.asked, slot.wanted_context = asked, 0
        while slot.loading is not None:
            await asyncio.wait([slot.loading])
        ready = slot.ready_worker
        if ready is not None and ready.placement != placement:
            self.begin(slot)

    def begin(self, slot: Slot, *, delay_seconds: float = 0.0, context_length: int = 0) -> None:
        """Begin to load a slot that is not loading, anew where it has a worker."""
        wish = self._wish(slot, context_length)
        slot.loading_context = wish.context_length
        slot.loading = asyncio.create_task(self._load(slot, wish, delay_seconds))
        slot.loading.add_done_callback(lambda task: self._ended(slot, task))

    async def check_fits(self, slot: Slot, reserved_bytes: int) -> None:
        """Raise DoesNotFit where the slot's variant cannot be loaded beside `reserved_bytes`, whatever else goes."""
        await self._placement(slot, self._wish(slot, 0), reserved_bytes)

    async def _remembered_rung(self, slot: Slot) -> Rung:
        """The rung that held for it last time."""
        rung = parse_rung(await asyncio.to_thread(self._rungs.rung, self._options.machine, slot.variant.digest))
        slot.rung = rung
        return rung

    def _wish(self, slot: Slot, context_length: int) -> Wish:
        return self._sizes.wish(slot.variant, slot.asked, max(slot.wanted_context, context_length))

    async def _wait_for(self, slot: Slot, loading: asyncio.Task[Worker]) -> None:
        try:
            # A client that leaves does not stop it.
            await self._wait(slot, asyncio.shield(loading))
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if loading.cancelled() and waiter is not None and not waiter.cancelling():
                raise shutting_down() from None
            raise

    async def _wait(self, slot: Slot, until: Awaitable[object]) -> None:
        """Wait as a request of that slot."""
        slot.waiting += 1
        try:
            await until
        finally:
            slot.waiting -= 1

    def _ended(self, slot: Slot, task: asyncio.Task[Worker]) -> None:
        slot.loading = None
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        # A larger load that came to nothing leaves the worker that is there.
        slot.adapter_room_bytes = 0
        slot.placement = slot.worker.placement if slot.worker is not None else None
        if error is None:
            return
        if isinstance(error, QuantryError):
            slot.last_error = error.message
            log.warning("model not loaded", model=slot.variant.name, code=error.code, reason=error.message)
        else:
            log.error("loading failed", model=slot.variant.name, exc_info=error)

    async def _load(self, slot: Slot, wish: Wish, delay_seconds: float) -> Worker:
        if slot.unloading is not None:
            await slot.unloading
        await asyncio.sleep(delay_seconds)
        remembered = await self._remembered_rung(slot)
        placement = await self._placement(slot, wish, slot.adapter_room_bytes)
        path = await asyncio.to_thread(self._path_of, slot.variant.digest)
        await self._residents.make_room(slot, placement)
        if slot.worker is not None:
            await self._retire(slot, slot.worker, placement)
        worker = Worker(
            name=slot.variant.name,
            path=path,
            placement=placement,
            options=self._options.worker,
            rung=remembered,
            on_death=lambda worker: self._died(slot, worker),
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
        if placement.options.flash_attention and not self._sizes.context_options(worker.rung).flash_attention:
            worker.placement = without_flash_attention(slot.variant.facts, worker.placement)
        slot.wanted_context = max(slot.wanted_context, wish.context_length)
        slot.rung = worker.rung
        slot.became_ready(worker)
        self._residents.note_use(slot)
        if worker.rung != remembered:
            await asyncio.to_thread(self._rungs.set_rung, self._options.machine, slot.variant.digest, str(worker.rung))
        return worker

    async def _placement(self, slot: Slot, wish: Wish, reserved_bytes: int = 0) -> Placement:
        """How the wish is fulfilled beside `reserved_bytes`. Raises DoesNotFit with what would fit."""
        variant, options = slot.variant, self._sizes.context_options(await self._remembered_rung(slot))
        budget = self._options.memory_budget_bytes - reserved_bytes
        placement = place(variant.facts, wish, budget_bytes=budget, options=options)
        if placement is None:
            levels = await asyncio.to_thread(self._smaller_levels, variant)
            raise refusal(variant, wish, budget, options, levels)
        return placement

    async def _retire(self, slot: Slot, worker: Worker, placement: Placement) -> None:
        """End a worker that is to be loaded otherwise, after its requests; new ones wait for the next worker.

        The slot keeps the memory for `placement`.
        """
        try:
            await asyncio.wait_for(worker.wait_until_idle(), self._options.queue_timeout_seconds)
        except TimeoutError:
            raise Busy(
                f"{slot.variant.name} is to be loaded with another context and has long requests running. Try again "
                "later, or raise QUANTRY_QUEUE_TIMEOUT_SECONDS.",
                retry_after_seconds=5,
            ) from None
        log.info("loading anew", model=slot.variant.name, context_length=slot.loading_context)
        await worker.stop()
        slot.clear(promised=placement)

    def _died(self, slot: Slot, worker: Worker) -> None:
        slot.last_error = worker.last_error
        slot.clear(promised=slot.placement if slot.loading is not None else None)
        self._count_death(slot)
        if not slot.quarantine_seconds_left and not self.draining and slot.loading is None:
            self.begin(slot, delay_seconds=slot.backoff_seconds)

    def _count_death(self, slot: Slot) -> None:
        if slot.count_death():
            log.error("worker quarantined", model=slot.variant.name, seconds=slot.quarantine_seconds_left)


def shutting_down() -> ShuttingDown:
    """What requests get that the server has no time for any more."""
    return ShuttingDown("The server is shutting down; try again later.", retry_after_seconds=5)
