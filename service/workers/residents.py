"""Who holds how much memory, and who gives it back: all variants of this server. Server process, on its loop.

Loads are promised memory under one budget. The least recently used idle worker makes room, a busy one never; one that
nobody has used for a while goes by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import structlog

from service.domain.catalog import Variant
from service.domain.errors import BlobCorrupt, Busy
from service.domain.memory import Placement
from service.workers.options import PoolOptions
from service.workers.slots import Slot

_REAP_SECONDS = 0.5
POLL_SECONDS = 0.05

log = structlog.get_logger("pool")


class Residents:
    """The slots of all variants that were asked for since the start."""

    def __init__(self, options: PoolOptions, on_use: Callable[[str], None]) -> None:
        """`on_use` hears of the blobs that are loaded and unloaded; it may block."""
        self._options = options
        self._on_use = on_use
        self._slots: dict[str, Slot] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin unloading what nobody uses."""
        self._reaper = asyncio.create_task(self._reap())

    def stop_reaping(self) -> None:
        """What is idle stays from now on."""
        if self._reaper is not None:
            self._reaper.cancel()

    async def noted(self) -> None:
        """Return when every use is in the database."""
        await asyncio.gather(*self._notes)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def get(self, digest: str) -> Slot | None:
        """The slot of a blob, if it was asked for since the start."""
        return self._slots.get(digest)

    def slot(self, variant: Variant) -> Slot:
        """The slot of a variant. Raises BlobCorrupt."""
        if variant.corrupt:
            raise BlobCorrupt(
                f"The file of {variant.name} is damaged on disk. Repair it (POST /v1/variants/{{ref}}/repair), or "
                "bring the same bytes again."
            )
        slot = self._slots.setdefault(variant.digest, Slot(variant))
        slot.variant = variant  # the same blob may have been renamed
        return slot

    @property
    def held_bytes(self) -> int:
        """What is promised to all of them."""
        return sum(slot.memory_bytes for slot in self._slots.values())

    def keep_alive_seconds(self, digest: str) -> float:
        """For how long the variant with that blob stays in memory after its last request."""
        slot = self._slots.get(digest)
        asked = None if slot is None else slot.keep_alive_seconds
        return self._options.keep_alive_seconds if asked is None else asked

    async def make_room(self, slot: Slot, placement: Placement) -> None:
        """Wait until the placement fits beside the others, unloading idle ones; the memory is then promised to it.

        Raises Busy when the others stay busy for too long.
        """
        deadline = time.monotonic() + self._options.queue_timeout_seconds
        while True:
            others = [other for other in self._slots.values() if other is not slot and other.placement is not None]
            used = sum(other.memory_bytes for other in others)
            needed = placement.need.total_bytes + slot.adapter_room_bytes
            fits = used + needed <= self._options.memory_budget_bytes
            if fits and len(others) < self._options.max_loaded_models:
                slot.placement = placement  # no await since the sum: nobody else can have taken it
                return
            if await self.unload_idle(beside=slot):
                continue
            if time.monotonic() > deadline:
                raise Busy(
                    f"{slot.variant.name} waits for memory that busy models hold. Try again later, unload one, or "
                    "raise QUANTRY_MEMORY_BUDGET_BYTES or QUANTRY_MAX_LOADED_MODELS.",
                    retry_after_seconds=5,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def hold_embeddings(self, slot: Slot, needed_bytes: int) -> None:
        """Count what a ready worker needs for embeddings, beside what it was promised; idle variants make room for it.

        Nothing is refused for it: the context is small beside the model, and part of the budget is not promised.
        """
        slot.embedding_bytes = max(slot.embedding_bytes, needed_bytes)
        slot.waiting += 1  # nor is it idle itself
        try:
            while self.held_bytes > self._options.memory_budget_bytes:
                if not await self.unload_idle(beside=slot):
                    return
        finally:
            slot.waiting -= 1

    async def unload_idle(self, beside: Slot) -> bool:
        """Unload the least recently used idle variant that is not `beside`; False when there is none."""
        idle = [other for other in self._slots.values() if other is not beside and other.is_idle]
        if not idle:
            return False
        await self.unload(min(idle, key=lambda other: other.last_used))
        return True

    async def unload(self, slot: Slot) -> None:
        """End the slot's worker and give its memory back."""
        if slot.unloading is None:
            slot.unloading = asyncio.create_task(self._stop_worker(slot))
        # Whoever waits may leave; a worker that is half ended must not be forgotten for that.
        await asyncio.shield(slot.unloading)

    def note_use(self, slot: Slot) -> None:
        """Have a use noted; nobody waits for the database."""
        note = asyncio.create_task(self._note_use(slot))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    async def _stop_worker(self, slot: Slot) -> None:
        try:
            if slot.worker is not None:
                await slot.worker.stop()
                self.note_use(slot)
        finally:
            slot.clear()
            slot.wanted_context = 0
            slot.adapter_room_bytes = 0
            slot.keep_alive_seconds = None
            slot.unloading = None

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
            for slot in self:
                if slot.active or slot.waiting:
                    slot.last_used = now
                elif slot.is_idle and now - slot.last_used > self.keep_alive_seconds(slot.variant.digest):
                    log.info("unloading an idle model", model=slot.variant.name)
                    try:
                        await self.unload(slot)
                    except Exception:
                        log.exception("unloading failed", model=slot.variant.name)
