"""One text being generated: its tokens, sampler, grammar and stop strings, up to its end. On the engine's thread."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidGrammar
from service.domain.generation import (
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Timings,
    Token,
    TokenChance,
    TokenLogprob,
    Usage,
)
from service.engine.answer import AnswerStream, Reading
from service.engine.drafting import DraftModel
from service.engine.grammar import Constraint
from service.engine.logprobs import token_logprob
from service.engine.parted import PartedAnswer
from service.engine.sampling import Sampler, make_sampler
from service.engine.scheduler import Sequence
from service.engine.speculation import DraftLength, NgramIndex
from service.engine.text import TextStream
from service.llama.context import Context
from service.llama.model import Model


@dataclass(slots=True)
class Clock:
    """When a text passed its stages, by the monotonic clock; 0 for not yet."""

    submitted: float
    admitted: float = 0.0
    first_token: float = 0.0


@dataclass(slots=True, eq=False)
class Choice:
    """Everything the engine holds for one text of a request."""

    request_id: int
    index: int
    request: GenerationRequest
    sequence: Sequence
    max_tokens: int
    sampler: Sampler
    text: TextStream
    clock: Clock
    constraint: Constraint | None = None
    draft_model: DraftModel | None = None
    parts: PartedAnswer | None = None  # for an answer that is more than text
    ngrams: NgramIndex = field(default_factory=NgramIndex)
    short_match: DraftLength = field(default_factory=DraftLength)
    long_match: DraftLength = field(default_factory=lambda: DraftLength(hopeful=True))
    model_length: DraftLength = field(default_factory=DraftLength)
    guessed_by: DraftLength | None = None  # whose draft is being verified; None for tokens that a grammar forces
    # The next token as looked up, where no draft was worth computing, and who answers for it.
    foreseen: tuple[int, DraftLength] | None = None
    drafted: int = 0
    accepted: int = 0
    generated: int = 0
    finished: FinishReason | None = None

    @property
    def tokens_left(self) -> int:
        """How many more may be drawn."""
        return self.max_tokens - self.generated

    def draw(self, model: Model, context: Context, index: int, events: list[tuple[int, GenerationEvent]]) -> int:
        """Draw the next token from batch entry `index`, append its text to `events`; the token.

        Sets `finished` when it was the last one. Raises InvalidParameter when the grammar cannot go on.
        """
        logits = context.logits(index)
        raw = logits.copy() if self.request.logprobs is not None else None
        if self.request.ignore_eos:
            logits[model.end_tokens] = -np.inf
        if self.parts is not None:
            self.constraint = self.parts.constraint
            self.parts.steer(logits, model)
        if self.constraint is not None:
            self.constraint.mask(logits)
        token = self.sampler.sample(logits, context, index)
        self.generated += 1
        if self.generated == 1:
            self.clock.first_token = time.monotonic()
        if self.constraint is not None and not self.constraint.accept(token):
            raise InvalidGrammar(
                f"The grammar stopped working within the text ({self.constraint.error or 'no reason given'}). "
                "Make it simpler.",
                param="grammar",
            )
        if model.is_end(token) and not self.request.ignore_eos:
            self.finished = FinishReason.STOP
            return token
        if self.foreseen is not None:
            guess, length = self.foreseen
            length.observe(1, int(token == guess))
            self.foreseen = None
        self.sequence.tokens.append(token)
        if self.parts is not None:
            self._take_part(self.parts, token, model, raw, events)
        else:
            text = self.text.push(model.piece(token))
            logprobs = () if raw is None else (self._logprob(model, raw, token),)
            if text or logprobs:
                events.append((self.request_id, Token(text, self.index, logprobs)))
            if self.text.stopped_by is not None:
                self.finished = FinishReason.STOP
        if self.constraint is not None and self.constraint.is_finished:
            self.finished = FinishReason.STOP
        elif self.finished is None and self.tokens_left <= 0:
            self.finished = FinishReason.LENGTH
        return token

    def _take_part(
        self,
        parts: PartedAnswer,
        token: int,
        model: Model,
        raw: NDArray[np.float32] | None,
        events: list[tuple[int, GenerationEvent]],
    ) -> None:
        """The same for an answer that is more than text."""
        found = parts.take(token, model)
        if raw is not None and not parts.was_thought:
            events.append((self.request_id, Token("", self.index, (self._logprob(model, raw, token),))))
        events += ((self.request_id, part) for part in found)
        self.constraint = parts.constraint
        if parts.stream.stopped_by is not None or parts.stream.is_done:
            self.finished = FinishReason.STOP

    def last_events(self) -> list[GenerationEvent]:
        """What is left to say once `finished` is set."""
        events: list[GenerationEvent] = []
        if self.parts is not None:
            events += self.parts.stream.finish()
        elif rest := self.text.finish():
            events.append(Token(rest, self.index))
        now = time.monotonic()
        assert self.finished is not None
        stopped_by = self.text.stopped_by if self.parts is None else self.parts.stream.stopped_by
        reason = self.finished if stopped_by is None else FinishReason.STOP
        if self.parts is not None and self.parts.stream.calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        events.append(
            Finished(
                reason=reason,
                usage=Usage(
                    prompt_tokens=self.sequence.prompt_length,
                    completion_tokens=self.generated,
                    cached_tokens=self.sequence.cached,
                    draft_tokens=self.drafted,
                    accepted_tokens=self.accepted,
                    reasoning_tokens=0 if self.parts is None else self.parts.thought_tokens,
                ),
                timings=Timings(
                    queue_seconds=self.clock.admitted - self.clock.submitted,
                    prompt_seconds=self.clock.first_token - self.clock.admitted,
                    generation_seconds=now - self.clock.first_token,
                ),
                stop=stopped_by,
                choice=self.index,
            )
        )
        return events

    def note_draft(self, drafted: int, accepted: int) -> None:
        """A draft was verified."""
        self.drafted += drafted
        self.accepted += accepted
        if self.guessed_by is not None:
            self.guessed_by.observe(drafted, accepted)

    def close(self) -> None:
        """Free what it holds outside the engine's context."""
        self.sampler.close()
        if self.draft_model is not None:
            self.draft_model.forget(self.sequence)

    def _logprob(self, model: Model, raw: NDArray[np.float32], token: int) -> TokenLogprob:
        logprob, top = token_logprob(raw, token, self.request.logprobs or 0)
        logprob = dict(top).get(token, logprob)  # to the last bit the same number, for clients that compare
        chances = tuple(TokenChance(model.piece(other, special=True), value, other) for other, value in top)
        return TokenLogprob(model.piece(token, special=True), logprob, chances, token)


