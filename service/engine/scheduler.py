"""What goes into the next batch. Pure: state in, plan out; no llama.cpp, no clock.

A sequence waits until it is its client's turn and a slot and enough cells are free. It starts from the longest
beginning that the cache holds, its prompt is computed in chunks, then it takes one token a step (and what was drafted
for it). Running streams come first in every batch, and a bound on prompt tokens keeps their pace. When the cells run
out, first cached beginnings go, then the youngest running sequence is put back; its text does not change.

    waiting ──admit──> running ──remove──> gone
     ^  ^ └──park──┐      │ │
     │  └───────────── preempt
     └──unpark── parked <─┘ park        (its client does not read)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from service.engine.fairness import FairQueue
from service.engine.prefix_cache import CacheAction, Match, PrefixCache

# Fewer tokens than this are computed again rather than waited for.
_WORTH_WAITING = 8
# Cells that wait for somebody to come back slow running streams down: beside them only so many, or a quarter of theirs.
_IDLE_CELLS = 256
# A beginning that two prompts share is worth a checkpoint from this length on (memories that cannot be cut).
_WORTH_CHECKPOINT = 32


@dataclass(slots=True, eq=False)
class Sequence:
    """One text as the scheduler sees it. `tokens` holds the prompt and what was generated since.

    `computed` of them have their keys and values in cells; `branch` is llama.cpp's sequence id while running, else -1.
    `salt` says whose cached beginnings it may use, `adapters` with whom it can share a batch. `draft` are tokens that
    may follow, to be verified in the next step.
    """

    tokens: list[int]
    prompt_length: int
    client: str = ""
    salt: Hashable = ""
    adapters: Hashable = ()
    draft: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0  # tokens found in the cache when it was first admitted
    branch: int = -1
    lasting: bool = False  # a conversation: its next turn is expected
    parked: bool = False
    was_admitted: bool = False
    waits_for: Sequence | None = None  # computes a beginning that this one shares ...
    waits_until: int = 0  # ... as soon as it has this many tokens
    fork_points: set[int] = field(default_factory=set)

    @property
    def pending(self) -> int:
        """Tokens still to compute before the next one can be drawn; at least 1 while it lives."""
        return len(self.tokens) - self.computed

    @property
    def is_generating(self) -> bool:
        """Only its newest token is to be computed."""
        return self.branch >= 0 and self.pending == 1 and len(self.tokens) > self.prompt_length


@dataclass(frozen=True, slots=True)
class Entry:
    """Consecutive tokens of one sequence in the batch, from position `start`; the last `outputs` of them get logits."""

    sequence: Sequence
    start: int
    tokens: list[int]
    outputs: int


@dataclass(slots=True)
class Plan:
    """One step: what to do to the cache first, then the entries to compute, all with the same adapters."""

    entries: list[Entry] = field(default_factory=list)
    actions: list[CacheAction] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    adapters: Hashable = ()
    generated_tokens: int = 0
    prompt_tokens: int = 0


class Scheduler:
    """Owns who waits, who runs, and which cells are taken."""

    def __init__(self, cache: PrefixCache, *, slots: int, batch_tokens: int, max_outputs: int) -> None:
        """At most `slots` sequences run; a batch holds `batch_tokens`, and `max_outputs` of them get logits."""
        self.cache = cache
        self.slots = slots
        self.batch_tokens = batch_tokens
        self.max_outputs = max_outputs
        self._queue: FairQueue[Sequence] = FairQueue()
        self._running: list[Sequence] = []  # in order of admission, oldest first
        self._turn = 0  # counts steps, for taking turns between sets of adapters

    @property
    def generating(self) -> list[Sequence]:
        """Running sequences that take a token in the next step."""
        return [sequence for sequence in self._running if sequence.is_generating]

    @property
    def has_work(self) -> bool:
        """Something runs or could run: a plan is worth making."""
        return bool(self._running) or bool(self._queue)

    def add(self, sequence: Sequence) -> None:
        """A new sequence, behind those of its client that wait. Its tokens and one more must fit into the cells."""
        assert 0 < len(sequence.tokens) < self.cache.cells
        self._queue.enter(sequence.client)
        self._queue.push(sequence)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence that ended or was cancelled; with `keep` what it computed stays cached."""
        self._stop_running(sequence, keep=keep)
        self._queue.discard(sequence)
        self._queue.leave(sequence.client)

    def park(self, sequence: Sequence) -> None:
        """Compute nothing for it until `unpark`; its slot goes to others, its cells become cached ones."""
        sequence.parked = True
        self._stop_running(sequence, keep=True)
        self._queue.discard(sequence)

    def unpark(self, sequence: Sequence) -> None:
        """Let it run again, before others of its client."""
        if sequence.parked:
            sequence.parked = False
            self._queue.push(sequence, front=True)

    def accept(self, entry: Entry, tokens: int) -> None:
        """A decode has succeeded: the first `tokens` tokens of the entry count, the rest was drafted and refused."""
        sequence = entry.sequence
        if sequence.branch >= 0:
            self.cache.extend(sequence.branch, entry.tokens[:tokens])
            sequence.computed += tokens

    def plan(self, prompt_tokens: int) -> Plan:
        """Decide the next step, with at most `prompt_tokens` tokens of prompts. An empty plan: nothing can be done."""
        plan = Plan()
        if any(sequence.is_generating for sequence in self._running):
            self.cache.trim(max(_IDLE_CELLS, self.cache.held_cells // 4))
        self._make_room_for_running()
        self._leave_checkpoints()
        self._admit(plan)
        plan.adapters = self._choose_adapters()
        group = [sequence for sequence in self._running if sequence.adapters == plan.adapters]
        self._add_generating(plan, group)
        self._add_prompts(plan, group, prompt_tokens)
        made = self.cache.make_room(plan.generated_tokens + plan.prompt_tokens)
        assert made, "the plan takes more cells than there are"
        plan.actions = self.cache.take_actions()
        return plan

    def preempt_youngest(self) -> bool:
        """Put the youngest running sequence back in front of those that wait. False when fewer than two run."""
        if len(self._running) < 2:
            return False
        sequence = self._running[-1]
        self._stop_running(sequence, keep=True)
        self._queue.push(sequence, front=True)
        return True

    def restart(self, sequence: Sequence) -> None:
        """Its cells are lost: let it compute everything anew, before others of its client."""
        self._stop_running(sequence, keep=False)
        self._queue.push(sequence, front=True)

    # --- inside ------------------------------------------------------------------------------------------------

    def _stop_running(self, sequence: Sequence, *, keep: bool) -> None:
        if sequence.branch < 0:
            return
        self._running.remove(sequence)
        if keep:
            self.cache.keep(sequence.branch, lasting=sequence.lasting)
        else:
            self.cache.release(sequence.branch)
        sequence.branch = -1
        sequence.computed = 0
        sequence.draft = []
        sequence.fork_points.clear()

    @property
    def _available(self) -> int:
        return self.cache.cells - self.cache.held_cells

    def _make_room_for_running(self) -> None:
        # Each running sequence must be able to take a token; the oldest alone always fits, so this ends.
        while self._available < len(self._running) and self.preempt_youngest():
            pass

    def _leave_checkpoints(self) -> None:
        for sequence in self._running:
            if sequence.computed in sequence.fork_points:
                sequence.fork_points.discard(sequence.computed)
                self.cache.checkpoint(sequence.branch)

    def _admit(self, plan: Plan) -> None:
        if len(self._running) >= self.slots:
            return
        # What running prompts still have to compute is spoken for; and each stream keeps a token of room.
        promised = sum(sequence.pending for sequence in self._running)
        passed: set[int] = set()  # those that wait for a prompt under way; others may overtake them
        while len(self._running) < self.slots:
            sequence = next((item for item in self._queue.in_turn() if id(item) not in passed), None)
            if sequence is None:
                return
            match = self._match(sequence)
            if self._should_wait(sequence, match):
                passed.add(id(sequence))
                continue
            rest = len(sequence.tokens) - match.length
            if self.cache.newly_held(match) + promised + rest + 1 > self._available:
                return  # nobody overtakes it, or a long prompt might wait for ever
            self._start(sequence, match, plan)
            promised += sequence.pending

    def _start(self, sequence: Sequence, match: Match, plan: Plan) -> None:
        self._queue.discard(sequence)
        sequence.branch = self.cache.take(sequence.salt, match)
        sequence.computed = self.cache.length(sequence.branch)
        if not self.cache.can_cut and match.known - match.length >= _WORTH_CHECKPOINT:
            sequence.fork_points.add(match.known)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.cached = sequence.computed
            plan.admitted.append(sequence)
        self._queue.charge(sequence.client, sequence.pending)
        self._running.append(sequence)

    def _match(self, sequence: Sequence) -> Match:
        # The last token is computed in any case: its logits are what the first new token is drawn from.
        return self.cache.match(sequence.salt, sequence.tokens[:-1])

    def _should_wait(self, sequence: Sequence, match: Match) -> bool:
        """True while a running prompt is about to compute more of the same beginning than is cached now."""
        other = sequence.waits_for
        if other is not None and other.branch >= 0 and other.computed < sequence.waits_until:
            return True
        sequence.waits_for = None
        best = match.length + _WORTH_WAITING
        for other in self._running:
            if other.salt != sequence.salt or other.computed >= other.prompt_length:
                continue
            common = min(_common_length(sequence.tokens, other.tokens), len(sequence.tokens) - 1)
            if common > other.computed and common >= best:
                best = common
                sequence.waits_for, sequence.waits_until = other, common
        if sequence.waits_for is None:
            return False
        if not self.cache.can_cut:
            sequence.waits_for.fork_points.add(sequence.waits_until)
        return True

    def _choose_adapters(self) -> Hashable:
        """The sets of adapters in use take turns, step by step."""
        self._turn += 1
        sets = list(dict.fromkeys(sequence.adapters for sequence in self._running))
        return sets[self._turn % len(sets)] if sets else ()

    def _add_generating(self, plan: Plan, group: list[Sequence]) -> None:
        streams = [sequence for sequence in group if sequence.pending == 1]
        room = min(self.batch_tokens, self.max_outputs)
        cells = self._available - len(self._running)
        spare = max(0, min(room - len(streams), cells))
        for sequence in streams[:room]:
            draft = sequence.draft[:spare]
            spare -= len(draft)
            plan.entries.append(
                Entry(sequence, sequence.computed, [sequence.tokens[-1], *draft], outputs=1 + len(draft))
            )
            plan.generated_tokens += 1 + len(draft)
            self._queue.charge(sequence.client, 1)

    def _add_prompts(self, plan: Plan, group: list[Sequence], prompt_tokens: int) -> None:
        room = min(
            prompt_tokens,
            self.batch_tokens - plan.generated_tokens,
            self._available - plan.generated_tokens,
        )
        outputs = self.max_outputs - plan.generated_tokens
        for sequence in group:
            if sequence.pending <= 1:
                continue
            if room <= 0 or outputs <= 0:
                break
            count = min(sequence.pending, room)
            for point in sequence.fork_points:
                if sequence.computed < point:
                    count = min(count, point - sequence.computed)
            is_last = count == sequence.pending
            tokens = sequence.tokens[sequence.computed : sequence.computed + count]
            plan.entries.append(Entry(sequence, sequence.computed, tokens, outputs=int(is_last)))
            plan.prompt_tokens += count
            room -= count
            outputs -= is_last


def _common_length(left: list[int], right: list[int]) -> int:
    """How many tokens two lists have in common from the beginning; slices are compared, which C does."""
    low, high = 0, min(len(left), len(right)) + 1  # the first `low` agree; the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
