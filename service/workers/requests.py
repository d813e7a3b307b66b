"""What was asked of one worker and has not ended: texts, vectors, answers, adapters. Server process.

Each ends once: by what the child says of it, by its client, or with the worker. Sends messages through a function;
knows no process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from service.domain.errors import InvalidParameter, QuantryError
from service.domain.generation import EmbeddingRequest, Embeddings, Failed, GenerationRequest, Thought, Token
from service.frames import BadFrame
from service.workers.options import WorkerOptions
from service.workers.pending import Pending, parts_of
from service.workers.protocol import (
    AdapterFailed,
    AdapterLoaded,
    Answered,
    Ask,
    AskFailed,
    Cancel,
    Embed,
    Embedded,
    EmbedFailed,
    Events,
    FromWorker,
    LoadAdapter,
    Pause,
    Resume,
    Submit,
    ToWorker,
)
from service.workers.questions import Answer, Question
from service.workers.stream import Stream


class Requests:
    """The requests in one worker, from its first to its end."""

    def __init__(self, send: Callable[[ToWorker], None], options: WorkerOptions) -> None:
        """`send` hands a message to the child, and raises BadFrame for one that is too long."""
        self._to_child = send
        self._options = options
        self._ids = itertools.count(1)
        self._streams: dict[int, tuple[Stream, float]] = {}  # request id -> stream, seconds spent loading for it
        self._uses: dict[int, frozenset[str]] = {}  # request id -> adapters, where it has some
        self._calls = 0  # of `embed`, `ask` and `load_adapter` under way
        self._vectors: Pending[Embeddings] = Pending()
        self._answers: Pending[Answer] = Pending()
        self._adapters: Pending[None] = Pending()
        self._idle = asyncio.Event()
        self._idle.set()
        self._over: QuantryError | None = None

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._streams) + self._calls

    async def wait_until_none(self) -> None:
        """Return when all have ended, by whatever end."""
        await self._idle.wait()

    def submit(self, request: GenerationRequest, load_seconds: float, draft_path: Path | None) -> Stream:
        """As `Worker.submit`."""
        request_id = next(self._ids)
        stream = Stream(
            on_cancel=lambda: self._cancel(request_id),
            max_buffered_characters=self._options.max_buffered_characters,
            choices=request.choices,
            pause_characters=self._options.pause_characters,
            on_pause=lambda: self._send_about(request_id, Pause(id=request_id)),
            on_resume=lambda: self._send_about(request_id, Resume(id=request_id)),
        )
        try:
            self._send(Submit(request_id, request, None if draft_path is None else os.fspath(draft_path)))
        except QuantryError as error:
            stream.put(_failed_event(error))
            return stream
        self._streams[request_id] = (stream, load_seconds)
        if request.adapters:
            self._uses[request_id] = frozenset(use.name for use in request.adapters)
        self._idle.clear()
        return stream

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `Worker.embed`."""
        with self._calling():
            answers = [await self._embed_part(part) for part in parts_of(request)]
        vectors = tuple(vector for answer in answers for vector in answer.vectors)
        return Embeddings(vectors, sum(answer.prompt_tokens for answer in answers))

    async def ask(self, question: Question) -> Answer:
        """As `Worker.ask`."""
        with self._calling():
            request_id = next(self._ids)
            self._send(Ask(request_id, question))
            answer = self._answers.open(request_id)
            try:
                return await answer
            finally:
                self._answers.forget(request_id)

    async def load_adapter(self, name: str, path: Path) -> None:
        """As `Worker.load_adapter`."""
        with self._calling():
            request_id = next(self._ids)
            self._send(LoadAdapter(request_id, name, os.fspath(path)))
            loaded = self._adapters.open(request_id)
            try:
                await loaded
            finally:
                self._adapters.forget(request_id)

    def uses_adapter(self, name: str) -> bool:
        """Whether one of them names it."""
        return any(name in names for names in self._uses.values())

    def take(self, message: FromWorker) -> None:
        """Hand what the child says to whom it concerns; what concerns nobody any more is dropped."""
        match message:
            case Events():
                self._deliver(message)
            case Embedded():
                self._vectors.deliver(message.id, message.embeddings)
            case EmbedFailed():
                self._vectors.fail(message.id, message.failed)
            case Answered():
                self._answers.deliver(message.id, message.answer)
            case AskFailed():
                self._answers.fail(message.id, message.failed)
            case AdapterLoaded():
                self._adapters.deliver(message.id, None)
            case AdapterFailed():
                self._adapters.fail(message.id, message.failed)

    def end(self, error: QuantryError) -> None:
        """The worker is gone, or about to go: all of them end with `error`, and so do those that come later."""
        self._over = error
        streams, self._streams = self._streams, {}
        self._uses.clear()
        for pending in (self._vectors, self._answers, self._adapters):
            pending.fail_all(error)
        self._note_idle()
        for stream, _ in streams.values():
            stream.put(_failed_event(error))

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Count a request that is awaited, and not a stream."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            self._note_idle()

    async def _embed_part(self, request: EmbeddingRequest) -> Embeddings:
        request_id = next(self._ids)
        self._send(Embed(request_id, request))
        answer = self._vectors.open(request_id)
        try:
            return await answer
        finally:
            if self._vectors.forget(request_id):
                self._to_child(Cancel(request_id))

    def _send(self, message: ToWorker) -> None:
        """Hand a new request to the child. Raises why the worker is gone, InvalidParameter for one that is too long."""
        if self._over is not None:
            raise self._over
        try:
            self._to_child(message)
        except BadFrame as error:
            raise InvalidParameter("The request is too long to be handed to the model; shorten it.") from error

    def _send_about(self, request_id: int, message: Pause | Resume) -> None:
        if request_id in self._streams:
            self._to_child(message)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._streams:
            self._forget(request_id)
            self._to_child(Cancel(id=request_id))

    def _forget(self, request_id: int) -> tuple[Stream, float]:
        found = self._streams.pop(request_id)
        self._uses.pop(request_id, None)
        self._note_idle()
        return found

    def _note_idle(self) -> None:
        if not len(self):
            self._idle.set()

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


def _failed_event(error: QuantryError) -> Failed:
    return Failed(error.code, error.message, error.param, error.retry_after_seconds)
