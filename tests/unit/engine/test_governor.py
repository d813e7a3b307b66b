"""Promises of the governor, on a model of a machine whose cores a neighbour takes and gives back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.governor import Governor, Work

ONE_STREAM = Work(generated=1, prompt=0)
SETTLING_SECONDS = 2.0
READING_SECONDS = 0.25  # as neighbours.py reads


@dataclass
class Machine:
    """Step times by thread count. `penalty`: how many times longer a step takes once threads wait for a taken core."""

    cores: int
    penalty: float
    seed: int = 0
    noise: float = 0.1
    outliers: float = 0.02  # share of steps that take five times as long
    serial: float = 0.12  # share of a step that more threads do not shorten
    busy: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def expected(self, quiet: float, threads: int) -> float:
        """Mean seconds of a step that takes `quiet` with every core."""

        def share(count: int) -> float:
            return self.serial + (1 - self.serial) / count

        seconds = quiet * share(threads) / share(self.cores)
        missing = threads + self.busy - self.cores
        if missing <= 0:
            return seconds
        return seconds * (self.penalty if threads > 1 else 2.0)

    def best(self, quiet: float) -> float:
        return min(self.expected(quiet, threads) for threads in range(1, self.cores + 1))

    def step(self, quiet: float, threads: int) -> float:
        seconds = expected = self.expected(quiet, threads)
        if threads > 1 and threads + self.busy > self.cores:
            # Waiting is uneven; over a long step it averages out.
            spread = 0.5 * min(1.0, (0.03 / expected) ** 0.5)
            seconds *= self.random.gammavariate(spread**-2, spread**2)
        seconds *= max(0.5, self.random.gauss(1.0, self.noise))
        return seconds * (5.0 if self.random.random() < self.outliers else 1.0)


@dataclass(frozen=True)
class Phase:
    """What one phase of a simulation came to; expected times, so that luck does not count."""

    steps: list[tuple[float, int, float, float]]  # started at, threads, expected seconds, best expected seconds

    def cost(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Time spent over the time of the best fixed count; 1 when no step began then."""
        chosen = [step for step in self.steps if since <= step[0] < until]
        return sum(step[2] for step in chosen) / sum(step[3] for step in chosen) if chosen else 1.0

    @property
    def switches(self) -> int:
        return sum(one[1] != other[1] for one, other in pairwise(self.steps))


def simulate(
    machine: Machine,
    phases: list[tuple[float, int]],
    quiet: float,
    *,
    counters: bool = True,
    work: Callable[[random.Random], tuple[Work, float]] | None = None,
) -> list[Phase]:
    """Run (seconds, busy cores) one after another. `work` gives each step's work and its share of `quiet`."""
    governor = Governor(max_threads=machine.cores)
    now = read_at = 1000.0
    free = float(machine.cores - phases[0][1]) if counters else None
    taken = 0.0
    results = []
    for seconds, busy in phases:
        machine.busy = busy
        started, steps = now, []
        while now < started + seconds:
            what, scale = work(machine.random) if work else (ONE_STREAM, 1.0)
            threads = governor.threads(what, now, free)
            assert 1 <= threads <= machine.cores
            took = machine.step(quiet * scale, threads)
            steps.append(
                (now - started, threads, machine.expected(quiet * scale, threads), machine.best(quiet * scale))
            )
            now += took
            taken += took * busy
            governor.observe(what, threads, took, now)
            if counters and now - read_at >= READING_SECONDS:
                free = machine.cores - taken / (now - read_at) - 0.1 * machine.random.random()
                read_at, taken = now, 0.0
        results.append(Phase(steps))
    return results


def test_one_thread_is_always_one() -> None:
    governor = Governor(max_threads=1)
    for step in range(100):
        assert governor.threads(ONE_STREAM, step * 0.01) == 1
        governor.observe(ONE_STREAM, 1, 0.01 if step < 50 else 0.5, step * 0.01)


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("quiet", [0.001, 0.01, 0.09, 0.5])
@pytest.mark.parametrize("cores", [2, 4, 16])
def test_a_quiet_machine_loses_less_than_three_percent(cores: int, quiet: float, counters: bool) -> None:
    costs = []
    for seed in range(3):
        [phase] = simulate(Machine(cores, 5.0, seed), [(10.0 if quiet < 0.3 else 30.0, 0)], quiet, counters=counters)
        costs.append(phase.cost())
        assert phase.cost(until=2.0) < 1.08
    assert sum(costs) / len(costs) < (1.03 if counters else 1.05)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("penalty", [3.0, 10.0])
