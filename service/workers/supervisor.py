"""One worker's life, seen from the server process: brought up rung by rung, watched, ended.

    starting ──> ready ──> draining ──> stopped
       │  ^        │           │
       │  └ladder  │           │
       └──> failed <───────────┘   (died, hung, or could not load)

Every request submitted to it ends: with its own end, or with WorkerDied when the process goes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import structlog

from service.children import signal_name
from service.domain.errors import LoadFailed, QuantryError, WorkerDied, by_code
from service.domain.generation import EmbeddingRequest, Embeddings, GenerationRequest
from service.domain.memory import CacheType, Placement
from service.frames import BadFrame
from service.workers.child import Child
from service.workers.ladder import Rung, flags, next_lower
from service.workers.options import WorkerOptions
from service.workers.protocol import Close, DropAdapter, Load, Ping, Pong, Ready, ToWorker
from service.workers.protocol import LoadFailed as LoadFailedFrame
from service.workers.questions import Answer, Question
from service.workers.requests import Requests
from service.workers.stream import Stream

log = structlog.get_logger("workers")

_CLOSE_SECONDS = 3.0
_EXIT_SECONDS = 1.0  # from the end of the channel to that of the process, whose status then tells why
_SLOW_STEPS = 10  # a step may take this many times the canary's estimate before it counts as hung
_PINGS = 4  # in the time after which a worker that answers none of them hangs


class WorkerState(StrEnum):
    """Where a worker stands; see the diagram above."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Worker:
    """Starts, talks to and ends one child."""

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        placement: Placement,
        options: WorkerOptions,
        rung: Rung,
        on_death: Callable[[Worker], None],
    ) -> None:
        """`on_death` is called once when a ready worker ends without having been told to."""
        self.name = name
        self.path = path
        self.placement = placement
        self.state = WorkerState.STARTING
        self.rung = rung
        self.load_seconds = 0.0
        self.last_error: str | None = None
        self.deaths_while_loading: list[str] = []  # rung and signal of each
        # As the child said last.
        self.threads = options.threads
        self.free_cells = 0
        self.cached_cells = 0
        self._options = options
        self._on_death = on_death
        self._child: Child | None = None
        self._requests = Requests(self._send, options)
        self._tasks: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self._last_pong = 0.0
        self._hang_seconds = options.hang_seconds

    @property
    def pid(self) -> int | None:
        """Process id of the child, while it runs."""
        return None if self._child is None else self._child.pid

    @property
    def is_dying(self) -> bool:
        """Whether the process of a ready worker has ended, of which it hears itself in a moment."""
        return self.state is WorkerState.READY and self._child is not None and self._child.has_exited

    async def wait_until_over(self) -> None:
        """Return when it has died or was stopped, and `on_death` has been told."""
        await self._over.wait()

    @property
    def active_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    async def wait_until_idle(self) -> None:
        """Return when no request is in it, by whatever end."""
        await self._requests.wait_until_none()

    async def start(self) -> None:
        """Bring the child up, one rung lower after each death by a signal.

        Raises LoadFailed when llama.cpp refuses the model, when every rung died, or when time ran out.
        """
        while True:
            try:
                ready = await asyncio.wait_for(self._launch(), self._options.load_timeout_seconds)
            except BaseException as error:
                if self._child is not None:
                    await self._child.end()
                self.state = WorkerState.FAILED
                refusal = self._refusal(error)
                if refusal is None:
                    raise
                self.last_error = refusal.message
                raise refusal from None
            if ready is not None:
                self._become_ready(ready)
                return
            assert self._child is not None, "it was launched"
            self._step_down(await self._child.end(_EXIT_SECONDS))

    def submit(self, request: GenerationRequest, load_seconds: float, draft_path: Path | None = None) -> Stream:
        """Send a request to a ready worker; its events come through the stream.

        `draft_path` is the file of the smaller variant that drafts for it, which the worker loads at its first use.
        """
        return self._requests.submit(request, load_seconds, draft_path)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of every text, in order. Cancelling this call cancels the work.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        return await self._requests.embed(request)

    async def ask(self, question: Question) -> Answer:
        """The answer to a question about words and tokens; of the kind that the question names.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        return await self._requests.ask(question)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Have an adapter beside the weights when this returns, under that name.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        await self._requests.load_adapter(name, path)

    def drop_adapter(self, name: str) -> None:
        """Free an adapter that `uses_adapter` denies."""
        self._send(DropAdapter(name))

    def uses_adapter(self, name: str) -> bool:
        """Whether a request that has not ended names it."""
        return self._requests.uses_adapter(name)

    async def stop(self, error: QuantryError | None = None) -> None:
        """End the child. Requests still in it fail with `error`, WorkerDied when none is given."""
        if self.state in (WorkerState.STOPPED, WorkerState.FAILED):
            return
        self.state = WorkerState.DRAINING
        self._requests.end(error or self._death())
        self._send(Close())
        if self._child is not None:
            await self._child.end(_CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.state = WorkerState.STOPPED
        self._over.set()

    # --- starting ----------------------------------------------------------------------------------------------

    async def _launch(self) -> Ready | None:
        """Start the child on the present rung; None when it died before it was ready."""
        self._child = await Child.start(self.name, self._options.argv)
        self._child.send(self._load())
        message = await self._child.read()
        if isinstance(message, LoadFailedFrame):
            raise by_code(message.code)(message.message)
        return message if isinstance(message, Ready) else None

    def _load(self) -> Load:
        options, launch, cache = self._options, flags(self.rung, self._options.gpu_layers), self.placement.options
        flash_attention = launch.flash_attention and cache.flash_attention
        return Load(
            path=os.fspath(self.path),
            context_length=self.placement.context_length,
            parallel=self.placement.parallel,
            batch_tokens=options.batch_tokens,
            threads=options.threads,
            gpu_layers=launch.gpu_layers,
            extra_buffers=launch.extra_buffers,
            flash_attention=flash_attention,
            max_token_gap_seconds=options.max_token_gap_seconds,
            prefix_cache=options.prefix_cache,
            speculation=options.speculation,
            cache_type_k=cache.cache_type_k,
            # llama.cpp has quantized values only with flash attention, which a lower rung may have given up.
            cache_type_v=cache.cache_type_v if flash_attention else CacheType.F16,
        )

    def _refusal(self, error: BaseException) -> QuantryError | None:
        """What a launch that ended with `error` is to its waiters; None where the error speaks for itself."""
        if isinstance(error, QuantryError):
            return error
        if isinstance(error, TimeoutError):
            return LoadFailed(
                f"{self.name} did not load within {self._options.load_timeout_seconds:g} s. Raise "
                "QUANTRY_LOAD_TIMEOUT_SECONDS, or use a smaller level."
            )
        if isinstance(error, BadFrame):
            return LoadFailed(f"The worker for {self.name} said something unreadable and was ended; see the log.")
        return None

    def _step_down(self, status: int) -> None:
        """Note a death before the worker was ready, and go one rung lower. Raises LoadFailed at the lowest one."""
        died_by = signal_name(status)
        log.warning("worker died while loading", model=self.name, rung=self.rung, status=status, stderr=self._tail())
        self.deaths_while_loading.append(f"{self.rung}: {died_by or f'exit {status}'}")
        lower = next_lower(self.rung) if died_by else None
        if lower is not None:
            self.rung = lower
            return
        self.state = WorkerState.FAILED
        self.last_error = (
            f"The worker for {self.name} ended while loading ({'; '.join(self.deaths_while_loading)}). "
            "Run `quantry doctor`, and see the server's log."
        )
        raise LoadFailed(self.last_error)

    def _become_ready(self, ready: Ready) -> None:
        self.state = WorkerState.READY
        self.load_seconds = ready.load_seconds
        self.free_cells = ready.cells
        self.placement = replace(self.placement, context_length=ready.context_length)
        self._hang_seconds = self._options.hang_seconds + _SLOW_STEPS * ready.slowest_step_seconds
        self._last_pong = time.monotonic()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        log.info("worker ready", model=self.name, rung=self.rung, pid=self.pid, load_seconds=ready.load_seconds)

    # --- running -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        assert self._child is not None
        try:
            while (message := await self._child.read()) is not None:
                if isinstance(message, Pong):
                    self._last_pong = time.monotonic()
                    self.threads, self.free_cells = message.threads, message.free_cells
                    self.cached_cells = message.cached_cells
                else:
                    self._requests.take(message)
        except BadFrame:
            log.exception("worker sent no frame of ours", model=self.name)
        except Exception:
            # Nobody would listen to it any more: better its requests end than wait for ever.
            log.exception("what a worker sent could not be handled", model=self.name)
        await self._child.end(_EXIT_SECONDS)
        self._died()

    async def _watch(self) -> None:
        interval = self._options.hang_seconds / _PINGS
        for number in itertools.count(1):
            self._send(Ping(id=number))
            asked_at = time.monotonic()
            await asyncio.sleep(interval)
            now = time.monotonic()
            if now - asked_at > 2 * interval:
                # The server stood still itself, and answers that have come are not read yet.
                self._last_pong = max(self._last_pong, now - interval)
            elif now - self._last_pong > self._hang_seconds:
                log.error("worker hangs, killing it", model=self.name, pid=self.pid, seconds=self._hang_seconds)
                if self._child is not None:
                    self._child.kill()  # the listener sees the end of the channel and does the rest
                return

    def _send(self, message: ToWorker) -> None:
        if self._child is not None:
            self._child.send(message)

    # --- ending ------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        if self.state is not WorkerState.READY:
            return
        self.state = WorkerState.FAILED
        error = self._death()
        self.last_error = error.message
        log.error(
            "worker died", model=self.name, status=self._status, requests=self.active_requests, stderr=self._tail()
        )
        self._requests.end(error)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._on_death(self)
        self._over.set()

    def _death(self) -> WorkerDied:
        status = self._status
        how = f" ({signal_name(status) or f'exit {status}'})" if status is not None else ""
        return WorkerDied(
            f"The worker that ran this request for {self.name} ended{how}. Send the request again.",
            retry_after_seconds=1,
        )

    @property
    def _status(self) -> int | None:
        return None if self._child is None else self._child.status

    def _tail(self) -> list[str]:
        return [] if self._child is None else self._child.stderr_tail
