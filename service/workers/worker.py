"""The worker child: one loaded variant, one batching engine. `python -m service.workers.worker --channel FD`.

The main thread runs the engine and answers pings from inside its loop, so that a stuck loop is found. Side threads: one
reads frames; one prepares prompts and grammars (both may be slow); one sends what the server does not take at once, so
that the engine never waits for it. Knows no HTTP and no SQL.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from service.children import bind_to_parent
from service.domain.errors import InternalError, NotSupported, QuantryError
from service.domain.errors import LoadFailed as LoadFailedError
from service.domain.generation import (
    Embeddings,
    Failed,
    Finished,
    GenerationEvent,
    Thought,
    Token,
    TokenLogprob,
    ToolCallDelta,
)
from service.domain.memory import CacheType
from service.engine.drafting import DraftModel
from service.engine.embeddings import Embedder
from service.engine.engine import Engine, EngineOptions
from service.frames import FrameReader, encode
from service.llama.context import Context
from service.llama.embedding import generates
from service.llama.mapping import release_mapped_pages
from service.llama.model import Model
from service.workers.canary import run_canary, run_embedding_canary
from service.workers.outbox import Outbox
from service.workers.preparing import Prepared, PreparedEmbed, PreparedSubmit, Preparer
from service.workers.protocol import (
    VERSION,
    AdapterFailed,
    AdapterLoaded,
    Ask,
    Cancel,
    Close,
    DropAdapter,
    Embed,
    Embedded,
    EmbedFailed,
    Events,
    Load,
    LoadAdapter,
    LoadFailed,
    Pause,
    Ping,
    Pong,
    Ready,
    Resume,
    Submit,
    ToWorker,
)

Command = Prepared | LoadAdapter | DropAdapter | Cancel | Pause | Resume | Ping | Close


class Worker:
    """Channel on one side, engine on the other."""

    def __init__(self, channel: socket.socket) -> None:
        """`channel` is one end of a stream socket pair."""
        self._stream = channel.makefile("rb")
        self._channel = channel
        self._frames: FrameReader[ToWorker] = FrameReader(ToWorker)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._outgoing = Outbox(channel)
        self._preparing: dict[int, bool] = {}  # request id -> cancelled meanwhile
        self._preparing_lock = threading.Lock()
        self._pause_first: set[int] = set()  # paused before the engine had them
        self._unannounced: dict[int, int] = {}  # tokens of prompts that no frame has told of

    def run(self) -> int:
        """Load, report, serve until told to close or until the server is gone; the exit status."""
        load = self._frames.read_blocking(self._stream)
        if not isinstance(load, Load) or load.version != VERSION:
            return 2
        try:
            started = time.monotonic()
            model = Model(Path(load.path), gpu_layers=load.gpu_layers, use_extra_buffers=load.extra_buffers)
            release_mapped_pages(Path(load.path))
            engine = _make_engine(model, load)
            self._embedder = Embedder(
                model,
                context_length=load.context_length,
                batch_tokens=load.batch_tokens,
                threads=load.threads,
                flash_attention=load.flash_attention,
            )
            slowest_step = 0.0
            if engine is not None:
                slowest_step = run_canary(model, engine, load.batch_tokens)
            else:
                run_embedding_canary(model, self._embedder)
        except QuantryError as error:
            self._channel.sendall(encode(LoadFailed(code=error.code, message=error.message)))
            return 0
        self._engine = engine
        self._preparer = Preparer(
            model,
            self._commands.put,
            lambda path: _load_draft(path, load),
            self._outgoing.put,
            engine.context_length if engine is not None else self._embedder.context_length,
        )
        self._preparer.start()
        self._outgoing.start()
        threading.Thread(target=self._read, daemon=True).start()
        self._outgoing.put(
            Ready(
                load_seconds=time.monotonic() - started,
                context_length=engine.context_length if engine is not None else self._embedder.context_length,
                cells=engine.free_cells if engine is not None else 0,
                slowest_step_seconds=slowest_step,
            )
        )
        self._serve()
        # Nothing is freed: the process ends, and a side thread may still read the vocabulary.
        return 0

    # --- the engine's thread -----------------------------------------------------------------------------------

    @property
    def _is_idle(self) -> bool:
        return (self._engine is None or self._engine.is_idle) and self._embedder.is_idle

    def _serve(self) -> None:
        while True:
            # Wait only when there is nothing to compute; otherwise take what has come and go on.
            command = self._commands.get() if self._is_idle else self._next_command()
            while command is not None:
                if isinstance(command, Close):
                    return
                self._carry_out(command)
                command = self._next_command()
            if self._engine is not None and not self._engine.is_idle:
                self._publish(self._engine.step())
            if not self._embedder.is_idle:
                self._publish_embeddings()

    def _next_command(self) -> Command | None:
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def _carry_out(self, command: Prepared | LoadAdapter | DropAdapter | Cancel | Pause | Resume | Ping) -> None:
        match command:
            case Ping():
                self._outgoing.put(self._pong(command.id))
            case Cancel():
                with self._preparing_lock:
                    if command.id in self._preparing:
                        self._preparing[command.id] = True
                self._pause_first.discard(command.id)
                self._unannounced.pop(command.id, None)
                self._embedder.cancel(command.id)
                if self._engine is not None:
                    self._engine.cancel(command.id)
            case Pause():
                with self._preparing_lock:
                    if command.id in self._preparing:
                        self._pause_first.add(command.id)
                if self._engine is not None:
                    self._engine.pause(command.id)
            case Resume():
                self._pause_first.discard(command.id)
                if self._engine is not None:
                    self._engine.resume(command.id)
            case LoadAdapter():
                self._load_adapter(command)
            case DropAdapter():
                if self._engine is not None:
                    self._engine.drop_adapter(command.name)
            case _:
                with self._preparing_lock:
                    cancelled = self._preparing.pop(command.message.id)
                if not cancelled:
                    self._submit(command)

    def _load_adapter(self, command: LoadAdapter) -> None:
        try:
            if self._engine is None:
                raise NotSupported("This model only gives embeddings, and adapters are for texts.", param="adapters")
            self._engine.add_adapter(command.name, Path(command.path))
        except QuantryError as error:
            self._outgoing.put(AdapterFailed(command.id, Failed(error.code, error.message, error.param)))
        else:
            self._outgoing.put(AdapterLoaded(command.id))

    def _pong(self, ping_id: int) -> Pong:
        engine = self._engine
        if engine is None:
            return Pong(id=ping_id, steps=self._embedder.steps, free_cells=0)
        return Pong(
            id=ping_id,
            steps=engine.steps + self._embedder.steps,
            free_cells=engine.free_cells,
            cached_cells=engine.cached_cells,
            threads=engine.threads,
        )

    def _submit(self, prepared: Prepared) -> None:
        message = prepared.message
        try:
            if isinstance(prepared, PreparedEmbed):
                self._embedder.submit(message.id, prepared.texts, prepared.message.request)
            elif isinstance(prepared, PreparedSubmit):
                if self._engine is None:
                    raise NotSupported(
                        "This model only gives embeddings (POST /v1/embeddings); use another one for text.",
                        param="model",
                    )
                self._engine.submit(
                    message.id,
                    prepared.tokens,
                    prepared.message.request,
                    prepared.constraint,
                    prepared.draft_model,
                    prepared.reading,
                    prepared.call_constraint,
                )
                self._unannounced[message.id] = len(prepared.tokens)
                if message.id in self._pause_first:
                    self._pause_first.discard(message.id)
                    self._engine.pause(message.id)
            else:
                raise prepared.error
        except QuantryError as error:
            self._fail(message, error)
        except Exception:
            # Nothing of this request is in the batch yet: it fails alone, and the others go on.
            traceback.print_exc()
            self._fail(message, InternalError("The request could not be started; the server's log has details."))

    def _fail(self, message: Submit | Embed, error: QuantryError) -> None:
        failed = Failed(error.code, error.message, error.param)
        if isinstance(message, Embed):
            self._outgoing.put(EmbedFailed(id=message.id, failed=failed))
        else:
            self._outgoing.put(Events(failed=[(message.id, failed)]))

    def _publish(self, events: list[tuple[int, GenerationEvent]]) -> None:
        if not events:
            return
        texts: list[tuple[int, int, str]] = []
        finished: list[tuple[int, Finished]] = []
        failed: list[tuple[int, Failed]] = []
        logprobs: list[tuple[int, int, tuple[TokenLogprob, ...]]] = []
        thoughts: list[tuple[int, int, str]] = []
        calls: list[tuple[int, ToolCallDelta]] = []
        started: list[tuple[int, int]] = []
        for request_id, event in events:
            if request_id in self._unannounced:
                started.append((request_id, self._unannounced.pop(request_id)))
            if isinstance(event, Token):
                if event.text:
                    texts.append((request_id, event.choice, event.text))
                if event.logprobs:
                    logprobs.append((request_id, event.choice, event.logprobs))
            elif isinstance(event, Finished):
                finished.append((request_id, event))
            elif isinstance(event, Thought):
                thoughts.append((request_id, event.choice, event.text))
            elif isinstance(event, ToolCallDelta):
                calls.append((request_id, event))
            else:
                failed.append((request_id, event))
        self._outgoing.put(Events(texts, finished, failed, logprobs, thoughts, calls, started))

    def _publish_embeddings(self) -> None:
        for request_id, outcome in self._embedder.step():
            if isinstance(outcome, Embeddings):
                self._outgoing.put(Embedded(id=request_id, embeddings=outcome))
            else:
                self._outgoing.put(EmbedFailed(id=request_id, failed=outcome))

    # --- the reading thread ------------------------------------------------------------------------------------

    def _read(self) -> None:
        while (message := self._frames.read_blocking(self._stream)) is not None:
            if isinstance(message, Submit | Embed):
                with self._preparing_lock:
                    self._preparing[message.id] = False
                self._preparer.put(message)
            elif isinstance(message, Ask):
                self._preparer.put(message)
            elif not isinstance(message, Load):
                self._commands.put(message)
        os._exit(0)  # the server is gone, and nobody is left to answer


def _make_engine(model: Model, load: Load) -> Engine | None:
    """The engine over a loaded model; None for a model that only embeds. Raises LoadFailed."""
    if model.has_encoder and model.has_decoder:
        raise LoadFailedError("This model translates one text into another, which is not supported; use another one.")
    if not model.has_decoder:
        return None
    context = Context(
        model,
        cells=load.context_length * load.parallel,
        sequences=load.parallel,
        batch_tokens=load.batch_tokens,
        threads=load.threads,
        flash_attention=load.flash_attention,
        cache_type_k=CacheType(load.cache_type_k),
        cache_type_v=CacheType(load.cache_type_v),
    )
    if not generates(context):
        context.close()
        return None
    options = EngineOptions(
        context_length=load.context_length,
        slots=load.parallel,
        batch_tokens=load.batch_tokens,
        threads=load.threads,
        max_gap_seconds=load.max_token_gap_seconds,
        keeps_prefixes=load.prefix_cache,
        speculates=load.speculation,
    )
    return Engine(model, context, options)


def _load_draft(path: Path, load: Load) -> DraftModel:
    return DraftModel(
        path,
        cells=load.context_length * load.parallel,
        slots=load.parallel,
        batch_tokens=load.batch_tokens,
        threads=load.threads,
        gpu_layers=load.gpu_layers,
        extra_buffers=load.extra_buffers,
        flash_attention=load.flash_attention,
    )


def main() -> int:
    """Entry point of `python -m service.workers.worker --channel FD`."""
    bind_to_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    arguments = parser.parse_args()
    return Worker(socket.socket(fileno=arguments.channel)).run()


if __name__ == "__main__":
    sys.exit(main())
