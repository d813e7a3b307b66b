"""All workers of this server, as the rest of it sees them: requests in, streams and answers out; load and unload.

    request ──admitted──> loading.py ──ready worker──> adapters.py, drafts.py ──> the worker's stream or answer
                             └── residents.py: memory promised, idle variants unloaded

In the server process, on its event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from service.domain.catalog import Adapter, Variant
from service.domain.errors import QueueFull
from service.domain.generation import EmbeddingRequest, Embeddings, GenerationRequest
from service.domain.memory import MemoryNeed
from service.workers.adapters import Adapters
from service.workers.drafts import promise_draft
from service.workers.loading import Loader, RungMemory, shutting_down
from service.workers.options import PoolOptions
from service.workers.placing import Level, LoadOptions, Sizes
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
from service.workers.residents import POLL_SECONDS, Residents
from service.workers.slots import Slot
from service.workers.status import WorkerStatus, status_of
from service.workers.stream import Stream
from service.workers.supervisor import Worker, WorkerState


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
        self._options = options
        self._path_of = path_of
        self._sizes = Sizes(options)
        self._residents = Residents(options, on_use)
        self._loader = Loader(
            options, self._residents, self._sizes, path_of=path_of, rungs=rungs, smaller_levels=smaller_levels
        )
        self._adapters = Adapters(
            self._residents, self._loader, path_of=path_of, memory_budget_bytes=options.memory_budget_bytes
        )

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin unloading what nobody uses."""
        self._residents.start()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused, because the server is about to stop."""
        return self._loader.draining

    def begin_drain(self) -> None:
        """Take no new requests; what runs goes on."""
        self._loader.draining = True

    async def stop(self, drain_seconds: float) -> None:
        """Let running requests end for at most `drain_seconds`, then end every worker."""
        self.begin_drain()
        busy = [asyncio.create_task(slot.worker.wait_until_idle()) for slot in self._residents if slot.worker]
        if busy:
            _, late = await asyncio.wait(busy, timeout=drain_seconds)
            for waiter in late:
                waiter.cancel()
        self._residents.stop_reaping()
        await self._loader.stop()
        workers = [slot.worker for slot in self._residents if slot.worker is not None]
        await asyncio.gather(*(worker.stop(shutting_down()) for worker in workers))
        await self._residents.noted()

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
        slot = self._admit(variant)
        started, before = time.monotonic(), slot.ready_worker
        draft_path = None if draft is None else await asyncio.to_thread(self._path_of, draft.digest)
        worker = await self._loader.ready_worker(slot, request.context_length)
        while not await self._adapters.are_beside(slot, worker, adapters):
            worker = await self._loader.ready_worker(slot, request.context_length)
        # From here on nothing is awaited: the worker, its adapters and its memory are as they were just found.
        slot.last_used = time.monotonic()
        if draft is not None:
            promise_draft(slot, draft, self.memory_budget_bytes - self.memory_held_bytes)
        return worker.submit(request, 0.0 if worker is before else slot.last_used - started, draft_path)

    async def embed(self, variant: Variant, request: EmbeddingRequest) -> Embeddings:
        """The vectors of the texts, loading the variant first where needed. Cancelling this call cancels the work.

        Raises as `submit` does, WorkerDied, and what the variant's worker refuses.
        """
        slot = self._admit(variant)
        worker = await self._worker_of(slot)
        if needed := self._sizes.embedding_bytes(variant, request, worker.rung):
            await self._residents.hold_embeddings(slot, needed)
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
        worker = await self._worker_of(self._admit(variant))
        return await worker.ask(question)

    async def _worker_of(self, slot: Slot) -> Worker:
        worker = await self._loader.ready_worker(slot)
        slot.last_used = time.monotonic()
        return worker

    def _admit(self, variant: Variant) -> Slot:
        """The slot of a variant that one more request may wait for."""
        if self.draining:
            raise shutting_down()
        if self.queue_depth >= self._options.max_queued_requests:
            raise QueueFull(
                f"{self._options.max_queued_requests} requests are waiting already. Try again in a moment, or raise "
                "QUANTRY_MAX_QUEUED_REQUESTS.",
                retry_after_seconds=1,
            )
        return self._residents.slot(variant)

    # --- loading by hand ---------------------------------------------------------------------------------------

    async def load(self, variant: Variant, asked: LoadOptions | None = None) -> None:
        """Have the variant in memory when this returns; with `asked`, loaded so, now and until it is unloaded by hand.

        Raises as `submit` does. A worker that is loaded otherwise ends its requests first and is started anew.
        """
        if self.draining:
            raise shutting_down()
        slot = self._residents.slot(variant)
        if asked is not None:
            await self._loader.reload_with(slot, asked)
        await self._worker_of(slot)

    def keep(self, variant: Variant, seconds: float) -> None:
        """Keep the variant in memory for that long from now, and after each request, until it is unloaded.

        `seconds` math.inf: for ever.
        """
        slot = self._residents.slot(variant)
        slot.keep_alive_seconds = seconds
        slot.last_used = time.monotonic()

    def keep_alive_seconds(self, digest: str) -> float:
        """For how long the variant with that blob stays in memory after its last request."""
        return self._residents.keep_alive_seconds(digest)

    async def unload(self, variant: Variant) -> bool:
        """Take the variant out of memory once its requests have ended; False when it was not loaded, nor loading.

        Requests that wait for a load under way run first: they were accepted.
        """
        return await self.unload_blob(variant.digest)

    async def unload_blob(self, digest: str) -> bool:
        """As `unload`, for whatever variant of that blob is in memory."""
        slot = self._residents.get(digest)
        if slot is not None:
            slot.asked = LoadOptions()
        if slot is None or (slot.worker is None and slot.loading is None):
            return False
        while slot.loading is not None or slot.waiting or slot.active:
            if slot.loading is None and slot.worker is not None and slot.active:
                await slot.worker.wait_until_idle()
            else:
                await asyncio.sleep(POLL_SECONDS)
        await self._residents.unload(slot)
        return True

    # --- what is there -----------------------------------------------------------------------------------------

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a model or for a free sequence."""
        return sum(slot.queued for slot in self._residents)

    @property
    def is_serving(self) -> bool:
        """Whether any request runs, or waits for its worker."""
        return any(slot.active or slot.waiting for slot in self._residents)

    def is_loaded(self, digest: str) -> bool:
        """True when a worker is ready with that blob."""
        slot = self._residents.get(digest)
        return slot is not None and slot.worker is not None and slot.worker.state is WorkerState.READY

    def status(self) -> tuple[WorkerStatus, ...]:
        """Every variant that is, was or shall be in memory since the start."""
        return tuple(
            status_of(slot, self.keep_alive_seconds(slot.variant.digest)) for slot in self._residents if slot.is_known
        )

    @property
    def memory_held_bytes(self) -> int:
        """What the workers that are loaded take."""
        return self._residents.held_bytes

    @property
    def memory_budget_bytes(self) -> int:
        """What all workers together may take."""
        return self._options.memory_budget_bytes

    def memory_needed(self, variant: Variant, context: int | None = None) -> MemoryNeed:
        """What serving one request of `context` tokens takes; without `context`, what this server would reserve.

        When it does not fit, the least that it would take.
        """
        return self._sizes.need(variant, context)

    def room_for(self, variant: Variant, context: int, budget_bytes: int) -> tuple[MemoryNeed, int]:
        """What one request of `context` tokens takes, and the largest context within the budget; for advice."""
        return self._sizes.room_for(variant, context, budget_bytes)
