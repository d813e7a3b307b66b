"""LoRA adapters beside a worker's weights: loaded when a request first names them, let go of when others need the room.

Server process, on its loop. The files were checked when they were taken in; whether they fit this variant is the
worker's to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from service.domain.adapters import MAX_ADAPTERS
from service.domain.catalog import Adapter
from service.domain.errors import BlobCorrupt, Busy, Conflict, LoadFailed
from service.workers.loading import Loader
from service.workers.residents import Residents
from service.workers.slots import HeldAdapter, Slot
from service.workers.supervisor import Worker

log = structlog.get_logger("pool")


class Adapters:
    """The adapters of all workers."""

    def __init__(
        self, residents: Residents, loader: Loader, *, path_of: Callable[[str], Path], memory_budget_bytes: int
    ) -> None:
        """`path_of` gives the file of a blob digest; it may block."""
        self._residents = residents
        self._loader = loader
        self._path_of = path_of
        self._budget_bytes = memory_budget_bytes

    async def are_beside(self, slot: Slot, worker: Worker, adapters: Sequence[Adapter]) -> bool:
        """True when a ready worker has them all, at once. Else it has been worked on, and is to be asked again.

        Raises DoesNotFit, Busy, BlobCorrupt, WorkerDied, and Conflict for one that is not for this variant.
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
                if adapter.digest not in slot.adapters and not await self._room_for(slot, adapter, adapters):
                    return False
                if slot.ready_worker is not worker or slot.loading is not None:
                    return False  # it has gone meanwhile, or is to be loaded otherwise
                if adapter.digest not in slot.adapters:
                    self._begin(slot, worker, adapter)
                loading = slot.adapters[adapter.digest].loading
                if loading is not None:
                    # One load serves everyone who waits for it.
                    await asyncio.shield(loading)
        finally:
            slot.waiting -= 1
        return False

    def _begin(self, slot: Slot, worker: Worker, adapter: Adapter) -> None:
        held = HeldAdapter(adapter.name, adapter.size_bytes, last_used=time.monotonic())
        slot.adapters[adapter.digest] = held
        held.loading = asyncio.create_task(self._load(slot, worker, adapter))

        def ended(task: asyncio.Task[None]) -> None:
            held.loading = None
            failed = task.cancelled() or task.exception() is not None
            if failed and slot.adapters.get(adapter.digest) is held:
                del slot.adapters[adapter.digest]

        held.loading.add_done_callback(ended)

    async def _load(self, slot: Slot, worker: Worker, adapter: Adapter) -> None:
        if adapter.corrupt:
            raise BlobCorrupt(
                f"The file of the adapter {adapter.name} is damaged on disk. Delete it and add it again.",
                param="adapters",
            )
        path = await asyncio.to_thread(self._path_of, adapter.digest)
        try:
            await worker.load_adapter(adapter.digest, path)
        except LoadFailed as error:
            raise Conflict(
                f"The adapter {adapter.name} cannot be used with {slot.variant.name}: {error.message}", param="adapters"
            ) from error
        log.info("adapter loaded", model=slot.variant.name, adapter=adapter.name, size_bytes=adapter.size_bytes)

    async def _room_for(self, slot: Slot, adapter: Adapter, wanted: Sequence[Adapter]) -> bool:
        """True once there is memory for one more adapter. Others that nobody uses make room for it, then idle models,
        then the cache: the worker is to be loaded anew with less of it, and the answer is False.

        `wanted` are those that the same request names. Raises DoesNotFit, and Busy when all are in use.
        """
        keep = {other.digest for other in wanted}
        while True:
            used = self._residents.held_bytes - slot.adapter_bytes
            held = sum(other.size_bytes for other in slot.adapters.values())
            fits = used + max(slot.adapter_room_bytes, held + adapter.size_bytes) <= self._budget_bytes
            if fits and len(slot.adapters) < MAX_ADAPTERS:
                return True
            if self._drop(slot, keep):
                continue
            if fits:
                raise Busy(
                    f"{slot.variant.name} has {MAX_ADAPTERS} adapters in memory, all of them in use. Try again later.",
                    retry_after_seconds=5,
                )
            if not await self._residents.unload_idle(beside=slot):
                break
        needed = sum(other.size_bytes for other in wanted)
        if needed <= slot.adapter_room_bytes:
            raise Busy(
                f"The adapters of {slot.variant.name} wait for memory that others hold. Try again later, or raise "
                "QUANTRY_MEMORY_BUDGET_BYTES.",
                retry_after_seconds=5,
            )
        await self._loader.check_fits(slot, needed)
        if slot.loading is None:
            slot.adapter_room_bytes = needed
            self._loader.begin(slot)
        return False

    def _drop(self, slot: Slot, keep: set[str]) -> bool:
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
