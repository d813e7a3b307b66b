"""Promises of the scheduler over random workloads: every text ends, none twice, and it is the right one.

The next token of the pretended model is a hash of all tokens before it. Whatever is shared, cut, put back, parked or
guessed wrong on the way, the text must come out as if the request had been alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.prefix_cache import PrefixCache
from service.engine.scheduler import Entry, Plan, Scheduler, Sequence
from tests.unit.engine.cells import Cells


def next_token(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % 3


def alone(prompt: list[int], answer: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(answer):
        tokens.append(next_token(tokens))
    return tokens


@dataclass
class Load:
    """One request of a workload."""

    prompt: list[int]
    answer: int
    arrives: int
    client: str = "a"
    adapters: str = ""


class Simulation:
    """Drives the scheduler as the engine does; the cells are llama.cpp's to the letter."""

    def __init__(
        self, cells: int, slots: int, batch_tokens: int, *, can_cut: bool = True, keeps: bool = True, outputs: int = 99
    ) -> None:
        cache = PrefixCache(cells=cells, branches=2 * slots + 2, can_cut=can_cut, keeps=keeps)
        self.scheduler = Scheduler(cache, slots=slots, batch_tokens=batch_tokens, max_outputs=outputs)
        self.cache, self.slots, self.batch_tokens, self.outputs = cache, slots, batch_tokens, outputs
        self.llama = Cells()
        self.computed = 0

    def step(self, prompt_tokens: int = 1000) -> list[Sequence]:
        """Compute one plan; the sequences that got tokens."""
        plan = self.scheduler.plan(prompt_tokens)
        self.check(plan)
        self.llama.apply(plan.actions)
        grown = []
        for entry in plan.entries:
            self.llama.compute(entry.sequence.branch, entry.start, entry.tokens)
            self.computed += len(entry.tokens)
        assert len(self.llama.cells) <= self.cache.cells
        for entry in plan.entries:
            if self.advance(entry):
                grown.append(entry.sequence)
        self.llama.apply(self.cache.take_actions())
        assert len(self.llama.cells) == self.cache.used_cells
        return grown

    def advance(self, entry: Entry) -> bool:
        sequence = entry.sequence
        if not entry.outputs:
            self.scheduler.accept(entry, len(entry.tokens))
            return False
        known = len(entry.tokens) - entry.outputs + 1
        right = 0
        for guess in [*entry.tokens[known:], None]:
            token = next_token(sequence.tokens)
            sequence.tokens.append(token)
            if token != guess:
                break
            right += 1
        self.scheduler.accept(entry, known + right)
        self.llama.cut(sequence.branch, sequence.computed)
        return True

    def check(self, plan: Plan) -> None:
        branches = [entry.sequence.branch for entry in plan.entries]
        assert len(set(branches)) == len(branches) <= self.slots
        assert all(entry.tokens and entry.outputs <= len(entry.tokens) for entry in plan.entries)
        assert sum(len(entry.tokens) for entry in plan.entries) <= self.batch_tokens
        assert sum(entry.outputs for entry in plan.entries) <= self.outputs
        assert len({entry.sequence.adapters for entry in plan.entries}) <= 1
        for entry in plan.entries:
            known = entry.sequence.tokens[entry.start : entry.start + len(entry.tokens)]
            assert entry.start == entry.sequence.computed == self.cache.length(entry.sequence.branch)
            assert entry.tokens[: len(known)] == known


loads = st.builds(
    Load,
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    answer=st.integers(1, 25),
    arrives=st.integers(0, 50),
    client=st.sampled_from("abc"),
    adapters=st.sampled_from(["", "", "x"]),
)