def make_choices(
    model: Model,
    request_id: int,
    tokens: list[int],
    request: GenerationRequest,
    *,
    max_tokens: int,
    constraint: Constraint | None,
    draft_model: DraftModel | None,
    reading: Reading | None = None,
    call_constraint: Constraint | None = None,
) -> list[Choice]:
    """The texts of one request, which share its prompt; each with a seed of its own.

    With a `reading` they are more than text, and `call_constraint` is for calls that the model begins by itself.
    """
    adapters = tuple(sorted((use.name, use.scale) for use in request.adapters if use.scale))
    salt: object = (request.cache_salt, adapters) if request.cache_prompt else object()
    choices = []
    for index in range(request.choices):
        seed = request.sampling.seed
        sampling = request.sampling if seed is None or index == 0 else replace(request.sampling, seed=seed + index)
        held_to = constraint if constraint is None or index == 0 else constraint.copy()
        parts = None
        if reading is not None:
            for_calls = call_constraint if call_constraint is None or index == 0 else call_constraint.copy()
            parts = PartedAnswer(reading, AnswerStream(reading, request.stop, index), held_to, for_calls)
        choices.append(
            Choice(
                request_id=request_id,
                index=index,
                request=request,
                sequence=Sequence(
                    tokens=list(tokens),
                    prompt_length=len(tokens),
                    client=request.client,
                    salt=salt,
                    adapters=adapters,
                    lasting=any(message.role == "assistant" for message in request.messages),
                ),
                max_tokens=max_tokens,
                sampler=make_sampler(sampling, model, tokens),
                text=TextStream(request.stop),
                clock=Clock(submitted=time.monotonic()),
                constraint=held_to if parts is None else parts.constraint,
                draft_model=draft_model,
                parts=parts,
            )
        )
    return choices
