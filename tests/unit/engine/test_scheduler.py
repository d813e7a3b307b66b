"""Promises of the scheduler over random workloads: every request ends, none twice, cells are conserved."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import Plan, Scheduler, Sequence

REQUESTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 60)),  # prompt, answer, arrival step
    min_size=1,
    max_size=14,
)


class Simulation:
    """Drives the scheduler as the engine does, with a cache that only counts."""

    def __init__(self, cells: int, slots: int, batch_tokens: int) -> None:
        self.scheduler = Scheduler(cells=cells, slots=slots, batch_tokens=batch_tokens)
        self.cells, self.slots, self.batch_tokens = cells, slots, batch_tokens
        self.cached: Counter[int] = Counter()  # slot -> cells in use
        self.answers: Counter[int] = Counter()

    def step(self) -> list[Sequence]:
        plan = self.scheduler.plan()
        for slot in plan.cleared_slots:
            self.cached.pop(slot, None)
        self.check(plan)
        due = []
        for entry in plan.entries:
            assert entry.start == self.cached[entry.sequence.slot] == entry.sequence.computed
            self.cached[entry.sequence.slot] += entry.count
            entry.sequence.computed += entry.count
            if entry.samples:
                entry.sequence.tokens.append(7)
                self.answers[entry.sequence.request_id] += 1
                due.append(entry.sequence)
        assert sum(self.cached.values()) == self.scheduler.used_cells <= self.cells
        return due

    def check(self, plan: Plan) -> None:
        slots = [entry.sequence.slot for entry in plan.entries]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < self.slots for slot in slots)
        assert all(entry.count >= 1 for entry in plan.entries)
        assert sum(entry.count for entry in plan.entries) <= self.batch_tokens

    def end(self, sequence: Sequence) -> None:
        slot = self.scheduler.remove(sequence)
        if slot >= 0:
            self.cached.pop(slot, None)


@settings(max_examples=200, deadline=None)
@given(REQUESTS, st.integers(71, 200), st.integers(1, 6), st.integers(1, 32))
def test_every_request_ends_once_and_gives_its_cells_back(
    requests: list[tuple[int, int, int]], cells: int, slots: int, batch_tokens: int
) -> None:
    simulation = Simulation(cells, slots, batch_tokens)
    pending = sorted(enumerate(requests), key=lambda item: item[1][2])
    wanted: dict[int, int] = {}
    ended: list[int] = []
    for step in range(20_000):
        while pending and pending[0][1][2] <= step:
            number, (prompt, answer, _) = pending.pop(0)
            wanted[number] = answer
            simulation.scheduler.add(Sequence(number, [1] * prompt, prompt))
        for sequence in simulation.step():
            if simulation.answers[sequence.request_id] >= wanted[sequence.request_id]:
                simulation.end(sequence)
                ended.append(sequence.request_id)
        if not pending and len(ended) == len(requests):
            break
    assert sorted(ended) == list(range(len(requests)))
    assert simulation.scheduler.used_cells == 0
    assert simulation.scheduler.running_count == simulation.scheduler.waiting_count == 0


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.data())
def test_cancelling_at_any_step_frees_all_cells(requests: list[tuple[int, int, int]], data: st.DataObject) -> None:
    simulation = Simulation(cells=90, slots=3, batch_tokens=16)
    alive = [Sequence(number, [1] * prompt, prompt) for number, (prompt, _, _) in enumerate(requests)]
    for sequence in alive:
        simulation.scheduler.add(sequence)
    while alive:
        for _ in range(data.draw(st.integers(0, 3))):
            if max(len(sequence.tokens) for sequence in alive) < 80:
                simulation.step()
        simulation.end(alive.pop(data.draw(st.integers(0, len(alive) - 1))))
    assert simulation.scheduler.used_cells == 0


def test_a_long_prompt_does_not_stop_running_streams() -> None:
    simulation = Simulation(cells=500, slots=2, batch_tokens=16)
    stream, prompt = Sequence(1, [1], 1), Sequence(2, [1] * 200, 200)
    simulation.scheduler.add(stream)
    simulation.step()
    simulation.scheduler.add(prompt)
    steps = 0
    while prompt.pending > 1:
        assert stream in simulation.step()
        steps += 1
    assert steps == 14  # 15 prompt tokens beside each token of the stream


def test_the_youngest_is_put_back_when_cells_run_out_and_the_oldest_goes_on() -> None:
    simulation = Simulation(cells=40, slots=2, batch_tokens=64)
    oldest, youngest = Sequence(1, [1] * 15, 15), Sequence(2, [1] * 15, 15)
    simulation.scheduler.add(oldest)
    simulation.scheduler.add(youngest)
    while youngest.slot >= 0 or not simulation.answers[2]:
        simulation.step()
    assert oldest.slot >= 0
    tokens_before = list(youngest.tokens)
    simulation.end(oldest)
    simulation.step()
    assert youngest.slot >= 0
    assert youngest.tokens[: len(tokens_before)] == tokens_before
