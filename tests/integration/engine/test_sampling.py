"""Promises of sampling next to llama.cpp's own stages, and over a real model's logits.

llama.cpp's stages are applied to the same logits; the tokens that survive and their probabilities must be the same.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.generation import SamplingParams
from service.engine.candidates import softmax
from service.engine.drawing import Drawing
from service.engine.logprobs import token_logprob
from service.engine.mirostat import Mirostat
from service.engine.sampling import make_sampler
from service.llama.context import Context
from service.llama.model import Model
from service.llama.sampler import TOKEN_DATA

VOCABULARY = 4096
UNCUT = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
CLOSE = 2e-6  # float32 sums in another order differ by this much, so a token at a border may fall on either side


@pytest.fixture(scope="module")
def context(gloss: Path) -> Iterator[Context]:
    model = Model(gloss, gpu_layers=0, use_extra_buffers=False)
    context = Context(model, cells=256, sequences=1, batch_tokens=64, threads=1, flash_attention=False)
    yield context
    context.close()
    model.close()


@pytest.fixture(scope="module")
def model(context: Context) -> Model:
    return context.model


def normal(seed: int, scale: float) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * scale).astype(np.float32)


def through_llama(stages: list[Any], logits: NDArray[np.float32]) -> NDArray[Any]:
    """What llama.cpp's stages leave of the candidates; frees the stages."""
    data = np.zeros(logits.size, dtype=TOKEN_DATA)
    data["id"] = np.arange(logits.size)
    data["logit"] = logits
    pointer = ctypes.cast(data.ctypes.data, native.llama_token_data_p)
    array = native.llama_token_data_array(pointer, data.size, -1, False)
    for stage in stages:
        native.llama_sampler_apply(stage, ctypes.byref(array))
        native.llama_sampler_free(stage)
    start = (ctypes.addressof(array.data.contents) - data.ctypes.data) // TOKEN_DATA.itemsize  # XTC moves it
    return data[start : start + array.size].copy()


def cut_by_llama(params: SamplingParams, logits: NDArray[np.float32]) -> dict[int, float]:
    left = through_llama(
        [
            native.llama_sampler_init_top_k(params.top_k),
            native.llama_sampler_init_typical(params.typical_p, 1),
            native.llama_sampler_init_top_p(params.top_p, 1),
            native.llama_sampler_init_min_p(params.min_p, 1),
            native.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, 1),
            native.llama_sampler_init_temp(params.temperature),
            native.llama_sampler_init_dist(1),
        ],
        logits,
    )
    return dict(zip(left["id"].tolist(), left["p"].tolist(), strict=True))


def cut_by_us(params: SamplingParams, logits: NDArray[np.float32]) -> dict[int, float]:
    drawing = Drawing(params, random.Random(1))
    kept = drawing.keep(logits, float(logits.max()), excludes=params.xtc_probability > 0)
    chances = softmax(kept.logits / np.float32(params.temperature))
    return dict(zip(kept.ids.tolist(), chances.tolist(), strict=True))


def nudged(params: SamplingParams) -> list[SamplingParams]:
    """The parameters, and neighbours of them that nobody could tell apart."""
    return [params] + [
        replace(params, top_p=params.top_p * top_p, typical_p=params.typical_p * typical_p, min_p=params.min_p * min_p)
        for top_p in (1 - CLOSE, 1.0, 1 + CLOSE)
        for typical_p in (1 - CLOSE, 1.0, 1 + CLOSE)
        for min_p in (1 - CLOSE, 1.0, 1 + CLOSE)
        if top_p * params.top_p < 1 or params.top_p == 1
    ]


def equally_typical(params: SamplingParams, logits: NDArray[np.float32], tokens: set[int]) -> bool:
    """Whether rounding may choose among these tokens: one more and one less likely than typical can tie.

    llama.cpp sums the entropy of thousands of tokens in float32.
    """
    if params.typical_p == 1.0:
        return False
    allowed = np.sort(logits)[-params.top_k :].astype(np.float64)
    chances = np.exp(allowed - allowed.max())
    normaliser = float(allowed.max()) + math.log(chances.sum())
    chances /= chances.sum()
    entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum()
    distances = [abs(normaliser - float(logits[token]) - entropy) for token in tokens]
    return max(distances) - min(distances) < 2e-4


