"""Drafts from a smaller variant of the same model: it guesses greedily, the larger one verifies.

On the engine's thread. The smaller model has a context of its own, and follows a text lazily: what the text has gained
since the last guess is computed together with the next one. It shares no beginnings, so that its cells may run out;
then it gives no drafts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.domain.errors import InvalidParameter
from service.engine.scheduler import Sequence
from service.llama.context import Context
from service.llama.model import Model

_UNSURE = 0.4  # a guess less likely than this to the smaller model ends the draft
_WEIGHT = 0.25  # of the newest measurement


class _OutOfCellsError(Exception):
    """The smaller model's context is full."""


@dataclass(slots=True)
class _Followed:
    """How far the smaller model has read one sequence."""

    branch: int
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Draft:
    """A draft being written: tokens to read first, then guesses up to `limit` > 0."""

    followed: _Followed
    unread: list[int]
    limit: int
    guesses: list[int] = field(default_factory=list)


class DraftModel:
    """A smaller model that runs ahead."""

    def __init__(
        self,
        path: Path,
        *,
        cells: int,
        slots: int,
        batch_tokens: int,
        threads: int,
        gpu_layers: int,
        extra_buffers: bool,
        flash_attention: bool,
    ) -> None:
        """Load `path` with as many cells and sequences as the model it drafts for. Raises LoadFailed."""
        self.path = path
        self._model = Model(path, gpu_layers=gpu_layers, use_extra_buffers=extra_buffers)
        self._context = Context(
            self._model,
            cells=cells,
            sequences=slots,
            batch_tokens=batch_tokens,
            threads=threads,
            flash_attention=flash_attention,
        )
        self._followed: dict[int, _Followed] = {}  # by the sequence's id()
        self._free = list(range(slots))
        self.guess_seconds = 0.0  # of one guess for one text, measured

    def check(self, model: Model) -> None:
        """Raise InvalidParameter unless both models have the same vocabulary."""
        mine = [self._model.piece(token, special=True) for token in range(0, self._model.vocabulary_size, 97)]
        if self._model.vocabulary_size == model.vocabulary_size and mine == [
            model.piece(token, special=True) for token in range(0, model.vocabulary_size, 97)
        ]:
            if not self._model.has_recurrent_state:
                return
            raise InvalidParameter("A model with recurrent state cannot write drafts; leave draft out.", param="draft")
        raise InvalidParameter(
            "The draft has another vocabulary than the model; use a smaller level of the same model.", param="draft"
        )

    def propose(self, sequences: list[tuple[Sequence, int]], threads: int) -> list[list[int]]:
        """Guesses for each (sequence, most guesses > 0), in order; fewer where the smaller model is unsure."""
        self._context.use_threads(threads)
        self._make_room({id(sequence) for sequence, _ in sequences})
        drafts = [self._begin(sequence, limit) for sequence, limit in sequences]
        try:
            self._read_backlog(drafts)
            self._guess_all(drafts)
        except _OutOfCellsError:
            for sequence, _ in sequences:
                self.forget(sequence)
            return [[] for _ in sequences]
        return [draft.guesses for draft in drafts]

    def forget(self, sequence: Sequence) -> None:
        """The sequence runs no more."""
        followed = self._followed.pop(id(sequence), None)
        if followed is not None:
            self._context.forget(followed.branch)
            self._free.append(followed.branch)

    def close(self) -> None:
        """Free context and weights."""
        self._context.close()
        self._model.close()

    def _make_room(self, wanted: set[int]) -> None:
        """Give up texts that are not asked for now when there is no branch left for those that are."""
        missing = len(wanted - self._followed.keys()) - len(self._free)
        for key in [key for key in self._followed if key not in wanted][: max(0, missing)]:
            followed = self._followed.pop(key)
            self._context.forget(followed.branch)
            self._free.append(followed.branch)

    def _guess_all(self, drafts: list[_Draft]) -> None:
        started, guesses = time.monotonic(), 0
        active = drafts
        while active:
            guesses += len(active)
            active = self._guess(active)
        seconds = (time.monotonic() - started) / guesses
        known = self.guess_seconds or seconds
        self.guess_seconds = known + _WEIGHT * (min(seconds, 3 * known) - known)

    def _begin(self, sequence: Sequence, limit: int) -> _Draft:
        followed = self._followed.get(id(sequence))
        if followed is None:
            followed = self._followed[id(sequence)] = _Followed(self._free.pop())
        # The newest token is read again in any case: its logits are what the first guess comes from.
        known = _agreeing(followed.tokens, sequence.tokens[:-1])
        if known < len(followed.tokens):
            self._context.forget(followed.branch, known)
            del followed.tokens[known:]
        return _Draft(followed, sequence.tokens[known:], limit)

    def _read_backlog(self, drafts: list[_Draft]) -> None:
        """Compute long unread stretches (prompts), all but their last token."""
        capacity = self._context.batch.capacity
        for draft in drafts:
            while len(draft.unread) > 1 and len(draft.unread) > capacity // len(drafts):
                chunk = draft.unread[: min(capacity, len(draft.unread) - 1)]
                self._compute([(draft, chunk)], outputs=0)
                del draft.unread[: len(chunk)]

    def _guess(self, active: list[_Draft]) -> list[_Draft]:
        """One more guess for every draft; those that go on."""
        ends = self._compute([(draft, draft.unread) for draft in active], outputs=1)
        going = []
        for draft, end in zip(active, ends, strict=True):
            logits = self._context.logits(end)
            token = int(logits.argmax())
            chance = 1.0 / float(np.exp(logits - logits[token]).sum())
            draft.unread = [token]
            if chance < _UNSURE or self._model.is_end(token):
                continue
            draft.guesses.append(token)
            if len(draft.guesses) < draft.limit:
                going.append(draft)
        return going

    def _compute(self, runs: list[tuple[_Draft, list[int]]], *, outputs: int) -> list[int]:
        """Decode tokens behind what each followed sequence has; batch indices of their last ones."""
        batch = self._context.batch
        batch.clear()
        ends = []
        for draft, tokens in runs:
            followed = draft.followed
            first = batch.add(tokens, len(followed.tokens), followed.branch, logits=outputs)
            ends.append(first + len(tokens) - 1)
            followed.tokens += tokens
        if self._context.decode() != 0:
            raise _OutOfCellsError
        return ends


def _agreeing(left: list[int], right: list[int]) -> int:
    """How many tokens two lists have in common; they nearly always agree up to the last few."""
    count = min(len(left), len(right))
    if left[:count] == right[:count]:
        return count
    return next(index for index in range(count) if left[index] != right[index])
