"""One worker child's life, seen from the server process.

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
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import structlog

from service.children import child_argv, child_environment, signal_name
from service.domain.errors import LoadFailed, QuantryError, WorkerDied, by_code
from service.domain.generation import EmbeddingRequest, Embeddings, Failed, GenerationRequest, Thought, Token
from service.domain.memory import CacheType, Placement
from service.frames import BadFrame, FrameReader, encode
from service.workers.ladder import Rung, flags, next_lower
from service.workers.pending import Pending, parts_of
from service.workers.protocol import (
    AdapterFailed,
    AdapterLoaded,
    Answered,
    Ask,
    AskFailed,
    Cancel,
    Close,
    DropAdapter,
    Embed,
    Embedded,
    EmbedFailed,
    Events,
    FromWorker,
    Load,
    LoadAdapter,
    Pause,
    Ping,
    Pong,
    Ready,
    Resume,
    Submit,
    ToWorker,
)
from service.workers.protocol import LoadFailed as LoadFailedFrame
from service.workers.questions import Answer, Question
from service.workers.stream import Stream

log = structlog.get_logger("workers")

WORKER_ARGV = child_argv("service.workers.worker")
_STDERR_LINES = 40
_CLOSE_SECONDS = 3.0
_SLOW_STEPS = 10  # a step may take this many times the canary's estimate before it counts as hung


class WorkerState(StrEnum):
    """Where a worker stands; see the diagram above."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker of this server is started with. `argv` lets tests wrap the child."""

    batch_tokens: int
    threads: int
    gpu_layers: int
    load_timeout_seconds: float
    hang_seconds: float
    max_token_gap_seconds: float = 0.25
    prefix_cache: bool = True
    speculation: bool = True
    # Text that waits for its reader: past the first bound its request is paused, past the second it is cut off.
    pause_characters: int = 8 * 1024
    max_buffered_characters: int = 256 * 1024
    argv: tuple[str, ...] = WORKER_ARGV


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
        self.free_cells = 0
        self._frames: FrameReader[FromWorker] = FrameReader(FromWorker)
        self._options = options
        self._on_death = on_death
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._streams: dict[int, tuple[Stream, float]] = {}  # request id -> stream, seconds spent loading for it
        self._calls = 0  # of `embed` and `ask` under way
        self._vectors: Pending[Embeddings] = Pending()
        self._answers: Pending[Answer] = Pending()
        self._adapters: Pending[None] = Pending()
        self._uses: dict[int, frozenset[str]] = {}  # request id -> adapters, where it has some
        self._idle = asyncio.Event()
        self._idle.set()
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._last_pong = 0.0
        self._hang_seconds = options.hang_seconds

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def active_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._streams) + self._calls

    async def wait_until_idle(self) -> None:
        """Return when no request is in it, by whatever end."""
        await self._idle.wait()

    async def start(self) -> None:
        """Bring the child up, one rung lower after each death by a signal.

        Raises LoadFailed when llama.cpp refuses the model, when every rung died, or when time ran out.
        """
        deaths = self.deaths_while_loading
        while True:
            try:
                ready = await asyncio.wait_for(self._launch(), self._options.load_timeout_seconds)
            except TimeoutError:
                await self._kill()
                raise self._failed(
                    LoadFailed(
                        f"{self.name} did not load within {self._options.load_timeout_seconds:g} s. Raise "
                        "QUANTRY_LOAD_TIMEOUT_SECONDS, or use a smaller level."
                    )
                ) from None
            except (QuantryError, asyncio.CancelledError) as error:
                await self._kill()
                if isinstance(error, QuantryError):
                    raise self._failed(error) from None
                raise
            if ready is not None:
                self._become_ready(ready)
                return
            status = await self._wait_for_exit()
            died_by = signal_name(status)
            lower = next_lower(self.rung) if died_by else None
            log.warning(
                "worker died while loading", model=self.name, rung=self.rung, status=status, stderr=self._tail()
            )
            deaths.append(f"{self.rung}: {died_by or f'exit {status}'}")
            if lower is None:
                raise self._failed(
                    LoadFailed(
                        f"The worker for {self.name} ended while loading ({'; '.join(deaths)}). "
                        "Run `quantry doctor`, and see the server's log."
                    )
                )
            self.rung = lower

    def submit(self, request: GenerationRequest, load_seconds: float, draft_path: Path | None = None) -> Stream:
        """Send a request to a ready worker; its events come through the stream.

        `draft_path` is the file of the smaller variant that drafts for it, which the worker loads at its first use.
        """
        request_id = next(self._ids)
        stream = Stream(
            on_cancel=lambda: self._cancel(request_id),
            max_buffered_characters=self._options.max_buffered_characters,
            choices=request.choices,
            pause_characters=self._options.pause_characters,
            on_pause=lambda: self._send_about(request_id, Pause(id=request_id)),
            on_resume=lambda: self._send_about(request_id, Resume(id=request_id)),
        )
        if self.state is not WorkerState.READY:
            stream.put(_failed_event(self._death()))
            return stream
        self._streams[request_id] = (stream, load_seconds)
        if request.adapters:
            self._uses[request_id] = frozenset(use.name for use in request.adapters)
        self._idle.clear()
        self._send(
            Submit(id=request_id, request=request, draft_path=None if draft_path is None else os.fspath(draft_path))
        )
        return stream

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of every text, in order. Cancelling this call cancels the work.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        self._calls += 1
        self._idle.clear()
        try:
            answers = [await self._embed_part(part) for part in parts_of(request)]
        finally:
            self._calls -= 1
            self._note_idle()
        vectors = tuple(vector for answer in answers for vector in answer.vectors)
        return Embeddings(vectors, sum(answer.prompt_tokens for answer in answers))

    async def ask(self, question: Question) -> Answer:
        """The answer to a question about words and tokens; of the kind that the question names.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        if self.state is not WorkerState.READY:
            raise self._death()
        self._calls += 1
        self._idle.clear()
        request_id = next(self._ids)
        answer = self._answers.open(request_id)
        try:
            self._send(Ask(id=request_id, question=question))
            return await answer
        finally:
            self._answers.forget(request_id)
            self._calls -= 1
            self._note_idle()

    async def load_adapter(self, name: str, path: Path) -> None:
        """Have an adapter beside the weights when this returns, under that name.

        Raises WorkerDied when the child ends meanwhile, and what the child refuses.
        """
        if self.state is not WorkerState.READY:
            raise self._death()
        self._calls += 1
        self._idle.clear()
        request_id = next(self._ids)
        loaded = self._adapters.open(request_id)
        try:
            self._send(LoadAdapter(request_id, name, os.fspath(path)))
            await loaded
        finally:
            self._adapters.forget(request_id)
            self._calls -= 1
            self._note_idle()

    def drop_adapter(self, name: str) -> None:
        """Free an adapter that `uses_adapter` denies."""
        self._send(DropAdapter(name))

    def uses_adapter(self, name: str) -> bool:
        """Whether a request that has not ended names it."""
        return any(name in names for names in self._uses.values())

    async def stop(self, error: QuantryError | None = None) -> None:
        """End the child. Requests still in it fail with `error`, WorkerDied when none is given."""
        if self.state in (WorkerState.STOPPED, WorkerState.FAILED):
            return
        self.state = WorkerState.DRAINING
        self._fail_all(error or self._death())
        self._send(Close())
        try:
            await asyncio.wait_for(self._wait_for_exit(), _CLOSE_SECONDS)
        except TimeoutError:
            await self._kill()
        await self._cancel_tasks()
        self.state = WorkerState.STOPPED

    # --- starting ----------------------------------------------------------------------------------------------

    async def _launch(self) -> Ready | None:
        """Start the child on the present rung; None when it died before it was ready."""
        ours, theirs = socket.socketpair()
        launch = flags(self.rung, self._options.gpu_layers)
        cache = self.placement.options
        flash_attention = launch.flash_attention and cache.flash_attention
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._options.argv,
                "--channel",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise LoadFailed(f"The worker process could not be started (errno {error.errno}).") from error
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._frames = FrameReader(FromWorker)  # the one before may hold half a frame of a child that died
        self._tasks = [asyncio.create_task(self._collect_stderr(self._process))]
        self._send(
            Load(
                path=os.fspath(self.path),
                context_length=self.placement.context_length,
                parallel=self.placement.parallel,
                batch_tokens=self._options.batch_tokens,
                threads=self._options.threads,
                gpu_layers=launch.gpu_layers,
                extra_buffers=launch.extra_buffers,
                flash_attention=flash_attention,
                max_token_gap_seconds=self._options.max_token_gap_seconds,
                prefix_cache=self._options.prefix_cache,
                speculation=self._options.speculation,
                cache_type_k=cache.cache_type_k,
                # llama.cpp has quantized values only with flash attention, which a lower rung may have given up.
                cache_type_v=cache.cache_type_v if flash_attention else CacheType.F16,
            )
        )
        message = await self._frames.read(self._reader)
        if isinstance(message, LoadFailedFrame):
            raise by_code(message.code)(message.message)
        return message if isinstance(message, Ready) else None

    def _become_ready(self, ready: Ready) -> None:
        self.state = WorkerState.READY
        self.load_seconds = ready.load_seconds
        self.free_cells = ready.cells
        self.placement = replace(self.placement, context_length=ready.context_length)
        self._hang_seconds = self._options.hang_seconds + _SLOW_STEPS * ready.slowest_step_seconds
        self._last_pong = time.monotonic()
        self._tasks += [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        log.info("worker ready", model=self.name, rung=self.rung, pid=self.pid, load_seconds=ready.load_seconds)

    # --- running -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        assert self._reader is not None
        try:
            while (message := await self._frames.read(self._reader)) is not None:
                if isinstance(message, Events):
                    self._deliver(message)
                elif isinstance(message, Embedded):
                    self._vectors.deliver(message.id, message.embeddings)
                elif isinstance(message, EmbedFailed):
                    self._vectors.fail(message.id, message.failed)
                elif isinstance(message, Answered):
                    self._answers.deliver(message.id, message.answer)
                elif isinstance(message, AskFailed):
                    self._answers.fail(message.id, message.failed)
                elif isinstance(message, AdapterLoaded):
                    self._adapters.deliver(message.id, None)
                elif isinstance(message, AdapterFailed):
                    self._adapters.fail(message.id, message.failed)
                elif isinstance(message, Pong):
                    self._last_pong = time.monotonic()
                    self.free_cells = message.free_cells
        except BadFrame:
            log.exception("worker sent no frame of ours", model=self.name)
        await self._kill()
        self._died()

    async def _watch(self) -> None:
        interval = self._options.hang_seconds / 4
        for number in itertools.count(1):
            self._send(Ping(id=number))
            await asyncio.sleep(interval)
            if time.monotonic() - self._last_pong > self._hang_seconds:
                log.error("worker hangs, killing it", model=self.name, pid=self.pid, seconds=self._hang_seconds)
                if self._process is not None and self._process.returncode is None:
                    self._process.kill()  # the listener sees the end of the channel and does the rest
                return

    def _deliver(self, events: Events) -> None:
        for request_id, prompt_tokens in events.started:
            if request_id in self._streams:
                self._streams[request_id][0].prompt_tokens = prompt_tokens
        # Streams join what is put in before their reader wakes: a token's logprobs and its text become one event.
        for request_id, choice, logprobs in events.logprobs:
            if request_id in self._streams:
                self._streams[request_id][0].put(Token("", choice, logprobs))
        for request_id, choice, text in events.thoughts:
            if request_id in self._streams:
                self._streams[request_id][0].put(Thought(text, choice))
        for request_id, choice, text in events.texts:
            if request_id in self._streams:
                self._streams[request_id][0].put(Token(text, choice))
        for request_id, call in events.calls:
            if request_id in self._streams:
                self._streams[request_id][0].put(call)
        for request_id, finished in events.finished:
            if request_id in self._streams:
                stream, load_seconds = self._streams[request_id]
                stream.put(replace(finished, timings=replace(finished.timings, load_seconds=load_seconds)))
                if stream.ended:
                    self._forget(request_id)
        for request_id, failed in events.failed:
            if request_id in self._streams:
                self._forget(request_id)[0].put(failed)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._streams:
            self._forget(request_id)
            self._send(Cancel(id=request_id))

    def _send_about(self, request_id: int, message: Pause | Resume) -> None:
        if request_id in self._streams:
            self._send(message)

    def _forget(self, request_id: int) -> tuple[Stream, float]:
        found = self._streams.pop(request_id)
        self._uses.pop(request_id, None)
        self._note_idle()
        return found

    async def _embed_part(self, request: EmbeddingRequest) -> Embeddings:
        if self.state is not WorkerState.READY:
            raise self._death()
        request_id = next(self._ids)
        answer = self._vectors.open(request_id)
        self._send(Embed(id=request_id, request=request))
        try:
            return await answer
        finally:
            if self._vectors.forget(request_id):
                self._send(Cancel(id=request_id))

    def _note_idle(self) -> None:
        if not self.active_requests:
            self._idle.set()

    def _send(self, message: ToWorker) -> None:
        # The child reads at once whatever it computes, so the transport's buffer stays small; requests are bounded.
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    # --- ending ------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        if self.state is not WorkerState.READY:
            return
        self.state = WorkerState.FAILED
        status = self._process.returncode if self._process is not None else None
        error = self._death()
        self.last_error = error.message
        log.error("worker died", model=self.name, status=status, requests=self.active_requests, stderr=self._tail())
        self._fail_all(error)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._on_death(self)

    def _death(self) -> WorkerDied:
        status = self._process.returncode if self._process is not None else None
        how = f" ({signal_name(status) or f'exit {status}'})" if status is not None else ""
        return WorkerDied(
            f"The worker that ran this request for {self.name} ended{how}. Send the request again.",
            retry_after_seconds=1,
        )

    def _fail_all(self, error: QuantryError) -> None:
        streams, self._streams = self._streams, {}
        self._uses.clear()
        self._vectors.fail_all(error)
        self._answers.fail_all(error)
        self._adapters.fail_all(error)
        self._note_idle()
        for stream, _ in streams.values():
            stream.put(_failed_event(error))

    def _failed(self, error: QuantryError) -> QuantryError:
        self.state = WorkerState.FAILED
        self.last_error = error.message
        return error

    async def _wait_for_exit(self) -> int:
        assert self._process is not None
        status = await self._process.wait()
        if self._writer is not None:
            self._writer.close()
        return status

    async def _kill(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("worker was already gone", model=self.name)
        await self._wait_for_exit()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _collect_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            text = line.decode("utf-8", "replace").rstrip()[:500]
            self._stderr.append(text)
            log.debug("worker says", model=self.name, line=text)

    def _tail(self) -> list[str]:
        return list(self._stderr)


def _failed_event(error: QuantryError) -> Failed:
    return Failed(error.code, error.message, error.param, error.retry_after_seconds)
