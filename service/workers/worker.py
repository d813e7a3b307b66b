"""The worker child: one loaded variant, one engine, one channel to the server. `python -m service.workers.worker`.

Four threads: the main one runs the engine loop and answers pings; one reads the channel; one turns words into tokens
(templates may be slow); one writes frames, so that the engine never waits for the server. Knows no HTTP and no SQL.
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
from dataclasses import dataclass
from pathlib import Path

from service.children import bind_to_parent
from service.domain.errors import InternalError, QuantryError
from service.domain.errors import LoadFailed as LoadFailedError
from service.domain.generation import Failed, Finished, GenerationEvent, GenerationRequest, SamplingParams, Token
from service.engine.engine import Engine
from service.engine.prompt import PromptRenderer
from service.frames import FrameReader, encode
from service.llama.context import Context
from service.llama.model import Model
from service.workers.protocol import (
    VERSION,
    Cancel,
    Close,
    Events,
    FromWorker,
    Load,
    LoadFailed,
    Ping,
    Pong,
    Ready,
    Submit,
    ToWorker,
)

_CANARY_PROMPT_TOKENS = 48  # more than llama.cpp's thresholds between its kernels for one token and for many
_CANARY_TOKENS = 4
_CANARY_ID = 0  # requests from the server count from 1


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request whose prompt is tokens now, or an error."""

    id: int
    request: GenerationRequest
    outcome: list[int] | QuantryError


class Worker:
    """Channel on one side, engine on the other."""

    def __init__(self, channel: socket.socket) -> None:
        """`channel` is one end of a stream socket pair."""
        self._stream = channel.makefile("rb")
        self._channel = channel
        self._frames: FrameReader[ToWorker] = FrameReader(ToWorker)
        self._commands: queue.SimpleQueue[_Prepared | Cancel | Ping | Close] = queue.SimpleQueue()
        self._prompts: queue.SimpleQueue[Submit] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self._preparing: dict[int, bool] = {}  # request id -> cancelled meanwhile
        self._preparing_lock = threading.Lock()

    def run(self) -> int:
        """Load, report, serve until told to close or until the server is gone; the exit status."""
        load = self._frames.read_blocking(self._stream)
        if not isinstance(load, Load) or load.version != VERSION:
            return 2
        try:
            started = time.monotonic()
            model, engine = _load(load)
            slowest_step = _run_canary(model, engine, load.batch_tokens)
        except QuantryError as error:
            self._channel.sendall(encode(LoadFailed(code=error.code, message=error.message)))
            return 0
        self._start_threads(model)
        self._outgoing.put(
            Ready(
                load_seconds=time.monotonic() - started,
                context_length=engine.context_length,
                cells=engine.free_cells,
                slowest_step_seconds=slowest_step,
            )
        )
        self._serve(engine)
        engine.close()
        return 0

    def _start_threads(self, model: Model) -> None:
        renderer = PromptRenderer(
            template=model.chat_template(),
            tokenize=model.tokenize,
            bos_token=model.bos_token,
            adds_bos=model.adds_bos,
            bos_text=model.piece(model.bos_token, special=True).decode("utf-8", "replace"),
            eos_text=model.piece(model.eos_token, special=True).decode("utf-8", "replace"),
            special_texts=model.special_texts(),
        )
        for target, arguments in ((self._read, ()), (self._prepare, (renderer,)), (self._write, ())):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def _serve(self, engine: Engine) -> None:
        while True:
            # Wait only when there is nothing to compute; otherwise take what has come and go on.
            command = self._commands.get() if engine.is_idle else self._next_command()
            while command is not None:
                if isinstance(command, Close):
                    return
                self._carry_out(engine, command)
                command = self._next_command()
            if not engine.is_idle:
                self._publish(engine.step())

    def _next_command(self) -> _Prepared | Cancel | Ping | Close | None:
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def _carry_out(self, engine: Engine, command: _Prepared | Cancel | Ping) -> None:
        if isinstance(command, Ping):
            self._outgoing.put(Pong(id=command.id, steps=engine.steps, free_cells=engine.free_cells))
        elif isinstance(command, Cancel):
            with self._preparing_lock:
                if command.id in self._preparing:
                    self._preparing[command.id] = True
            engine.cancel(command.id)
        else:
            with self._preparing_lock:
                cancelled = self._preparing.pop(command.id)
            if not cancelled:
                self._submit(engine, command)

    def _submit(self, engine: Engine, prepared: _Prepared) -> None:
        try:
            if isinstance(prepared.outcome, QuantryError):
                raise prepared.outcome
            engine.submit(prepared.id, prepared.outcome, prepared.request)
        except QuantryError as error:
            self._fail(prepared.id, error)
        except Exception:
            # Nothing of this request is in the batch yet: it fails alone, and the others go on.
            traceback.print_exc()
            self._fail(prepared.id, InternalError("The request could not be started; the server's log has details."))

    def _fail(self, request_id: int, error: QuantryError) -> None:
        failed = Failed(error.code, error.message, error.param)
        self._outgoing.put(Events(texts=[], finished=[], failed=[(request_id, failed)]))

    def _publish(self, events: list[tuple[int, GenerationEvent]]) -> None:
        if not events:
            return
        texts: list[tuple[int, int, str]] = []
        finished: list[tuple[int, Finished]] = []
        failed: list[tuple[int, Failed]] = []
        for request_id, event in events:
            if isinstance(event, Token):
                texts.append((request_id, event.choice, event.text))
            elif isinstance(event, Finished):
                finished.append((request_id, event))
            else:
                failed.append((request_id, event))
        self._outgoing.put(Events(texts=texts, finished=finished, failed=failed))

    def _read(self) -> None:
        while (message := self._frames.read_blocking(self._stream)) is not None:
            if isinstance(message, Submit):
                with self._preparing_lock:
                    self._preparing[message.id] = False
                self._prompts.put(message)
            elif isinstance(message, Cancel | Ping | Close):
                self._commands.put(message)
        os._exit(0)  # the server is gone, and nobody is left to answer

    def _prepare(self, renderer: PromptRenderer) -> None:
        while True:
            submit = self._prompts.get()
            outcome: list[int] | QuantryError
            try:
                outcome = renderer.tokens(submit.request)
            except QuantryError as error:
                outcome = error
            except Exception:
                traceback.print_exc()
                outcome = InternalError("The prompt could not be read; the server's log has details.")
            self._commands.put(_Prepared(submit.id, submit.request, outcome))

    def _write(self) -> None:
        while True:
            try:
                self._channel.sendall(encode(self._outgoing.get()))
            except OSError:
                os._exit(0)