def sequence_of(load: Load) -> Sequence:
    return Sequence(
        tokens=list(load.prompt),
        prompt_length=len(load.prompt),
        client=load.client,
        adapters=load.adapters,
        salt=load.adapters,
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(loads, min_size=1, max_size=12),
    st.integers(67, 200),
    st.integers(1, 6),
    st.integers(1, 32),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_every_text_ends_once_and_is_the_one_it_would_be_alone(
    workload: list[Load], cells: int, slots: int, batch_tokens: int, can_cut: bool, keeps: bool, seed: int
) -> None:
    simulation = Simulation(cells, slots, batch_tokens, can_cut=can_cut, keeps=keeps, outputs=8)
    waiting = sorted(workload, key=lambda load: load.arrives)
    alive: dict[int, tuple[Sequence, Load]] = {}  # by the sequence's id()
    ended: list[Sequence] = []
    chance = Random(seed)
    for clock in range(4000):
        while waiting and waiting[0].arrives <= clock:
            load = waiting.pop(0)
            sequence = sequence_of(load)
            alive[id(sequence)] = (sequence, load)
            simulation.scheduler.add(sequence)
        for sequence, load in alive.values():
            if can_cut and chance.random() < 0.3 and len(sequence.tokens) - len(load.prompt) < load.answer - 4:
                sequence.draft = [chance.randrange(3) for _ in range(3)]
            if chance.random() < 0.02:
                simulation.scheduler.park(sequence)
            elif sequence.parked and chance.random() < 0.5:
                simulation.scheduler.unpark(sequence)
        for sequence in simulation.step(chance.choice([1, 5, 1000])):
            sequence.draft = []
            load = alive[id(sequence)][1]
            if len(sequence.tokens) - len(load.prompt) >= load.answer:
                assert sequence.tokens == alone(load.prompt, len(sequence.tokens) - len(load.prompt))
                simulation.scheduler.remove(sequence, keep=True)
                del alive[id(sequence)]
                ended.append(sequence)
        if not alive and not waiting:
            break
    assert not alive
    assert not waiting
    assert len(ended) == len({id(sequence) for sequence in ended}) == len(workload)
    assert not simulation.scheduler.has_work
    assert simulation.cache.held_cells == 0
    assert keeps or simulation.cache.used_cells == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(loads, min_size=1, max_size=10), st.data())
def test_cancelling_at_any_step_frees_all_cells(workload: list[Load], data: st.DataObject) -> None:
    simulation = Simulation(cells=90, slots=3, batch_tokens=16)
    sequences = [sequence_of(load) for load in workload]
    for sequence in sequences:
        simulation.scheduler.add(sequence)
    for sequence in data.draw(st.permutations(sequences)):
        for _ in range(data.draw(st.integers(0, 4))):
            simulation.step()
        simulation.scheduler.remove(sequence, keep=data.draw(st.booleans()))
    assert not simulation.scheduler.has_work
    assert simulation.cache.held_cells == 0


def run(simulation: Simulation, sequences: dict[str, Sequence], answers: int, steps: int = 500) -> dict[str, int]:
    """Run until every sequence has so many answers; the step in which each ended."""
    ends: dict[str, int] = {}
    for clock in range(steps):
        grown = simulation.step()
        for name, sequence in sequences.items():
            if sequence in grown and len(sequence.tokens) - sequence.prompt_length >= answers and name not in ends:
                simulation.scheduler.remove(sequence, keep=True)
                ends[name] = clock
        if len(ends) == len(sequences):
            break
    return ends


def prompt(*tokens: int) -> Sequence:
    return Sequence(tokens=list(tokens), prompt_length=len(tokens))


def test_a_long_prompt_does_not_stop_running_streams() -> None:
    simulation = Simulation(cells=400, slots=2, batch_tokens=8)
    stream = prompt(1)
    simulation.scheduler.add(stream)
    simulation.step()
    simulation.scheduler.add(prompt(*[2] * 300))
    for _ in range(20):
        before = len(stream.tokens)
        simulation.step()
        assert len(stream.tokens) == before + 1


def test_prompts_take_no_more_tokens_of_a_step_than_they_may() -> None:
    simulation = Simulation(cells=400, slots=2, batch_tokens=64)
    simulation.scheduler.add(prompt(*[2] * 300))
    assert simulation.scheduler.plan(10).prompt_tokens == 10


