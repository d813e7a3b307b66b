"""Promises of sampling: what stays is what the definitions keep, seeds repeat, forbidden tokens are never drawn."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.generation import SamplingParams
from service.engine.candidates import (
    Candidates,
    everything,
    exclude_top_choices,
    keep_typical,
    largest,
    likely,
    softmax,
)
from service.engine.drawing import Drawing, make_chooser
from service.engine.gumbel import draw, draw_from_all, exponentials, race
from service.engine.mirostat import Mirostat, zipf_count
from service.engine.penalties import LogitBias, Penalties, TokenCounts

UNCUT = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
LOGITS = st.lists(st.integers(-40, 40), min_size=1, max_size=3000)  # whole numbers: many are equal


def normal(vocabulary: int = 5000, *, seed: int = 0, scale: float = 3.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(vocabulary) * scale).astype(np.float32)


def array(*logits: float) -> NDArray[np.float32]:
    return np.array(logits, dtype=np.float32)


def tokens(params: SamplingParams, rows: list[NDArray[np.float32]]) -> list[int]:
    chooser = make_chooser(params)
    return [chooser.choose(row, int(row.argmax())) for row in rows]


@given(LOGITS, st.integers(1, 60), st.booleans())
def test_top_k_is_exact_and_takes_the_first_of_equals(values: list[int], count: int, ordered: bool) -> None:
    logits = np.array(values, dtype=np.float32)
    expected = sorted(range(logits.size), key=lambda token: (-values[token], token))[:count]
    found = largest(logits, count, ordered=ordered)
    assert found.ids.tolist() == (expected if ordered else sorted(expected))
    assert (found.logits == logits[found.ids]).all()


@pytest.mark.parametrize("vocabulary", [1, 2, 1023, 1024, 2048, 2049, 49_152])
@pytest.mark.parametrize("count", [1, 40, 200, 5000, 100_000])
def test_top_k_is_exact_for_every_size(vocabulary: int, count: int) -> None:
    logits = normal(vocabulary)
    assert largest(logits, count).ids.tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


@given(LOGITS, st.integers(0, 5), st.integers(1, 60))
def test_top_k_never_keeps_a_forbidden_token(values: list[int], allowed: int, count: int) -> None:
    logits = np.array(values, dtype=np.float32)
    logits[allowed:] = -np.inf
    found = largest(logits, count)
    assert found.ids.size == min(allowed, count, len(values))
    assert np.isfinite(found.logits).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95, 0.9999])
def test_top_p_over_the_whole_vocabulary_keeps_the_fewest_tokens_that_are_enough(scale: float, top_p: float) -> None:
    logits = normal(scale=scale)
    kept = likely(logits, float(logits.max()), top_p=top_p, min_p=0.0)
    chances = softmax(logits).astype(np.float64)
    assert chances[kept.ids].sum() >= top_p - 1e-5
    assert kept.ids.size == 1 or chances[kept.ids].sum() - chances[kept.ids].min() < top_p + 1e-5
    assert chances[kept.ids].min() >= np.delete(chances, kept.ids).max(initial=0.0)


@pytest.mark.parametrize("scale", [0.01, 3.0, 20.0])
def test_typical_keeps_the_same_tokens_as_its_definition(scale: float) -> None:
    logits = normal(scale=scale)
    chances = softmax(logits).astype(np.float64)
    possible = chances > 0
    entropy = -(chances[possible] * np.log(chances[possible])).sum()
    with np.errstate(divide="ignore"):
        order = np.argsort(np.abs(-np.log(chances) - entropy))
    kept = keep_typical(everything(logits), 0.9)
    assert 0.9 < chances[kept.ids].sum() < 0.9 + chances.max() + 1e-5
    assert abs(kept.ids.size - (int(chances[order].cumsum().searchsorted(0.9)) + 1)) <= 1  # float32 against float64
    assert set(kept.ids[:-1].tolist()) <= set(order[: kept.ids.size].tolist())


def test_xtc_keeps_the_least_likely_of_the_top_choices() -> None:
    logits = np.log(array(0.1, 0.3, 0.05, 0.35, 0.2))
    assert exclude_top_choices(everything(logits), 0.15).ids.tolist() == [0, 2, 4]
    assert exclude_top_choices(everything(logits), 0.32).ids.tolist() == [0, 1, 2, 3, 4]
    assert exclude_top_choices(everything(array(0, -np.inf, 1)), 0.0).ids.tolist() == [0, 1]


KEYS = st.integers(0, (1 << 64) - 1)


def keys(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.getrandbits(64) for _ in range(count)]


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 2000])
@pytest.mark.parametrize("temperature", [0.8, 2.0])
@pytest.mark.parametrize("from_all", [False, True])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocabulary: int, temperature: float, from_all: bool) -> None:
    logits = normal(vocabulary, scale=2.0)
    draws = 6000
    if from_all:
        drawn = Counter(draw_from_all(logits, float(logits.max()), temperature, key) for key in keys(draws))
    else:
        drawn = Counter(draw(everything(logits), temperature, key) for key in keys(draws))
    expected = softmax(logits / np.float32(temperature)).astype(np.float64) * draws
    seen = np.array([drawn[token] for token in range(vocabulary)], dtype=np.float64)
    often = expected >= 5
    pairs = [*zip(seen[often], expected[often], strict=True), (seen[~often].sum(), expected[~often].sum())]
    error = sum((count - mean) ** 2 / mean for count, mean in pairs if mean)
    freedom = len(pairs) - 1 - (not expected[~often].sum())
    assert abs(error - freedom) < 4 * math.sqrt(2 * freedom)


@given(st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1.0]), max_size=600), KEYS)
def test_what_has_no_weight_is_never_chosen(weights: list[float], key: int) -> None:
    weights = [*weights, 1.0, 0.0]
    assert weights[race(np.array(weights), np.arange(len(weights)), key)] > 0
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(weights, dtype=np.float32))
    assert weights[draw_from_all(logits, 0.0, 1.0, key)] > 0


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=50, unique=True), KEYS, st.randoms())
def test_neither_the_order_nor_a_loser_of_the_candidates_matters(
    values: list[float], key: int, generator: random.Random
) -> None:
    logits = np.array(values, dtype=np.float32)
    winner = draw(everything(logits), 0.8, key)
    order = np.array(generator.sample(range(logits.size), logits.size))
    assert draw(Candidates(order, logits[order]), 0.8, key) == winner
    fewer = order[(order != order[0]) | (order == winner)]
    assert draw(Candidates(fewer, logits[fewer]), 0.8, key) == winner


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rounding_errors_of_the_logits_change_no_token(scale: float) -> None:
    rows = [normal(49_152, seed=row, scale=scale) for row in range(10)] * 100
    noise = [normal(49_152, seed=50 + row, scale=1e-5) for row in range(7)]
    nearly = [row + noise[place % len(noise)] for place, row in enumerate(rows)]
    same = np.array(tokens(UNCUT, rows)) == np.array(tokens(UNCUT, nearly))
    assert same.mean() >= 0.999
    same = np.array(tokens(replace(UNCUT, top_k=40), rows)) == np.array(tokens(replace(UNCUT, top_k=40), nearly))
    assert same.mean() >= 0.999


def test_the_noise_is_exponential_and_independent_over_ids_and_keys() -> None:
    ids = np.arange(-200, 300)
    noise = np.array([exponentials(ids, key) for key in [*keys(200), *range(200)]])  # neighbours as well
    for uniform in (np.exp(-noise), np.exp(-noise[:200]), np.exp(-noise[200:])):
        counts = np.bincount((uniform * 20).astype(int).ravel(), minlength=20)
        assert ((counts - uniform.size / 20) ** 2).sum() / (uniform.size / 20) < 50  # mean 19
        centred = uniform - 0.5
        error = 1 / 12 / math.sqrt(uniform.size)
        for other in (centred[1:, :], centred[:, 1:], centred[:, 256:], centred[1:, 1:]):
            mine = centred[: other.shape[0], : other.shape[1]]
            assert abs((mine * other).mean()) < 4 * error * math.sqrt(uniform.size / other.size)


def test_the_noise_is_finite_for_the_hashes_at_both_ends() -> None:
    # State 0 hashes to 0; the state that hashes to all ones is the finaliser undone.
    state = (1 << 64) - 1
    for shift, multiplier in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        undone = state
        for _ in range(3):
            undone = state ^ undone >> shift
        state = undone * pow(multiplier, -1, 1 << 64) % (1 << 64)
    least, most = exponentials(np.array([0]), state)[0], exponentials(np.array([0]), 0)[0]
    assert least == pytest.approx(2.0**-53)
    assert most == pytest.approx(53 * math.log(2))


def test_consecutive_tokens_are_independent() -> None:
    logits = np.zeros(4, dtype=np.float32)
    drawn = tokens(replace(UNCUT, seed=11), [logits] * 8000)
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    assert sum((pairs[a, b] - 250) ** 2 / 250 for a in range(4) for b in range(4)) < 38  # mean 15


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-9, 0.8, 5.0, 1e9]),
    top_k=st.sampled_from([-1, 0, 1, 2, 40, 10_000]),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    typical_p=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_probability=st.sampled_from([0.0, 0.5, 1.0]),
    xtc_threshold=st.sampled_from([0.0, 0.1, 0.5, 0.6]),
    mirostat=st.sampled_from([0, 0, 1, 2]),
    mirostat_tau=st.sampled_from([0.0, 5.0, 1e30]),
    mirostat_eta=st.sampled_from([0.0, 0.1, 1e30]),
    seed=st.integers(-5, 1 << 65),
)


@given(PARAMS, st.sampled_from([0.0, 0.01, 3.0, 1e4, 1e30]), st.sampled_from([1, 2, 300, 6000]), st.integers(1, 4))
def test_whatever_the_parameters_only_allowed_tokens_are_drawn(
    params: SamplingParams, scale: float, vocabulary: int, allowed: int
) -> None:
    free = normal(vocabulary, scale=scale)
    masked = np.full(vocabulary, -np.inf, dtype=np.float32)
    places = np.random.default_rng(allowed).permutation(vocabulary)[:allowed]
    masked[places] = free[places]
    drawn = tokens(params, [free, masked, masked, free, masked])
    assert all(0 <= token < vocabulary for token in drawn)
    assert {drawn[1], drawn[2], drawn[4]} <= set(places.tolist())


@given(PARAMS)
def test_the_same_seed_and_logits_give_the_same_tokens(params: SamplingParams) -> None:
    rows = [normal(300, seed=row) for row in range(8)]
    assert tokens(params, rows) == tokens(params, rows)


def test_seeds_differ_and_no_seed_is_a_fresh_one() -> None:
    rows = [normal(300, seed=row, scale=0.1) for row in range(12)]
    drawn = [tokens(replace(UNCUT, seed=seed), rows) for seed in (0, 1, -1, 2, 3, 1 << 40, None, None, None)]
    assert len({tuple(line) for line in drawn}) == len(drawn)


def test_a_seed_draws_the_same_tokens_on_every_machine_and_version() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    assert tokens(replace(UNCUT, seed=7), [logits] * 6) == [712, 498, 52, 24, 792, 798]
    assert tokens(replace(UNCUT, seed=7, top_k=900), [logits] * 6) == [235, 793, 52, 518, 792, 121]
    assert tokens(replace(UNCUT, seed=7, mirostat=2, mirostat_tau=20.0), [logits] * 6) == [235, 793, 52, 518, 792, 121]
    # The first outputs of SplitMix64 from state 0.
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)
    expected = [-math.log(((output >> 12) + 0.5) / (1 << 52)) for output in outputs]
    assert exponentials(np.array([1, 2]), 0).tolist() == pytest.approx(expected)


def test_a_token_takes_the_same_random_numbers_whatever_the_logits_are() -> None:
    rows = [normal(300, seed=row) for row in range(6)]
    sure = np.full(300, -np.inf, dtype=np.float32)
    sure[3] = 0.0
    for params in (replace(UNCUT, top_k=40), replace(UNCUT, xtc_probability=0.5), replace(UNCUT, mirostat=2)):
        params = replace(params, mirostat_eta=0.0)
        assert tokens(params, [sure, *rows[1:]])[1:] == tokens(params, rows)[1:]


def kept(params: SamplingParams, logits: NDArray[np.float32]) -> set[int]:
    found = Drawing(params, random.Random(0)).keep(logits, float(logits.max()), excludes=params.xtc_probability > 0)
    return set(found.ids[np.isfinite(found.logits)].tolist())


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.75}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"typical_p": 0.3}, {1, 2}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.15}, {2, 3, 4}),
        ({"top_k": 3, "top_p": 0.7}, {0, 1}),  # top-p counts what top-k has left: 0.4 + 0.25 of 0.85
        ({"typical_p": 0.3, "min_p": 0.9}, {1}),  # min-p measures against the likeliest that typical has left
        ({"top_k": 2, "xtc_probability": 1.0, "xtc_threshold": 0.35}, {1}),  # XTC after top-k
    ],
)
def test_every_cut_cuts_what_it_should_in_its_place(change: dict[str, float], left: set[int]) -> None:
    logits = np.log(array(0.4, 0.25, 0.2, 0.1, 0.05))
    assert kept(replace(UNCUT, **change), logits) == left  # type: ignore[arg-type]


def test_temperature_comes_after_the_cuts() -> None:
    logits = np.log(array(0.4, 0.25, 0.2, 0.1, 0.05))
    hot = replace(UNCUT, temperature=100.0, top_p=0.75)
    assert set(tokens(hot, [logits] * 200)) == {0, 1, 2}
    assert Counter(tokens(hot, [logits] * 3000)).most_common()[-1][1] > 900  # as likely as the others by then


def test_xtc_acts_as_often_as_asked() -> None:
    logits = np.log(array(0.45, 0.45, 0.1))
    params = replace(UNCUT, xtc_probability=0.25, xtc_threshold=0.2)
    drawn = Counter(tokens(params, [logits] * 4000))
    assert drawn[0] / 4000 == pytest.approx(0.75 * 0.45, abs=0.03)


def test_temperature_0_takes_the_likeliest_whatever_else_is_asked() -> None:
    params = SamplingParams(temperature=0.0, xtc_probability=1.0, typical_p=0.1, mirostat=2, seed=3)
    logits = normal()
    assert tokens(params, [logits]) == [int(logits.argmax())]


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_the_surprise_to_its_target(version: int) -> None:
    logits = normal(3000, scale=2.0)
    for tau in (3.0, 6.0):
        mirostat = Mirostat(version, tau=tau, eta=0.1, temperature=1.0)
        generator = random.Random(5)
        surprises = []
        for _ in range(400):
            kept = mirostat.keep(logits)
            place = kept.ids.tolist().index(mirostat.draw(logits, generator.getrandbits(64)))
            surprises.append(-math.log2(softmax(kept.logits)[place]))
        assert sum(surprises[100:]) / 300 == pytest.approx(tau, abs=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_moves_its_bound_by_the_error_times_the_rate(version: int) -> None:
    logits = normal(50)
    mirostat = Mirostat(version, tau=2.0, eta=0.25, temperature=0.7)
    assert mirostat.mu == 4.0
    before = mirostat.keep(logits)
    token = mirostat.draw(logits, 4)
    chance = float(softmax(before.logits)[before.ids.tolist().index(token)])
    assert mirostat.mu == pytest.approx(4.0 - 0.25 * (-math.log2(chance) - 2.0), abs=1e-5)


def test_the_zipf_estimate_is_right_for_a_zipf_distribution_and_survives_odd_ones() -> None:
    ranks = np.arange(1, 101)
    for slope in (0.5, 1.0, 1.5):
        logits = (-slope * np.log(ranks)).astype(np.float32)
        excess = slope - 1 or 1e-12
        exact = (excess * 2**6 / (1 - 5000**-excess)) ** (1 / slope)
        assert zipf_count(logits, vocabulary=5000, mu=6.0) == pytest.approx(exact, abs=1.1)
    assert zipf_count(np.zeros(100, np.float32), vocabulary=5000, mu=20.0) == 5000
    assert zipf_count(np.zeros(100, np.float32), vocabulary=5000, mu=3.0) == 1
    assert zipf_count(array(0.0), vocabulary=5000, mu=3.0) == 1
    assert zipf_count(array(1e30, 0.0), vocabulary=5000, mu=-1000.0) == 1


def test_a_bias_is_added_and_may_forbid_a_token() -> None:
    logits = array(1, 2, 3, -np.inf)
    LogitBias([(0, 2.5), (0, 0.5), (1, -math.inf), (3, math.inf), (4, 1.0), (-1, 1.0)], 4).apply(logits)
    assert logits.tolist() == [4, -math.inf, 3, -math.inf]


def test_a_positive_and_a_negative_logit_are_both_made_less_likely() -> None:
    penalties = Penalties([0, 1, 1, 3], last_n=-1, repeat=2.0, presence=0.5, frequency=0.25)
    logits = array(4, -4, 7, -np.inf)
    penalties.apply(logits)
    assert logits.tolist() == [2 - 0.75, -8 - 1.0, 7, -math.inf]


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(0, 200), max_size=200), st.integers(-1, 12))
def test_counts_are_those_of_the_window(before: list[int], after: list[int], last_n: int) -> None:
    last_n = last_n or 1
    counts = TokenCounts(before, last_n)
    text = list(before)
    for token in after:
        counts.add(token)
        text.append(token)
        window = text if last_n < 0 else text[-last_n:]
        assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == Counter(window)


def test_drawing_leaves_the_logits_alone() -> None:
    logits = normal()
    before = logits.copy()
    for params in (UNCUT, SamplingParams(), replace(UNCUT, mirostat=1), replace(UNCUT, xtc_probability=1.0)):
        tokens(params, [logits])
    assert (logits == before).all()
    assert isinstance(everything(logits), Candidates)