def _load(load: Load) -> tuple[Model, Engine]:
    model = Model(Path(load.path), gpu_layers=load.gpu_layers, use_extra_buffers=load.extra_buffers)
    if not model.has_decoder or model.has_encoder:
        raise LoadFailedError("This model does not generate text token by token; use it for what it was made for.")
    context = Context(
        model,
        cells=load.context_length * load.parallel,
        sequences=load.parallel,
        batch_tokens=load.batch_tokens,
        threads=load.threads,
        flash_attention=load.flash_attention,
    )
    return model, Engine(
        model, context, context_length=load.context_length, slots=load.parallel, batch_tokens=load.batch_tokens
    )


def _run_canary(model: Model, engine: Engine, batch_tokens: int) -> float:
    """Compute a prompt and some tokens, as every request will; seconds a full batch would take at that pace.

    A build whose kernels do not run on this processor dies here, before anyone depends on it.
    """
    words = model.tokenize("the quick brown fox " * _CANARY_PROMPT_TOKENS, add_special=True, parse_special=False)
    tokens = words[: min(_CANARY_PROMPT_TOKENS, engine.context_length - _CANARY_TOKENS - 1)]
    request = GenerationRequest(
        prompt="", max_tokens=_CANARY_TOKENS, sampling=SamplingParams(temperature=0.0), ignore_eos=True
    )
    engine.submit(_CANARY_ID, tokens, request)
    while not engine.is_idle:
        for _, event in engine.step():
            if isinstance(event, Failed):
                raise LoadFailedError(f"The model was loaded but could not compute: {event.message}")
            if isinstance(event, Finished):
                return event.timings.prompt_seconds / len(tokens) * batch_tokens
    raise LoadFailedError("The model was loaded but gave no token.")


def main() -> int:
    """Entry point of `python -m service.workers.worker --channel FD`."""
    bind_to_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    arguments = parser.parse_args()
    return Worker(socket.socket(fileno=arguments.channel)).run()


if __name__ == "__main__":
    sys.exit(main())