def exactly_typical(params: SamplingParams, logits: NDArray[np.float32]) -> set[int]:
    """What the typical cut keeps by its definition, summed in float64; nothing where there is no such cut."""
    if params.typical_p == 1.0:
        return set()
    ids = np.argsort(-logits, kind="stable")[: params.top_k or None]
    weights = np.exp(logits[ids].astype(np.float64) - float(logits.max()))
    chances = weights / weights.sum()
    surprise = -np.log(np.maximum(chances, 1e-300))
    order = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
    kept = int(chances[order].cumsum().searchsorted(params.typical_p, side="right")) + 1
    return set(ids[order[:kept]].tolist())


OFF_OR = {
    "top_k": st.sampled_from([0, 1, 2, 40, 300, 4096, 9000]),
    "typical_p": st.just(1.0) | st.floats(0.05, 0.99),
    "top_p": st.just(1.0) | st.floats(0.05, 0.999),
    "min_p": st.just(0.0) | st.floats(0.001, 0.9),
    "xtc_probability": st.sampled_from([0.0, 1.0]),
    "xtc_threshold": st.floats(0.01, 0.6),
    "temperature": st.floats(0.1, 3.0),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries(OFF_OR), st.integers(0, 10_000), st.sampled_from([0.5, 2.0, 4.0, 10.0]))
def test_the_same_tokens_survive_as_in_llama_cpp_with_the_same_probabilities(
    values: dict[str, Any], seed: int, scale: float
) -> None:
    params = replace(UNCUT, **values)
    if params.typical_p < 1.0:
        # Which of two equally typical tokens stays decides what the later cuts see: they are compared without it.
        params = replace(params, top_p=1.0, min_p=0.0, xtc_probability=0.0)
    logits = normal(seed, scale)
    expected = cut_by_llama(params, logits)
    for nearly in nudged(params):
        ours = cut_by_us(nearly, logits)
        differing = ours.keys() ^ expected.keys()
        if not differing or (len(ours) == len(expected) and equally_typical(params, logits, differing)):
            break
        if ours.keys() == exactly_typical(params, logits):  # llama.cpp's sums over hundreds of tokens are float32
            break
    else:
        pytest.fail(f"{len(expected)} tokens survive in llama.cpp, {len(cut_by_us(params, logits))} here")
    shared = ours.keys() & expected.keys()
    our_sum, expected_sum = (sum(chances[token] for token in shared) for chances in (ours, expected))
    for token in shared:
        assert ours[token] / our_sum == pytest.approx(expected[token] / expected_sum, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2]),
    st.floats(0.5, 12.0),
    st.floats(0.2, 2.0),
    st.integers(0, 10_000),
    st.sampled_from([0.5, 2.0, 4.0]),
)
def test_mirostat_draws_from_the_same_tokens_as_llama_cpp(
    version: int, tau: float, temperature: float, seed: int, scale: float
) -> None:
    logits = normal(seed, scale)
    stage = (
        native.llama_sampler_init_mirostat(VOCABULARY, 1, tau, 0.1, 100)
        if version == 1
        else native.llama_sampler_init_mirostat_v2(1, tau, 0.1)
    )
    left = through_llama([native.llama_sampler_init_temp(temperature), stage], logits)
    for nearly in (tau, tau * (1 - 1e-4), tau * (1 + 1e-4)):  # powf is no exact function
        kept = Mirostat(version, tau=nearly, eta=0.1, temperature=temperature).keep(logits)
        if set(kept.ids.tolist()) == set(left["id"].tolist()):
            break
    else:
        # A bound far above the vocabulary does not fit into llama.cpp's int, and becomes 1.
        assume(not (version == 1 and left.size == 1 and kept.ids.size == VOCABULARY))
        pytest.fail(f"{left.size} tokens survive in llama.cpp, {kept.ids.size} here")
    ours = dict(zip(kept.ids.tolist(), softmax(kept.logits).tolist(), strict=True))
    assert ours == {int(one["id"]): pytest.approx(float(one["p"]), abs=1e-5) for one in left}


