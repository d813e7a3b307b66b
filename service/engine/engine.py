"""The verbs over one llama.cpp context: submit, cancel, pause, resume, step, close. One thread calls them all.

A step is: guess tokens ahead where that pays, plan the batch, decode it, draw tokens for every sequence that is due,
give out what is final. The engine knows token ids, text and time; it knows no HTTP, SQL, IPC or settings.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import InternalError, InvalidParameter, PromptTooLong, QuantryError
from service.domain.generation import Failed, GenerationEvent, GenerationRequest
from service.engine.answer import Reading
from service.engine.choice import Choice, make_choices
from service.engine.drafting import DraftModel
from service.engine.governor import Governor, Work
from service.engine.grammar import Constraint
from service.engine.neighbours import Neighbours
from service.engine.pace import Pace
from service.engine.prefix_cache import CacheAction, Cut, PrefixCache
from service.engine.scheduler import Entry, Plan, Scheduler
from service.engine.scheduler import Sequence as ScheduledSequence
from service.engine.speculation import DraftLength
from service.llama.adapter import Adapter, use_adapters
from service.llama.context import Context
from service.llama.model import Model

_NO_ROOM = 1  # llama_decode: no free cells for this batch
_LONGER_ALONE = 2
_LONGEST_MODEL_DRAFT = 16  # each guess of a smaller model costs a decode

Events = list[tuple[int, GenerationEvent]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What one engine may use. `context_length` bounds prompt and answer of one text, in tokens."""

    context_length: int
    slots: int
    batch_tokens: int
    threads: int
    max_gap_seconds: float = 0.25
    keeps_prefixes: bool = True
    speculates: bool = True


