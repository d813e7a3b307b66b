"""Which variant is in memory where: admit, load, evict, route, drain. In the server process, on its event loop.

A variant has at most one worker. Loads are admitted under a memory budget: the least recently used idle worker makes
room, a busy one never. A worker that dies is started again after a pause; three deaths within a minute give its
variant a minute's rest (quarantine).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, overload

import structlog

from service.domain.adapters import MAX_ADAPTERS
from service.domain.catalog import Adapter, Variant
from service.domain.errors import (
    BlobCorrupt,
    Busy,
    Conflict,
    DoesNotFit,
    LoadFailed,
    QuantryError,
    QueueFull,
    ShuttingDown,
    WorkerQuarantined,
)
from service.domain.generation import EmbeddingRequest, Embeddings, GenerationRequest
from service.domain.memory import (
    CacheChoice,
    ContextOptions,
    MemoryNeed,
    Placement,
    Wish,
    bounded_context,
    largest_context,
    memory_need,
    place,
    smallest_need,
)
from service.workers.ladder import Rung, flags, parse_rung
from service.workers.placing import (
    Level,
    LoadOptions,
    check_asked,
    check_context,
    refusal,
    wish_for,
    without_flash_attention,
)
from service.workers.questions import (
    Answer,
    Describe,
    Description,
    Detokenize,
    Infill,
    Question,
    Render,
    Rendered,
    Text,
    Tokenize,
    Tokens,
)
from service.workers.slots import DEATHS_TO_QUARANTINE, HeldAdapter, Slot, WorkerStatus
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
    """What the pool may use. `context_length`, `parallel` and the cache's types are defaults for each variant."""

    worker: WorkerOptions
    machine: str
    context_length: int
    parallel: int
    memory_budget_bytes: int
    max_loaded_models: int
    max_queued_requests: int
    keep_alive_seconds: float
    queue_timeout_seconds: float
    cache_type_k: CacheChoice = CacheChoice.F16
    cache_type_v: CacheChoice = CacheChoice.F16
    flash_attention: bool = True