class Recorder:
    """Stands in for the last stages and keeps the logits that reach them."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.logits: list[NDArray[np.float32]] = []

    def choose(self, logits: NDArray[np.float32], top: int) -> int:
        self.logits.append(logits.copy())
        return next(self.tokens)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bias_penalties_and_dry_change_the_logits_as_llama_cpp_does(data: st.DataObject, model: Model) -> None:
    text = st.lists(st.integers(300, 304), max_size=40)  # few tokens: they repeat
    prompt, answer = data.draw(text, label="prompt"), data.draw(text, label="answer")
    params = SamplingParams(
        logit_bias=tuple(data.draw(st.lists(st.tuples(st.integers(299, 306), st.floats(-9, 9)), max_size=4))),
        repeat_last_n=data.draw(st.sampled_from([0, 1, 8, 1000])),
        repeat_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.5])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.25])),
        dry_multiplier=data.draw(st.sampled_from([0.0, 0.8])),
        dry_base=data.draw(st.sampled_from([1.0, 1.75])),
        dry_allowed_length=data.draw(st.integers(0, 4)),
        dry_penalty_last_n=data.draw(st.sampled_from([0, 6, 1000])),
        dry_sequence_breakers=data.draw(st.sampled_from([(), ("\n", "e"), ("", "\0", "é" * 30)])),
    )
    sampler = make_sampler(params, model, prompt)
    recorder = Recorder([*answer, 0])
    sampler._chooser = recorder  # type: ignore[attr-defined]
    for position in range(len(answer) + 1):
        sampler.sample(normal(position, 3.0), None, 0)  # type: ignore[arg-type]
    sampler.close()
    biases = [native.llama_logit_bias(token, bias) for token, bias in params.logit_bias]
    breakers = [text.encode() for text in params.dry_sequence_breakers]
    stages = [
        native.llama_sampler_init_logit_bias(VOCABULARY, len(biases), (native.llama_logit_bias * len(biases))(*biases)),
        native.llama_sampler_init_penalties(
            VOCABULARY,
            params.repeat_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        native.llama_sampler_init_dry(
            model.vocab,
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            params.dry_penalty_last_n,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        ),
    ]
    for token in prompt + answer:
        for stage in stages:
            native.llama_sampler_accept(stage, token)
    expected = through_llama(stages, normal(len(answer), 3.0))
    np.testing.assert_allclose(recorder.logits[-1], expected["logit"], rtol=1e-5, atol=1e-5)


ACTIVE = {
    "temperature": {"temperature": 3.0},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.2},
    "min_p": {"min_p": 0.9},
    "typical_p": {"typical_p": 0.2},
    "repeat_penalty": {"repeat_penalty": 5.0},
    "presence_penalty": {"presence_penalty": 20.0},
    "frequency_penalty": {"frequency_penalty": 20.0},
    "repeat_last_n": {"repeat_penalty": 5.0, "repeat_last_n": -1},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 0.5},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 0.5},
    "logit_bias": {"logit_bias": tuple((token, -100.0) for token in range(0, VOCABULARY, 2))},
    "seed": {"seed": 2},
}


def generate(context: Context, params: SamplingParams, count: int = 24) -> list[int]:
    """Text after a prompt that repeats itself, drawn with a sampler as the engine does."""
    context.forget(0)
    tokens = context.model.tokenize("The word is the word is the word is", add_special=True, parse_special=False)
    sampler = make_sampler(params, context.model, tokens)
    drawn: list[int] = []
    pending, start = tokens, 0
    while len(drawn) < count:
        context.batch.clear()
        index = context.batch.add(pending, start, 0, logits=1) + len(pending) - 1
        assert context.decode() == 0
        start += len(pending)
        drawn.append(sampler.sample(context.logits(index), context, index))
        pending = drawn[-1:]
    sampler.close()
    return drawn


@pytest.fixture(scope="module")
def plain(context: Context) -> list[int]:
    return generate(context, UNCUT)


@pytest.mark.parametrize("change", ACTIVE.values(), ids=ACTIVE.keys())
def test_every_parameter_changes_a_text_and_the_text_repeats(
    change: dict[str, Any], context: Context, plain: list[int]
) -> None:
    first = generate(context, replace(UNCUT, **change))
    assert first != plain
    assert generate(context, replace(UNCUT, **change)) == first


@pytest.mark.parametrize(
    "change",
    [
        {"dry_multiplier": 2.0},
        {"dry_multiplier": 0.0},
        {"dry_base": 4.0},
        {"dry_penalty_last_n": 3},
        {"dry_sequence_breakers": (" word",)},
        {"dry_allowed_length": 9},
    ],
)
def test_every_parameter_of_dry_matters(change: dict[str, Any], model: Model) -> None:
    text = model.tokenize("the word is the word is the", add_special=False, parse_special=False)

    def logits_with(params: SamplingParams) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        sampler = make_sampler(params, model, text)
        sampler.sample(logits, None, 0)  # type: ignore[arg-type]
        sampler.close()
        return logits

    params = SamplingParams(dry_multiplier=1.0)
    assert logits_with(params).min() < -1
    assert (logits_with(replace(params, **change)) != logits_with(params)).any()


@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_the_rate_of_mirostat_matters(eta: float, context: Context) -> None:
    params = replace(UNCUT, mirostat=2, mirostat_tau=2.0)
    assert generate(context, replace(params, mirostat_eta=eta)) != generate(context, params)


def test_greedy_is_the_likeliest_token_after_bias_and_penalties(context: Context) -> None:
    greedy = SamplingParams(temperature=0.0)
    text = generate(context, greedy, 6)
    assert generate(context, replace(greedy, seed=9, typical_p=0.1, xtc_probability=1.0), 6) == text
    assert generate(context, replace(greedy, logit_bias=((text[0], -math.inf),)), 6)[0] != text[0]
    assert generate(context, replace(greedy, logit_bias=((77, 100.0),)), 3) == [77] * 3
    assert generate(context, replace(greedy, presence_penalty=100.0, repeat_last_n=-1), 24) != text
    assert len(set(generate(context, replace(greedy, presence_penalty=100.0, repeat_last_n=-1), 24))) == 24


ALL_KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repeat_penalty=1.2, dry_multiplier=0.8, logit_bias=((5, 1.0),)),
    SamplingParams(),
    UNCUT,
    replace(UNCUT, typical_p=0.5),
    replace(UNCUT, top_p=0.9),
    SamplingParams(xtc_probability=1.0, repeat_penalty=1.2, dry_multiplier=0.8, presence_penalty=0.5),
    SamplingParams(mirostat=1),
    SamplingParams(mirostat=2, frequency_penalty=1.0),
]


@pytest.mark.parametrize("params", ALL_KINDS)
def test_odd_logits_never_crash_and_never_let_a_forbidden_token_through(params: SamplingParams, model: Model) -> None:
    sampler = make_sampler(params, model, [5, 6, 7, 5, 6, 7])
    one = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    one[4000] = -3.0
    assert sampler.sample(one.copy(), None, 0) == 4000  # type: ignore[arg-type]
    one[7] = np.nan
    assert sampler.sample(one.copy(), None, 0) == 4000  # type: ignore[arg-type]
    one[9] = np.inf
    assert sampler.sample(one.copy(), None, 0) == 9  # type: ignore[arg-type]
    for value in (-np.inf, np.nan):
        nothing = np.full(VOCABULARY, value, dtype=np.float32)
        assert 0 <= sampler.sample(nothing, None, 0) < VOCABULARY  # type: ignore[arg-type]
    sampler.close()
    sampler.close()


def test_logprobs_of_a_real_model_agree_with_greedy(context: Context) -> None:
    token = generate(context, SamplingParams(temperature=0.0), 1)[0]
    logits = context.logits(context.batch.size - 1)
    logprob, alternatives = token_logprob(logits, token, 5)
    assert alternatives[0] == (token, pytest.approx(logprob))
    assert sum(math.exp(token_logprob(logits, other, 0)[0]) for other in range(VOCABULARY)) == pytest.approx(
        1, abs=1e-4
    )