class Engine:
    """Runs many texts at once over one context."""

    def __init__(
        self, model: Model, context: Context, options: EngineOptions, adapters: Mapping[str, Adapter] | None = None
    ) -> None:
        """The context's cells are shared by all texts; `adapters` are those that requests may name."""
        self._model = model
        self._context = context
        self._options = options
        self._adapters = dict(adapters or {})
        self.context_length = min(options.context_length, context.cells)
        # Drafts need cuts at the end of a sequence, sharing needs them anywhere; recurrent state allows neither.
        can_cut = not model.has_recurrent_state
        self._cache = PrefixCache(
            cells=context.cells, branches=context.sequences, can_cut=can_cut, keeps=options.keeps_prefixes
        )
        self._scheduler = Scheduler(
            self._cache, slots=options.slots, batch_tokens=options.batch_tokens, max_outputs=context.max_outputs
        )
        self._speculates = options.speculates and can_cut
        self._pace = Pace(batch_tokens=options.batch_tokens, max_gap_seconds=options.max_gap_seconds)
        self._governor = Governor(max_threads=options.threads)
        self._neighbours = Neighbours()
        self._requests: dict[int, list[Choice]] = {}
        self._choices: dict[int, Choice] = {}  # by the id() of their sequence
        self.steps = 0
        self.threads = options.threads

    @property
    def is_idle(self) -> bool:
        """True when a step would do nothing: no request is there, or only paused ones."""
        return not self._scheduler.has_work

    @property
    def free_cells(self) -> int:
        """Cells without keys and values that a request needs; cached ones count as free."""
        return self._cache.cells - self._cache.held_cells

    @property
    def cached_cells(self) -> int:
        """Cells that only the prefix cache keeps."""
        return self._cache.cached_cells

    def submit(
        self,
        request_id: int,
        tokens: list[int],
        request: GenerationRequest,
        constraint: Constraint | None = None,
        draft_model: DraftModel | None = None,
        reading: Reading | None = None,
        call_constraint: Constraint | None = None,
    ) -> None:
        """Take a tokenized request, with its compiled grammar and the model that drafts for it where it has them.

        `reading` is for answers with thinking or tool calls, `call_constraint` for calls that a model begins by itself.

        Raises PromptTooLong when it leaves no room, InvalidParameter when it is empty or names an unknown adapter.
        """
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
        for use in request.adapters:
            if use.name not in self._adapters:
                raise InvalidParameter(
                    f"This model has no adapter {use.name!r}; it has {sorted(self._adapters) or 'none'}.",
                    param="adapters",
                )
        choices = make_choices(
            self._model,
            request_id,
            tokens,
            request,
            max_tokens=room if request.max_tokens is None else min(request.max_tokens, room),
            constraint=constraint,
            draft_model=draft_model,
            reading=reading,
            call_constraint=call_constraint,
        )
        self._requests[request_id] = choices
        for choice in choices:
            self._choices[id(choice.sequence)] = choice
            self._scheduler.add(choice.sequence)

    def add_adapter(self, name: str, path: Path) -> None:
        """Load an adapter that requests may name from now on; one of that name that is there stays.

        Raises LoadFailed for a file that is none, or none for this model.
        """
        if name not in self._adapters:
            self._adapters[name] = Adapter(self._model, path)

    def drop_adapter(self, name: str) -> None:
        """Free an adapter; one that a request uses stays, and an unknown one is none."""
        if any(use.name == name for choice in self._choices.values() for use in choice.request.adapters):
            return
        adapter = self._adapters.pop(name, None)
        if adapter is not None:
            # The context must not know it any more: another one may come to lie where it was.
            use_adapters(self._context, ())
            adapter.close()

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its cells; no event follows. Unknown ids are ignored: it may just have ended."""
        for choice in self._requests.pop(request_id, ()):
            if choice.finished is None:
                self._drop(choice)

    def pause(self, request_id: int) -> None:
        """Compute nothing for a request until `resume`: its client does not read. Others may use its slots."""
        for choice in self._requests.get(request_id, ()):
            if choice.finished is None:
                self._scheduler.park(choice.sequence)

    def resume(self, request_id: int) -> None:
        """Go on with a paused request."""
        for choice in self._requests.get(request_id, ()):
            if choice.finished is None:
                self._scheduler.unpark(choice.sequence)

    def step(self) -> Events:
        """Compute one batch; events in the order they happened, tagged with request ids."""
        self.steps += 1
        self._guess()
        now = time.monotonic()
        plan = self._scheduler.plan(self._pace.prompt_tokens(len(self._scheduler.generating)))
        self._carry_out(plan.actions)
        for sequence in plan.admitted:
            self._choices[id(sequence)].clock.admitted = now
        if not plan.entries:
            return []
        batch = self._context.batch
        batch.clear()
        firsts = [
            batch.add(entry.tokens, entry.start, entry.sequence.branch, logits=entry.outputs) for entry in plan.entries
        ]
        self._use_adapters(plan.adapters)
        status = self._decode(plan)
        if status != 0:
            return self._recover_from_decode(status, plan)
        events: Events = []
        for entry, first in zip(plan.entries, firsts, strict=True):
            if entry.outputs:
                self._advance(entry, first, events)
            else:
                self._scheduler.accept(entry, len(entry.tokens))
        self._carry_out(self._cache.take_actions())
        return events

    def close(self) -> None:
        """Drop every request, then the context, the adapters and the model."""
        for request_id in list(self._requests):
            self.cancel(request_id)
        self._neighbours.close()
        self._context.close()
        for adapter in self._adapters.values():
            adapter.close()
        self._model.close()

    # --- a step ------------------------------------------------------------------------------------------------

    def _guess(self) -> None:
        """Give every running stream the draft that pays, by what steps cost and how its guesses fared."""
        if not self._speculates:
            return
        generating = self._scheduler.generating
        streams = len(generating)
        asked: dict[DraftModel, list[tuple[ScheduledSequence, int]]] = {}
        for sequence in generating:
            choice = self._choices[id(sequence)]
            sequence.draft = []
            limit = min(choice.tokens_left - 1, self._context.max_outputs - streams)
            if not choice.request.speculate or limit <= 0:
                continue
            if choice.constraint is not None and (forced := choice.constraint.forced()):
                sequence.draft, choice.guessed_by = forced[:limit], None
                continue
            draft, is_long = choice.ngrams.draft(sequence.tokens, limit)
            match = choice.long_match if is_long else choice.short_match
            length = self._draft_length(match, len(draft), streams) if draft else 0
            if length:
                sequence.draft, choice.guessed_by = draft[:length], match
                continue
            choice.foreseen = (draft[0], match) if draft else None
            if choice.draft_model is not None:
                model = choice.draft_model
                length = self._draft_length(
                    choice.model_length, min(limit, _LONGEST_MODEL_DRAFT), streams, model.guess_seconds
                )
                if length:
                    choice.guessed_by = choice.model_length
                    asked.setdefault(model, []).append((sequence, length))
        for model, wishes in asked.items():
            for (sequence, _), draft in zip(wishes, model.propose(wishes, self.threads), strict=True):
                sequence.draft = draft

    def _draft_length(self, length: DraftLength, limit: int, streams: int, guess_seconds: float = 0.0) -> int:
        # A stream alone gets the tokens of a long step all at once; others would only wait for it.
        longest = self._options.max_gap_seconds * (1 if streams > 1 else _LONGER_ALONE)
        return length.choose(limit, streams, self._pace.step_seconds, longest, guess_seconds=guess_seconds)

    def _decode(self, plan: Plan) -> int:
        work = Work(generated=plan.generated_tokens, prompt=plan.prompt_tokens)
        started = time.monotonic()
        self.threads = self._governor.threads(work, started, self._neighbours.free_cores(started))
        self._context.use_threads(self.threads)
        status = self._context.decode()
        now = time.monotonic()
        self._governor.observe(work, self.threads, now - started, now)
        self._pace.observe(plan.generated_tokens, plan.prompt_tokens, now - started)
        return status

    def _advance(self, entry: Entry, first: int, events: Events) -> None:
        """Draw tokens for one sequence, as long as they are those that were drafted, and one more."""
        sequence = entry.sequence
        choice = self._choices[id(sequence)]
        known = len(entry.tokens) - entry.outputs + 1  # of the entry's tokens, those that were no guess
        draft = entry.tokens[known:]
        accepted = 0
        try:
            for offset in range(entry.outputs):
                token = choice.draw(self._model, self._context, first + known - 1 + offset, events)
                if choice.finished is not None or offset == len(draft) or token != draft[offset]:
                    break
                accepted += 1
        except QuantryError as error:
            self._fail([choice.request_id], error, events)
            return
        if draft:
            choice.note_draft(len(draft), accepted)
        self._scheduler.accept(entry, known + accepted)
        if accepted < len(draft):
            self._context.forget(sequence.branch, sequence.computed)
        if choice.finished is not None:
            events += ((choice.request_id, event) for event in choice.last_events())
            self._drop(choice)
            if all(other.finished is not None for other in self._requests[choice.request_id]):
                del self._requests[choice.request_id]

    def _recover_from_decode(self, status: int, plan: Plan) -> Events:
        # Some cells of the failed batch may have been written: cut every sequence back to what was computed before.
        for entry in plan.entries:
            if not self._context.forget(entry.sequence.branch, entry.sequence.computed):
                # A recurrent state is past what we know: start this sequence over.
                self._context.forget(entry.sequence.branch)
                self._scheduler.restart(entry.sequence)
        if status == _NO_ROOM and self._scheduler.preempt_youngest():
            return []
        error = InternalError(f"llama.cpp could not compute this batch (status {status}); send the request again.")
        events: Events = []
        self._fail(self._requests_of(plan.entries), error, events)
        self._carry_out(self._cache.take_actions())
        return events

    def _requests_of(self, entries: Sequence[Entry]) -> list[int]:
        return list(dict.fromkeys(self._choices[id(entry.sequence)].request_id for entry in entries))

    def _fail(self, request_ids: Sequence[int], error: QuantryError, events: Events) -> None:
        for request_id in request_ids:
            events.append((request_id, Failed(error.code, error.message, error.param)))
            self.cancel(request_id)

    def _use_adapters(self, uses: Hashable) -> None:
        if self._adapters:
            assert isinstance(uses, tuple)
            use_adapters(self._context, tuple((self._adapters[name], scale) for name, scale in uses))

    def _carry_out(self, actions: Sequence[CacheAction]) -> None:
        for action in actions:
            if isinstance(action, Cut):
                self._context.forget(action.branch, action.start, action.end)
            else:
                self._context.share(action.source, action.target, action.start, action.end)

    def _drop(self, choice: Choice) -> None:
        choice.close()
        sequence: ScheduledSequence = choice.sequence
        del self._choices[id(sequence)]
        self._scheduler.remove(sequence, keep=choice.request.cache_prompt)
