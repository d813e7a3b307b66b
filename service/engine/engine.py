"""The four verbs over one llama.cpp context: submit, cancel, step, close. One thread calls them all.

A step is: plan the batch, decode it, draw a token for every sequence that is due, give out what is final. The engine
knows token ids, text and time; it knows no HTTP, SQL, IPC or settings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.domain.errors import InternalError, InvalidParameter, PromptTooLong, QuantryError
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Timings,
    Token,
    Usage,
)
from service.engine.sampling import Sampler, make_sampler
from service.engine.scheduler import Plan, Scheduler, Sequence
from service.engine.text import TextStream
from service.llama.context import Context
from service.llama.model import Model

_NO_ROOM = 1  # llama_decode: no free cells for this batch


@dataclass(slots=True, eq=False)
class _Generation:
    """Everything the engine holds for one request."""

    sequence: Sequence
    request: GenerationRequest
    max_tokens: int
    sampler: Sampler
    text: TextStream
    submitted_at: float
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    generated: int = 0


class Engine:
    """Runs many generations at once over one context."""

    def __init__(self, model: Model, context: Context, *, context_length: int, slots: int, batch_tokens: int) -> None:
        """`context_length` bounds prompt and answer of one request, in tokens; the context's cells are shared."""
        self._model = model
        self._context = context
        self.context_length = min(context_length, context.cells)
        self._scheduler = Scheduler(cells=context.cells, slots=slots, batch_tokens=batch_tokens)
        self._generations: dict[int, _Generation] = {}
        self._pieces: dict[int, bytes] = {}
        self.steps = 0

    @property
    def is_idle(self) -> bool:
        """True when a step would do nothing."""
        return not self._generations

    @property
    def free_cells(self) -> int:
        """Cells without keys and values."""
        return self._scheduler.cells - self._scheduler.used_cells

    def submit(self, request_id: int, tokens: list[int], request: GenerationRequest) -> None:
        """Take a tokenized request. Raises PromptTooLong when it leaves no room, InvalidParameter when it is empty."""
        if not tokens:
            raise InvalidParameter(
                "The prompt is empty and this model adds no token of its own; send some text.", param="prompt"
            )
        room = self.context_length - len(tokens)
        if room < 1:
            raise PromptTooLong(
                f"The prompt is {len(tokens)} tokens long and the context holds {self.context_length}, of which "
                "the answer needs at least 1. Shorten the prompt, or load the model with a larger context.",
                param="messages" if request.messages else "prompt",
            )
        sequence = Sequence(request_id=request_id, tokens=list(tokens), prompt_length=len(tokens))
        self._generations[request_id] = _Generation(
            sequence=sequence,
            request=request,
            max_tokens=room if request.max_tokens is None else min(request.max_tokens, room),
            sampler=make_sampler(request.sampling, self._model.vocabulary_size, tokens),
            text=TextStream(request.stop),
            submitted_at=time.monotonic(),
        )
        self._scheduler.add(sequence)

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its cells; no event follows. Unknown ids are ignored: it may just have ended."""
        generation = self._generations.pop(request_id, None)
        if generation is not None:
            self._drop(generation)

    def step(self) -> list[tuple[int, GenerationEvent]]:
        """Compute one batch; events in the order they happened, tagged with request ids."""
        self.steps += 1
        plan = self._scheduler.plan()
        self._clear(plan)
        now = time.monotonic()
        for sequence in plan.admitted:
            generation = self._generations[sequence.request_id]
            generation.admitted_at = generation.admitted_at or now
        if not plan.entries:
            return []
        batch = self._context.batch
        batch.clear()
        indices: list[int] = []
        for entry in plan.entries:
            tokens = entry.sequence.tokens[entry.start : entry.start + entry.count]
            first = batch.add(tokens, entry.start, entry.sequence.slot, logits=int(entry.samples))
            indices.append(first + entry.count - 1)
        status = self._context.decode()
        if status != 0:
            return self._recover_from_decode(status, plan)
        events: list[tuple[int, GenerationEvent]] = []
        for entry, index in zip(plan.entries, indices, strict=True):
            entry.sequence.computed += entry.count
            if entry.samples:
                self._advance(self._generations[entry.sequence.request_id], index, events)
        return events

    def close(self) -> None:
        """Drop every request, then the context and the model."""
        for request_id in list(self._generations):
            self.cancel(request_id)
        self._context.close()
        self._model.close()

    def _advance(self, generation: _Generation, index: int, events: list[tuple[int, GenerationEvent]]) -> None:
        token = generation.sampler.sample(self._context, index)
        generation.generated += 1
        if generation.generated == 1:
            generation.first_token_at = time.monotonic()
        request_id = generation.sequence.request_id
        if not generation.request.ignore_eos and self._model.is_end(token):
            self._finish(generation, FinishReason.STOP, events)
            return
        generation.sequence.tokens.append(token)
        text = generation.text.push(self._piece(token))
        if text:
            events.append((request_id, Token(text)))
        if generation.text.stopped_by is not None:
            self._finish(generation, FinishReason.STOP, events)
        elif generation.generated >= generation.max_tokens:
            self._finish(generation, FinishReason.LENGTH, events)

    def _finish(self, generation: _Generation, reason: FinishReason, events: list[tuple[int, GenerationEvent]]) -> None:
        request_id = generation.sequence.request_id
        rest = generation.text.finish()
        if rest:
            events.append((request_id, Token(rest)))
        now = time.monotonic()
        events.append(
            (
                request_id,
                Finished(
                    reason=FinishReason.STOP if generation.text.stopped_by is not None else reason,
                    usage=Usage(generation.sequence.prompt_length, generation.generated),
                    timings=Timings(
                        queue_seconds=generation.admitted_at - generation.submitted_at,
                        prompt_seconds=generation.first_token_at - generation.admitted_at,
                        generation_seconds=now - generation.first_token_at,
                    ),
                    stop=generation.text.stopped_by,
                ),
            )
        )
        del self._generations[request_id]
        self._drop(generation)

    def _recover_from_decode(self, status: int, plan: Plan) -> list[tuple[int, GenerationEvent]]:
        # Some cells of the failed batch may have been written: cut every sequence back to what was computed before.
        for entry in plan.entries:
            self._context.forget(entry.sequence.slot, entry.sequence.computed)
        again = Plan()
        if status == _NO_ROOM and self._scheduler.preempt_youngest(again):
            self._clear(again)
            return []
        error: QuantryError = InternalError(
            f"llama.cpp could not compute this batch (status {status}); send the request again."
        )
        events: list[tuple[int, GenerationEvent]] = []
        for entry in plan.entries:
            request_id = entry.sequence.request_id
            events.append((request_id, Failed(error.code, error.message)))
            self.cancel(request_id)
        return events

    def _clear(self, plan: Plan) -> None:
        for slot in plan.cleared_slots:
            self._context.forget(slot)

    def _drop(self, generation: _Generation) -> None:
        generation.sampler.close()
        slot = self._scheduler.remove(generation.sequence)
        if slot >= 0:
            self._context.forget(slot)

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._model.piece(token)
        return piece