class Pool:
    """All workers of this server."""

    def __init__(
        self,
        options: PoolOptions,
        *,
        path_of: Callable[[str], Path],
        rungs: RungMemory,
        smaller_levels: Callable[[Variant], Sequence[Level]] = lambda _variant: (),
        on_use: Callable[[str], None] = lambda _digest: None,
    ) -> None:
        """`path_of` gives the file of a blob digest; `smaller_levels` what else there is of a model.

        `on_use` hears of the blobs that are loaded and unloaded. All three may block.
        """
        self._on_use = on_use
        self._notes: set[asyncio.Task[None]] = set()
        self._options = options
        self._smaller_levels = smaller_levels
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
        await asyncio.gather(*self._notes)

    # --- requests ----------------------------------------------------------------------------------------------

    async def submit(
        self,
        variant: Variant,
        request: GenerationRequest,
        draft: Variant | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Stream:
        """Start a generation, loading the variant first where needed, anew when the request asks for more context.

        `draft` is the smaller variant that `request.draft` names; `adapters` are those that `request.adapters` names,
        by their digests.

        Raises QueueFull, Busy, DoesNotFit, LoadFailed, WorkerQuarantined, BlobCorrupt, ShuttingDown, Conflict for an
        adapter that is not for this variant, and InvalidParameter for more context than the model has. Cancelling this
        call gives the place in the queue back.
        """
        self._refuse_when_draining()
        self._refuse_when_full()
        started = time.monotonic()
        slot = self._slot(variant)
        before = slot.ready_worker
        worker = await self._ready_worker(slot, request.context_length)
        while not await self._has_adapters(slot, worker, adapters):
            worker = await self._ready_worker(slot, request.context_length)
        slot.last_used = time.monotonic()
        load_seconds = 0.0 if worker is before else slot.last_used - started
        if draft is None:
            return worker.submit(request, load_seconds)
        draft_path = await asyncio.to_thread(self._path_of, draft.digest)
        self._promise_draft(slot, draft)
        return worker.submit(request, load_seconds, draft_path)

    async def embed(self, variant: Variant, request: EmbeddingRequest) -> Embeddings:
        """The vectors of the texts, loading the variant first where needed. Cancelling this call cancels the work.

        Raises as `submit` does, WorkerDied, and what the variant's worker refuses.
        """
        self._refuse_when_draining()
        self._refuse_when_full()
        slot = self._slot(variant)
        worker = await self._ready_worker(slot)
        slot.last_used = time.monotonic()
        return await worker.embed(request)

    @overload
    async def ask(self, variant: Variant, question: Tokenize | Infill) -> Tokens: ...

    @overload
    async def ask(self, variant: Variant, question: Detokenize) -> Text: ...

    @overload
    async def ask(self, variant: Variant, question: Render) -> Rendered: ...

    @overload
    async def ask(self, variant: Variant, question: Describe) -> Description: ...

    async def ask(self, variant: Variant, question: Question) -> Answer:
        """What the variant's worker says about words and tokens, loading the variant first where needed.

        The answer is of the kind that the question names. Raises as `embed` does.
        """
        self._refuse_when_draining()
        self._refuse_when_full()
        slot = self._slot(variant)
        worker = await self._ready_worker(slot)
        slot.last_used = time.monotonic()
        return await worker.ask(question)

    async def load(self, variant: Variant, asked: LoadOptions | None = None) -> None:
        """Have the variant in memory when this returns; with `asked`, loaded so, now and until it is unloaded by hand.

        Raises as `submit` does. A worker that is loaded otherwise ends its requests first and is started anew.
        """
        self._refuse_when_draining()
        slot = self._slot(variant)
        if asked is not None:
            await self._reload_with(slot, asked)
        await self._ready_worker(slot)
        slot.last_used = time.monotonic()

    def keep(self, variant: Variant, seconds: float) -> None:
        """Keep the variant in memory for that long from now, and after each request, until it is unloaded.

        `seconds` math.inf: for ever.
        """
        slot = self._slot(variant)
        slot.keep_alive_seconds = seconds
        slot.last_used = time.monotonic()

    def keep_alive_seconds(self, digest: str) -> float:
        """For how long the variant with that blob stays in memory after its last request."""
        slot = self._slots.get(digest)
        asked = None if slot is None else slot.keep_alive_seconds
        return self._options.keep_alive_seconds if asked is None else asked

    async def unload(self, variant: Variant) -> bool:
        """Take the variant out of memory once its requests have ended; False when it was not loaded, nor loading.

        Requests that wait for a load under way run first: they were accepted.
        """
        slot = self._slots.get(variant.digest)
        if slot is not None:
            slot.asked = LoadOptions()
        if slot is None or (slot.worker is None and slot.loading is None):
            return False
        while slot.loading is not None or slot.waiting or slot.active:
            if slot.loading is None and slot.worker is not None and slot.active:
                await slot.worker.wait_until_idle()
            else:
                await asyncio.sleep(_POLL_SECONDS)
        await self._unload(slot)
        return True

    async def unload_blob(self, digest: str) -> bool:
        """As `unload`, for whatever variant of that blob is in memory."""
        slot = self._slots.get(digest)
        return slot is not None and await self.unload(slot.variant)

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
        """What serving one request of `context` tokens takes; without `context`, what this server would reserve.

        When it does not fit, the least that it would take.
        """
        wish = self._default_wish
        if context is not None:
            wish = replace(wish, context_length=context, parallel=1)
        options = self._context_options(Rung.FULL)
        placement = place(variant.facts, wish, budget_bytes=self._options.memory_budget_bytes, options=options)
        return placement.need if placement is not None else smallest_need(variant.facts, wish, options)

    def room_for(self, variant: Variant, context: int, budget_bytes: int) -> tuple[MemoryNeed, int]:
        """What one request of `context` tokens takes, and the largest context within the budget; for advice."""
        wish = replace(self._default_wish, context_length=context, parallel=1)
        options = self._context_options(Rung.FULL)
        placement = place(variant.facts, wish, budget_bytes=budget_bytes, options=options)
        need = placement.need if placement is not None else smallest_need(variant.facts, wish, options)
        return need, largest_context(variant.facts, budget_bytes, wish, options)

    @property
    def memory_held_bytes(self) -> int:
        """What the workers that are loaded take."""
        return sum(slot.memory_bytes for slot in self._slots.values())

    @property
    def is_serving(self) -> bool:
        """Whether any request runs, or waits for its worker."""
        return any(slot.active or slot.waiting for slot in self._slots.values())

    @property
    def memory_budget_bytes(self) -> int:
        """What all workers together may take."""
        return self._options.memory_budget_bytes

    def status(self) -> tuple[WorkerStatus, ...]:
        """Every variant that is, was or shall be in memory since the start."""
        return tuple(
            slot.status(str(self._rung_of(slot)), self.keep_alive_seconds(slot.variant.digest))
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
            raise BlobCorrupt(
                f"The file of {variant.name} is damaged on disk. Repair it (POST /v1/variants/{{ref}}/repair), or "
                "bring the same bytes again."
            )
        slot = self._slots.setdefault(variant.digest, Slot(variant))
        slot.variant = variant  # the same blob may have been renamed
        return slot

    async def _ready_worker(self, slot: Slot, context_length: int | None = None) -> Worker:
        """A worker with at least `context_length` tokens for a request; None: as many as the server gives."""
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
            ready = slot.ready_worker
            if ready is not None and slot.loading is None and context <= slot.wanted_context:
                return ready
            if slot.loading is None:
                self._begin_load(slot, delay_seconds=0.0, context_length=context)
            assert slot.loading is not None
            tried = slot.loading_context
            slot.waiting += 1
            try:
                # One load serves everyone who waits for it; a client that leaves does not stop it.
                await asyncio.shield(slot.loading)
            except QuantryError:
                # It may have been for a larger context than this request needs.
                if tried <= self._wish(slot, context).context_length:
                    raise
            finally:
                slot.waiting -= 1

    async def _reload_with(self, slot: Slot, asked: LoadOptions) -> None:
        """Remember what the operator asks, and begin to load the worker anew when it is loaded otherwise."""
        rung = await self._rung(slot)
        options = self._context_options(rung)
        check_asked(slot.variant, asked, flash_attention=options.flash_attention)
        placement = await self._placement(slot.variant, wish_for(self._default_wish, asked), options)
        slot.asked, slot.wanted_context = asked, 0
        while slot.loading is not None:
            await asyncio.wait([slot.loading])
        ready = slot.ready_worker
        if ready is not None and ready.placement != placement:
            self._begin_load(slot, delay_seconds=0.0)

    def _begin_load(self, slot: Slot, delay_seconds: float, context_length: int = 0) -> None:
        wish = self._wish(slot, context_length)
        slot.loading_context = wish.context_length
        slot.loading = asyncio.create_task(self._load(slot, wish, delay_seconds))
        slot.loading.add_done_callback(lambda task: self._load_ended(slot, task))

    def _load_ended(self, slot: Slot, task: asyncio.Task[Worker]) -> None:
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
        remembered = await self._rung(slot)
        options = self._context_options(remembered)
        placement = await self._placement(slot.variant, wish, options, slot.adapter_room_bytes)
        path = await asyncio.to_thread(self._path_of, slot.variant.digest)
        await self._make_room(slot, placement)
        if slot.worker is not None:
            await self._retire(slot, slot.worker)
            slot.placement = placement
        worker = Worker(
            name=slot.variant.name,
            path=path,
            placement=placement,
            options=self._options.worker,
            rung=remembered,
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
        if placement.options.flash_attention and not self._context_options(worker.rung).flash_attention:
            worker.placement = without_flash_attention(slot.variant.facts, worker.placement)
        slot.wanted_context = max(slot.wanted_context, wish.context_length)
        slot.became_ready(worker)
        self._begin_note(slot)
        if worker.rung != remembered:
            await asyncio.to_thread(self._rungs.set_rung, self._options.machine, slot.variant.digest, str(worker.rung))
        return worker

    async def _retire(self, slot: Slot, worker: Worker) -> None:
        """End a worker that is to be loaded otherwise, after its requests; new ones wait for the next worker."""
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
        slot.clear()

    async def _make_room(self, slot: Slot, placement: Placement) -> None:
        """Wait until the placement fits beside the others, unloading idle ones; the memory is then promised to it."""
        deadline = time.monotonic() + self._options.queue_timeout_seconds
        while True:
            others = [other for other in self._slots.values() if other is not slot and other.placement is not None]
            used = sum(other.memory_bytes for other in others)
            needed = placement.need.total_bytes + slot.adapter_room_bytes
            fits = used + needed <= self._options.memory_budget_bytes
            if fits and len(others) < self._options.max_loaded_models:
                slot.placement = placement  # no await since the sum: nobody else can have taken it
                return
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

    def _promise_draft(self, slot: Slot, draft: Variant) -> None:
        """Give a ready worker the memory for a second, smaller model; it has one at most.

        Raises Conflict for a draft that is no help, DoesNotFit when there is no room for it.
        """
        if slot.draft is not None and slot.draft.digest == draft.digest:
            return
        if draft.digest == slot.variant.digest:
            raise Conflict(f"{draft.name} cannot draft for itself; name a smaller level of it as draft.", param="draft")
        if slot.draft is not None:
            raise Conflict(
                f"{slot.draft.name} drafts for {slot.variant.name} already; use it, or unload the model first.",
                param="draft",
            )
        assert slot.placement is not None, "a ready worker has its memory"
        need = memory_need(draft.facts, slot.placement.cells, slot.placement.parallel)
        free = self._options.memory_budget_bytes - sum(other.memory_bytes for other in self._slots.values())
        # The process is there already.
        needed = need.total_bytes - need.runtime_bytes
        if needed > free:
            raise DoesNotFit(
                f"{draft.name} needs {needed} bytes beside {slot.variant.name} to draft for it, and {max(0, free)} are "
                "free. Use a smaller draft, unload other models, or raise QUANTRY_MEMORY_BUDGET_BYTES.",
                param="draft",
            )
        slot.draft, slot.draft_bytes = draft, needed

    # --- adapters ----------------------------------------------------------------------------------------------

    async def _has_adapters(self, slot: Slot, worker: Worker, adapters: Sequence[Adapter]) -> bool:
        """True when a ready worker has them all, at once. Else it has been worked on, and is to be asked again.

        Raises DoesNotFit, Busy, BlobCorrupt, and Conflict for one that is not for this variant.
        """
        now = time.monotonic()
        missing = []
        for adapter in adapters:
            held = slot.adapters.get(adapter.digest)
            if held is None or held.loading is not None:
                missing.append(adapter)
            else:
                held.last_used = now
        if not missing:
            return True
        slot.waiting += 1
        try:
            for adapter in missing:
                if adapter.digest not in slot.adapters and not await self._room_for_adapter(slot, adapter, adapters):
                    return False
                if slot.ready_worker is not worker or slot.loading is not None:
                    return False  # it has gone meanwhile, or is to be loaded otherwise
                if adapter.digest not in slot.adapters:
                    self._begin_adapter(slot, worker, adapter)
                loading = slot.adapters[adapter.digest].loading
                if loading is not None:
                    # One load serves everyone who waits for it.
                    await asyncio.shield(loading)
        finally:
            slot.waiting -= 1
        return False

    def _begin_adapter(self, slot: Slot, worker: Worker, adapter: Adapter) -> None:
        held = HeldAdapter(adapter.name, adapter.size_bytes, last_used=time.monotonic())
        slot.adapters[adapter.digest] = held
        held.loading = asyncio.create_task(self._load_adapter(slot, worker, adapter))

        def ended(task: asyncio.Task[None]) -> None:
            held.loading = None
            failed = task.cancelled() or task.exception() is not None
            if failed and slot.adapters.get(adapter.digest) is held:
                del slot.adapters[adapter.digest]

        held.loading.add_done_callback(ended)

    async def _load_adapter(self, slot: Slot, worker: Worker, adapter: Adapter) -> None:
        if adapter.corrupt:
            raise BlobCorrupt(
                f"The file of the adapter {adapter.name} is damaged on disk. Delete it and add it again.",
                param="adapters",
            )
        try:
            await worker.load_adapter(adapter.digest, self._path_of(adapter.digest))
        except LoadFailed as error:
            raise Conflict(
                f"The adapter {adapter.name} cannot be used with {slot.variant.name}: {error.message}", param="adapters"
            ) from error
        log.info("adapter loaded", model=slot.variant.name, adapter=adapter.name, size_bytes=adapter.size_bytes)

    async def _room_for_adapter(self, slot: Slot, adapter: Adapter, wanted: Sequence[Adapter]) -> bool:
        """True once there is memory for one more adapter. Others that nobody uses make room for it, then idle models,
        then the cache: the worker is to be loaded anew with less of it, and the answer is False.

        `wanted` are those that the same request names. Raises DoesNotFit, and Busy when all are in use.
        """
        keep = {other.digest for other in wanted}
        budget = self._options.memory_budget_bytes
        while True:
            used = sum(other.memory_bytes for other in self._slots.values()) - slot.adapter_bytes
            held = sum(other.size_bytes for other in slot.adapters.values())
            fits = used + max(slot.adapter_room_bytes, held + adapter.size_bytes) <= budget
            if fits and len(slot.adapters) < MAX_ADAPTERS:
                return True
            if self._drop_adapter(slot, keep):
                continue
            if fits:
                raise Busy(
                    f"{slot.variant.name} has {MAX_ADAPTERS} adapters in memory, all of them in use. Try again later.",
                    retry_after_seconds=5,
                )
            idle = [other for other in self._slots.values() if other is not slot and other.is_idle]
            if not idle:
                break
            await self._unload(min(idle, key=lambda other: other.last_used))
        needed = sum(other.size_bytes for other in wanted)
        if needed <= slot.adapter_room_bytes:
            raise Busy(
                f"The adapters of {slot.variant.name} wait for memory that others hold. Try again later, or raise "
                "QUANTRY_MEMORY_BUDGET_BYTES.",
                retry_after_seconds=5,
            )
        wish = self._wish(slot, 0)
        await self._placement(slot.variant, wish, self._context_options(await self._rung(slot)), needed)
        if slot.loading is None:
            slot.adapter_room_bytes = needed
            self._begin_load(slot, delay_seconds=0.0)
        return False

    def _drop_adapter(self, slot: Slot, keep: set[str]) -> bool:
        """Let go of the adapter that was used least recently, of those that no request names; False without one."""
        worker = slot.ready_worker
        if worker is None:
            return False
        unused = [
            digest
            for digest, held in slot.adapters.items()
            if digest not in keep and held.loading is None and not worker.uses_adapter(digest)
        ]
        if not unused:
            return False
        oldest = min(unused, key=lambda digest: slot.adapters[digest].last_used)
        del slot.adapters[oldest]
        worker.drop_adapter(oldest)
        return True

    @property
    def _default_wish(self) -> Wish:
        options = self._options
        return Wish(options.context_length, options.parallel, options.cache_type_k, options.cache_type_v)

    def _wish(self, slot: Slot, context_length: int) -> Wish:
        """What the slot is loaded with when a request asks for `context_length` tokens."""
        wish = wish_for(self._default_wish, slot.asked, max(slot.wanted_context, context_length))
        return replace(wish, context_length=bounded_context(slot.variant.facts, wish.context_length))

    def _context_options(self, rung: Rung) -> ContextOptions:
        options = self._options
        flash_attention = options.flash_attention and flags(rung, options.worker.gpu_layers).flash_attention
        return ContextOptions(batch_tokens=options.worker.batch_tokens, flash_attention=flash_attention)

    async def _rung(self, slot: Slot) -> Rung:
        return parse_rung(await asyncio.to_thread(self._rungs.rung, self._options.machine, slot.variant.digest))

    async def _placement(
        self, variant: Variant, wish: Wish, options: ContextOptions, reserved_bytes: int = 0
    ) -> Placement:
        """How the wish is fulfilled beside `reserved_bytes`. Raises DoesNotFit with what would fit."""
        budget = self._options.memory_budget_bytes - reserved_bytes
        placement = place(variant.facts, wish, budget_bytes=budget, options=options)
        if placement is None:
            levels = await asyncio.to_thread(self._smaller_levels, variant)
            raise refusal(variant, wish, budget, options, levels)
        return placement

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
                self._begin_note(slot)
        finally:
            slot.clear()
            slot.wanted_context = 0
            slot.adapter_room_bytes = 0
            slot.keep_alive_seconds = None
            slot.unloading = None

    def _begin_note(self, slot: Slot) -> None:
        """Have a use noted; nobody waits for the database."""
        note = asyncio.create_task(self._note_use(slot))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    async def _note_use(self, slot: Slot) -> None:
        try:
            await asyncio.to_thread(self._on_use, slot.variant.digest)
        except Exception:
            # A figure that is not stored is no reason to refuse a request.
            log.exception("a use was not noted", model=slot.variant.name)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            now = time.monotonic()
            for slot in list(self._slots.values()):
                if slot.active or slot.waiting:
                    slot.last_used = now
                elif slot.is_idle and now - slot.last_used > self.keep_alive_seconds(slot.variant.digest):
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

    def _refuse_when_full(self) -> None:
        if self.queue_depth >= self._options.max_queued_requests:
            raise QueueFull(
                f"{self._options.max_queued_requests} requests are waiting already. Try again in a moment, or raise "
                "QUANTRY_MAX_QUEUED_REQUESTS.",
                retry_after_seconds=1,
            )

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise ShuttingDown("The server is shutting down; try again later.", retry_after_seconds=5)