@pytest.mark.parametrize("quiet", [0.002, 0.01, 0.09])
@pytest.mark.parametrize("cores", [2, 4, 16])
def test_it_settles_within_two_seconds_of_a_neighbours_coming_and_going(
    cores: int, quiet: float, penalty: float, seed: int
) -> None:
    # A single step beside a neighbour may take a second and more; whoever is within one has to end it.
    settling = SETTLING_SECONDS + 2 * penalty * quiet
    _, beside, after = simulate(Machine(cores, penalty, seed), [(3, 0), (8, 1), (4, 0)], quiet)
    assert beside.cost(since=settling) < 1.15
    assert after.cost(since=SETTLING_SECONDS) < 1.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("penalty", [1.3, 2.5])
def test_prompt_steps_of_half_a_second_settle_too(penalty: float, seed: int) -> None:
    machine = Machine(2, penalty, seed)
    _, beside, after = simulate(
        machine, [(10, 0), (20, 1), (10, 0)], 0.5, work=lambda _random: (Work(generated=0, prompt=512), 1.0)
    )
    assert beside.cost(since=4.0) < 1.2
    assert after.cost(since=SETTLING_SECONDS) < 1.1


@pytest.mark.parametrize("quiet", [0.001, 0.01, 0.09])
@pytest.mark.parametrize("cores", [2, 4])
def test_a_worker_that_starts_beside_a_neighbour_finds_out(cores: int, quiet: float) -> None:
    for counters in (True, False) if quiet < 0.05 else (True,):
        [phase] = simulate(Machine(cores, 4.0, 1), [(10, 1)], quiet, counters=counters)
        assert phase.cost(since=SETTLING_SECONDS) < 1.15, counters


@pytest.mark.parametrize("quiet", [0.001, 0.01])
def test_without_counters_probes_find_the_way_down_and_up(quiet: float) -> None:
    _, beside, after = simulate(Machine(2, 3.0, 1), [(5, 0), (10, 1), (10, 0)], quiet, counters=False)
    assert beside.cost(since=SETTLING_SECONDS) < 1.15
    assert after.cost(since=2 * SETTLING_SECONDS) < 1.1


def test_counters_that_promise_cores_which_are_not_there_do_not_make_it_slow() -> None:
    # A container's quota: the machine is idle, and yet all threads together get less than all cores.
    machine = Machine(4, 4.0, 1)
    governor, now, spent, best = Governor(max_threads=4), 0.0, 0.0, 0.0
    machine.busy = 2
    while now < 15.0:
        threads = governor.threads(ONE_STREAM, now, 4.0)
        took = machine.step(0.01, threads)
        now += took
        governor.observe(ONE_STREAM, threads, took, now)
        if now > 5.0:
            spent += machine.expected(0.01, threads)
            best += machine.best(0.01)
    assert spent / best < 1.15


def test_sixteen_cores_beside_three_busy_ones_use_thirteen() -> None:
    _, phase = simulate(Machine(16, 5.0, 1), [(4, 0), (8, 3)], 0.01)
    late = [threads for at, threads, _, _ in phase.steps if at > SETTLING_SECONDS]
    assert sum(threads == 13 for threads in late) / len(late) > 0.95


@pytest.mark.parametrize("busy", [0, 1])
def test_it_does_not_oscillate(busy: int) -> None:
    _, phase = simulate(Machine(2, 3.0, 1), [(5, 0), (30, busy)], 0.01)
    # Beside a neighbour it looks up now and then, less and less often: there and back is two switches.
    assert phase.switches <= 16


def test_a_long_context_is_no_neighbour() -> None:
    governor, now, fewer = Governor(max_threads=2), 0.0, 0
    for step in range(1500):
        threads = governor.threads(ONE_STREAM, now, 2.0)
        took = 0.01 * (1 + step / 500) * (1.0 if threads == 2 else 1.75)  # 1 to 4 times slower, step by step
        now += took
        governor.observe(ONE_STREAM, threads, took, now)
        fewer += threads == 1
    assert fewer < 15


