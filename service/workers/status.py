"""A row of `GET /v1/workers`: how one variant stands, for people. Server process."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import dataclass

from service.domain.memory import CacheType
from service.workers.slots import Slot
from service.workers.supervisor import WorkerState


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Times are RFC 3339, UTC. Threads and cells are as the worker said last, 0 without one."""

    name: str
    digest: str
    state: str  # a WorkerState, or "quarantined"
    rung: str
    pid: int | None
    context_length: int
    parallel: int
    memory_bytes: int
    active_requests: int
    queued_requests: int
    loaded_at: str | None
    expires_at: str | None
    last_error: str | None
    cache_type_k: str = CacheType.F16
    cache_type_v: str = CacheType.F16
    adapters: tuple[str, ...] = ()
    threads: int = 0
    free_cells: int = 0
    cached_cells: int = 0


def status_of(slot: Slot, keep_alive_seconds: float) -> WorkerStatus:
    """The row for a variant that stays for `keep_alive_seconds` after its last request."""
    placement = slot.placement
    worker = None if slot.worker is not None and slot.worker.is_dying else slot.worker
    expires = None
    if slot.is_idle and math.isfinite(keep_alive_seconds):
        left = max(0.0, slot.last_used + keep_alive_seconds - time.monotonic())
        expires = _rfc3339(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=left))
    return WorkerStatus(
        name=slot.variant.name,
        digest=slot.variant.digest,
        state=_state(slot),
        rung=str(slot.rung if slot.worker is None else slot.worker.rung),
        pid=worker.pid if worker is not None else None,
        context_length=placement.context_length if placement else 0,
        parallel=placement.parallel if placement else 0,
        memory_bytes=slot.memory_bytes,
        active_requests=slot.active,
        queued_requests=slot.queued,
        loaded_at=_rfc3339(slot.loaded_at) if slot.loaded_at else None,
        expires_at=expires,
        last_error=slot.last_error,
        cache_type_k=placement.options.cache_type_k if placement else CacheType.F16,
        cache_type_v=placement.options.cache_type_v if placement else CacheType.F16,
        adapters=tuple(held.name for held in slot.adapters.values()) if worker is not None else (),
        threads=worker.threads if worker is not None else 0,
        free_cells=worker.free_cells if worker is not None else 0,
        cached_cells=worker.cached_cells if worker is not None else 0,
    )


def _state(slot: Slot) -> str:
    if slot.quarantine_seconds_left:
        return "quarantined"
    if slot.worker is not None:
        return str(WorkerState.FAILED if slot.worker.is_dying else slot.worker.state)
    return str(WorkerState.STARTING if slot.loading is not None else WorkerState.STOPPED)


def _rfc3339(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