def test_requests_that_arrive_together_compute_what_they_share_once() -> None:
    simulation = Simulation(cells=900, slots=16, batch_tokens=64)
    shared = [index % 3 for index in range(100)]
    sequences = {str(index): prompt(*shared, index % 3, index // 3, index) for index in range(16)}
    for sequence in sequences.values():
        simulation.scheduler.add(sequence)
    run(simulation, sequences, answers=2)
    assert simulation.computed <= 100 + 16 * (3 + 2)


def test_choices_of_one_prompt_compute_it_once() -> None:
    simulation = Simulation(cells=300, slots=4, batch_tokens=64)
    sequences = {str(index): prompt(*range(20)) for index in range(4)}
    for sequence in sequences.values():
        simulation.scheduler.add(sequence)
    run(simulation, sequences, answers=1)
    assert simulation.computed <= 20 + 3


def test_without_cuts_requests_that_arrive_together_still_share() -> None:
    simulation = Simulation(cells=900, slots=8, batch_tokens=64, can_cut=False)
    shared = [index % 3 for index in range(100)]
    sequences = {str(index): prompt(*shared, index, index, index) for index in range(8)}
    for sequence in sequences.values():
        simulation.scheduler.add(sequence)
    run(simulation, sequences, answers=2)
    assert simulation.computed <= 100 + 8 * (3 + 2)


def test_without_cuts_the_third_request_finds_what_the_first_two_shared() -> None:
    simulation = Simulation(cells=900, slots=1, batch_tokens=64, can_cut=False)
    shared = [index % 3 for index in range(100)]
    for index in range(3):
        before = simulation.computed
        sequence = prompt(*shared, index, index, index)
        simulation.scheduler.add(sequence)
        run(simulation, {"": sequence}, answers=2)
        assert (simulation.computed - before < 10) == (index == 2)


def test_the_next_turn_of_a_conversation_computes_only_what_is_new() -> None:
    for can_cut in (True, False):
        simulation = Simulation(cells=300, slots=2, batch_tokens=64, can_cut=can_cut)
        first = prompt(*range(30))
        simulation.scheduler.add(first)
        run(simulation, {"": first}, answers=5)
        second = prompt(*first.tokens, 7, 7)
        simulation.scheduler.add(second)
        simulation.step()
        assert second.cached == 34


def test_the_youngest_is_put_back_when_cells_run_out_and_the_oldest_goes_on() -> None:
    simulation = Simulation(cells=24, slots=2, batch_tokens=16)
    old, young = prompt(1, 1, 1), prompt(2, 2, 2)
    simulation.scheduler.add(old)
    simulation.scheduler.add(young)
    ends = run(simulation, {"old": old, "young": young}, answers=16)
    assert ends["old"] < ends["young"]
    assert young.tokens == alone([2, 2, 2], 16)


def test_a_greedy_client_does_not_make_others_wait() -> None:
    simulation = Simulation(cells=1000, slots=2, batch_tokens=64)
    greedy = {f"greedy {index}": Sequence([1, index], 2, client="greedy") for index in range(20)}
    for sequence in greedy.values():
        simulation.scheduler.add(sequence)
    for _ in range(30):
        simulation.step()
    polite = Sequence([2, 2], 2, client="polite")
    simulation.scheduler.add(polite)
    ends = run(simulation, {**greedy, "polite": polite}, answers=40)
    assert sum(end < ends["polite"] for end in ends.values()) <= 4


def test_a_parked_sequence_gives_its_slot_to_others() -> None:
    simulation = Simulation(cells=300, slots=1, batch_tokens=64)
    first, second = prompt(1, 2), prompt(2, 1)
    simulation.scheduler.add(first)
    simulation.scheduler.add(second)
    simulation.step()
    simulation.scheduler.park(first)
    assert run(simulation, {"second": second}, answers=3) == {"second": 2}
    simulation.scheduler.unpark(first)
    run(simulation, {"first": first}, answers=5)
    assert first.tokens == alone([1, 2], len(first.tokens) - 2)


def test_sets_of_adapters_take_turns() -> None:
    simulation = Simulation(cells=300, slots=4, batch_tokens=64)
    plain, adapted = prompt(1), Sequence([1], 1, adapters="x", salt="x")
    simulation.scheduler.add(plain)
    simulation.scheduler.add(adapted)
    for _ in range(10):
        simulation.step()
    assert len(plain.tokens) == len(adapted.tokens) == 6