def test_what_one_size_of_step_learned_serves_the_others() -> None:
    machine = Machine(2, 5.0, 1)
    governor, now = Governor(max_threads=2), 0.0

    def steps(tokens: int, count: int) -> list[int]:
        nonlocal now
        work = Work(generated=tokens, prompt=0)
        chosen = []
        for _ in range(count):
            threads = governor.threads(work, now, 2.0 - machine.busy)
            took = machine.step(0.01 * tokens**0.7, threads)
            now += took
            governor.observe(work, threads, took, now)
            chosen.append(threads)
        return chosen

    for tokens in (1, 2, 4, 8):
        steps(tokens, 100)
    machine.busy = 1
    steps(1, 100)
    for tokens in (2, 4, 8):
        assert steps(tokens, 50).count(2) <= 2, tokens
    machine.busy = 0
    steps(1, 100)
    for tokens in (2, 4, 8):
        assert steps(tokens, 50).count(1) <= 12, tokens


def costs(
    cores: int, penalty: float, quiet: float, taken: list[float], mixed: bool, seed: int
) -> tuple[float, list[float]]:
    """What the settled steps of six seconds with each share of the cores taken cost: all of them, and by phase."""

    def any_work(source: random.Random) -> tuple[Work, float]:
        tokens = source.choice((1, 1, 1, 3, 8))
        return Work(generated=tokens, prompt=0), float(tokens) ** 0.6

    phases = [(6.0, round(share * cores) if cores > 1 else 0) for share in taken]
    results = simulate(Machine(cores, penalty, seed), phases, quiet, work=any_work if mixed else None)
    settled = Phase([step for phase in results for step in phase.steps if step[0] >= SETTLING_SECONDS])
    return settled.cost(), [phase.cost(since=SETTLING_SECONDS) for phase in results]


def check_costs(cores: int, penalty: float, quiet: float, taken: list[float], mixed: bool, seed: int) -> None:
    """Whatever comes, the governor costs little more than the best fixed counts."""
    all_of_it, phases = costs(cores, penalty, quiet, taken, mixed, seed)
    assert all_of_it <= 1.2  # 2,000 scenarios: median 1.01, worst 1.16
    assert max(phases) <= 1.8


# Where a few threads alone and all of them beside a neighbour are almost equal, bad luck with uneven steps costs more
# in one run of twenty (up to 1.45): the default run looks at the same 100 worlds each time; `-m slow` searches, and
# what it holds to the bound is the mean of several runs of a world.
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    cores=st.sampled_from([1, 2, 3, 4, 8, 16]),
    penalty=st.floats(2.5, 10.0),
    quiet=st.sampled_from([0.003, 0.01]),
    taken=st.lists(st.floats(0.0, 0.75), min_size=1, max_size=3),
    mixed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_whatever_comes_costs_little_more_than_the_best_fixed_counts(
    cores: int, penalty: float, quiet: float, taken: list[float], mixed: bool, seed: int
) -> None:
    check_costs(cores, penalty, quiet, taken, mixed, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=250, deadline=None)
@given(
    cores=st.sampled_from([1, 2, 3, 4, 8, 16]),
    penalty=st.floats(2.5, 10.0),
    quiet=st.sampled_from([0.003, 0.01]),
    taken=st.lists(st.floats(0.0, 0.75), min_size=1, max_size=3),
    mixed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_world_costs_little_more_than_the_best_fixed_counts(
    cores: int, penalty: float, quiet: float, taken: list[float], mixed: bool, seed: int
) -> None:
    runs = [costs(cores, penalty, quiet, taken, mixed, seed + number) for number in range(12)]
    assert sum(cost for cost, _ in runs) / len(runs) <= 1.2
    assert max(max(phases) for _, phases in runs) <= 1.8


@pytest.mark.parametrize(("penalty", "taken"), [(6.5, [0.0, 0.75]), (6.25, [0.0, 0.75, 0.0])])
def test_three_of_four_cores_taken_cost_little_more_as_well(penalty: float, taken: list[float]) -> None:
    check_costs(4, penalty, 0.01, taken, mixed=False, seed=0)


def test_where_one_thread_and_four_are_almost_equal_the_choice_costs_little() -> None:
    check_costs(4, 2.5, 0.003, [0.75], mixed=False, seed=43)
    runs = [costs(4, 2.5, 0.003, [0.75], False, seed)[0] for seed in range(40)]
    assert sum(runs) / len(runs) <= 1.17
    assert max(runs) <= 1.25
