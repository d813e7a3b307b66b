"""What goes into the next batch: admission, chunked prompts, preemption. Pure: state in, plan out.

A sequence waits until a slot and enough cells are free, then its prompt is computed in chunks, then it takes one
token a step. Running streams come first in every batch, so that a long prompt does not stop them. When the cells run
out, the youngest running sequence is put back and later computes its tokens anew; its text does not change.

    waiting ──admit──> running ──finish──> gone
       ^                  │
       └────preempt───────┘
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """One request as the scheduler sees it. `tokens` holds the prompt and what was generated since.

    `computed` of them have their keys and values in cells; `slot` is llama.cpp's sequence id while running, else -1.
    """

    request_id: int
    tokens: list[int]
    prompt_length: int
    computed: int = 0
    slot: int = -1

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be drawn; at least 1 while it lives."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Entry:
    """A run of consecutive tokens of one sequence in the batch. `samples`: its last token's logits are wanted."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(slots=True)
class Plan:
    """One step: slots to clear first, then the entries to compute."""

    entries: list[Entry] = field(default_factory=list)
    cleared_slots: list[int] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Owns who waits, who runs, and which cells are taken."""

    def __init__(self, *, cells: int, slots: int, batch_tokens: int) -> None:
        """`cells` tokens of cache are shared by at most `slots` sequences; a batch holds `batch_tokens`."""
        self.cells = cells
        self.batch_tokens = batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of arrival, oldest first
        self._free_slots = list(range(slots - 1, -1, -1))

    @property
    def waiting_count(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def used_cells(self) -> int:
        """Cells that hold keys and values now."""
        return sum(sequence.computed for sequence in self._running)

    def add(self, sequence: Sequence) -> None:
        """A new request, behind those that wait. Its tokens and one more must fit into the cells."""
        assert 0 < len(sequence.tokens) < self.cells
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> int:
        """Forget a sequence that ended or was cancelled; the slot to clear, or -1 when it held none."""
        if sequence.slot < 0:
            self._waiting.remove(sequence)
            return -1
        self._running.remove(sequence)
        return self._release(sequence)

    def plan(self) -> Plan:
        """Decide the next step. An empty plan means there is nothing to do."""
        plan = Plan()
        self._make_room_for_running(plan)
        self._admit(plan)
        free = self.cells - self.used_cells
        room = min(self.batch_tokens, free)
        # Streams that generate first, one token each; then prompts, oldest first.
        for sequence in self._running:
            if sequence.pending == 1 and room:
                plan.entries.append(Entry(sequence, sequence.computed, 1, samples=True))
                room -= 1
        for sequence in self._running:
            if sequence.pending > 1 and room:
                count = min(sequence.pending, room)
                plan.entries.append(Entry(sequence, sequence.computed, count, samples=count == sequence.pending))
                room -= count
        return plan

    def preempt_youngest(self, plan: Plan) -> bool:
        """Put the youngest running sequence back in front of those that wait. False when fewer than two run."""
        if len(self._running) < 2:
            return False
        sequence = self._running.pop()
        plan.cleared_slots.append(self._release(sequence))
        self._waiting.appendleft(sequence)
        return True

    def _make_room_for_running(self, plan: Plan) -> None:
        # Each running sequence must be able to take a token; the oldest alone always fits, so this ends.
        while self._running and self.cells - self.used_cells < len(self._running):
            if not self.preempt_youngest(plan):
                break

    def _admit(self, plan: Plan) -> None:
        # What running prompts still have to compute is spoken for; and each stream keeps a token of room.
        promised = sum(sequence.pending for sequence in self._running)
        while self._waiting and self._free_slots:
            sequence = self._waiting[0]
            if self.used_cells + promised + len(sequence.tokens) + 1 > self.cells:
                break
            self._waiting.popleft()
            sequence.slot = self._free_slots.pop()
            promised += sequence.pending
            self._running.append(sequence)
            plan.admitted.append(sequence)

    def _release(self, sequence: Sequence) -> int:
        slot, sequence.slot, sequence.computed = sequence.slot, -1, 0
        self._free_slots.append(slot)
        return slot
