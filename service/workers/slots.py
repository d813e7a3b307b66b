"""What the pool knows of one variant. Server process; starts and stops nothing."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import deque
from dataclasses import dataclass, field

from service.domain.catalog import Variant
from service.domain.memory import Placement
from service.workers.ladder import Rung
from service.workers.placing import LoadOptions
from service.workers.supervisor import Worker, WorkerState

DEATHS_TO_QUARANTINE = 3
_DEATH_WINDOW_SECONDS = 60.0
_QUARANTINE_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS = 0.25


@dataclass(slots=True)
class HeldAdapter:
    """An adapter beside a worker's weights, once `loading` is done; its memory is promised from the beginning."""

    name: str  # what it was called when it was loaded
    size_bytes: int
    loading: asyncio.Task[None] | None = None
    last_used: float = 0.0


@dataclass(slots=True, eq=False)
class Slot:
    """Everything the pool knows of one variant. `placement` is set while it holds memory.

    `asked` is what the operator wants it loaded with, until it is unloaded by hand; `wanted_context` the
    context it was loaded with for a request's sake, until it is unloaded; `loading_context` that of the present load.
    `keep_alive_seconds` None: as long as the server's settings say.
    """

    variant: Variant
    worker: Worker | None = None
    placement: Placement | None = None
    rung: Rung = Rung.FULL  # of the worker, or what held for one before
    loading: asyncio.Task[Worker] | None = None
    loading_context: int = 0
    asked: LoadOptions = field(default_factory=LoadOptions)
    wanted_context: int = 0
    keep_alive_seconds: float | None = None
    unloading: asyncio.Task[None] | None = None
    waiting: int = 0  # requests that wait for the load
    last_used: float = 0.0
    loaded_at: datetime.datetime | None = None
    draft: Variant | None = None  # the smaller variant that its worker has loaded, or will at the first use
    draft_bytes: int = 0
    embedding_bytes: int = 0  # of the context that its worker has for embeddings beside the one it was loaded with
    adapters: dict[str, HeldAdapter] = field(default_factory=dict)  # digest -> what its worker has beside the weights
    adapter_room_bytes: int = 0  # what it was loaded to leave for adapters, until it is unloaded
    deaths: deque[float] = field(default_factory=deque)
    quarantined_until: float = 0.0
    last_error: str | None = None

    @property
    def ready_worker(self) -> Worker | None:
        """The worker, when requests can be put into it."""
        ready = self.worker is not None and self.worker.state is WorkerState.READY and self.unloading is None
        return self.worker if ready else None

    @property
    def memory_bytes(self) -> int:
        """What is promised to it."""
        beside = self.draft_bytes + self.embedding_bytes
        return beside if self.placement is None else beside + self.adapter_bytes + self.placement.need.total_bytes

    @property
    def adapter_bytes(self) -> int:
        """What of it is for adapters."""
        return max(self.adapter_room_bytes, sum(held.size_bytes for held in self.adapters.values()))

    @property
    def active(self) -> int:
        """Requests in the worker."""
        return self.worker.active_requests if self.worker is not None else 0

    @property
    def queued(self) -> int:
        """Requests that no sequence is free for, or whose model is still loading."""
        parallel = self.placement.parallel if self.placement is not None else 0
        return self.waiting + max(0, self.active - parallel)

    @property
    def is_idle(self) -> bool:
        """A ready worker that nobody uses or waits for."""
        ready = self.worker is not None and self.worker.state is WorkerState.READY
        settled = self.loading is None and self.unloading is None
        return ready and settled and self.active == 0 and self.waiting == 0

    @property
    def is_known(self) -> bool:
        """True for a variant that is, was or shall be in memory since the start."""
        busy = self.worker is not None or self.loading is not None
        return busy or self.last_error is not None or self.quarantined_until > 0.0

    @property
    def quarantine_seconds_left(self) -> float:
        """How long the variant still rests; 0 when it does not."""
        return max(0.0, self.quarantined_until - time.monotonic())

    @property
    def backoff_seconds(self) -> float:
        """How long to wait before the next start: twice as long after each death in the window."""
        return _FIRST_BACKOFF_SECONDS * 2.0 ** max(0, len(self.deaths) - 1)

    def clear(self, promised: Placement | None = None) -> None:
        """It holds no worker any more, and no memory but what is promised to the next one."""
        self.worker = None
        self.placement = promised
        self.loaded_at = None
        self.draft = None
        self.draft_bytes = 0
        self.embedding_bytes = 0
        self.adapters = {}

    def became_ready(self, worker: Worker) -> None:
        """Its worker is loaded."""
        self.placement = worker.placement
        self.loaded_at = datetime.datetime.now(datetime.UTC)
        self.last_used = time.monotonic()
        self.last_error = None

    def count_death(self) -> bool:
        """Note a death; True when it was one too many and the variant is quarantined now."""
        now = time.monotonic()
        self.deaths.append(now)
        while now - self.deaths[0] > _DEATH_WINDOW_SECONDS:
            self.deaths.popleft()
        if len(self.deaths) < DEATHS_TO_QUARANTINE:
            return False
        self.quarantined_until = now + _QUARANTINE_SECONDS
        self.deaths.clear()
        return True
