"""From scores to the figures of a card."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.quantization.figures import divergence, mean, perplexity
from service.quantization.scoring import Scores


def scores_of(seed: int, tokens: int) -> Scores:
    random = np.random.default_rng(seed)
    base = random.gamma(2.0, 1.5, tokens)
    own = base + random.normal(0.01, 0.2, tokens)
    return Scores(own, base, random.gamma(0.5, 0.02, tokens), np.exp(-own) - np.exp(-base), random.random(tokens) > 0.1)


def test_a_mean_comes_with_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 10_000)
    estimate = mean(values)
    assert estimate.value == pytest.approx(5.0, abs=0.1)
    assert estimate.error == pytest.approx(2.0 / math.sqrt(10_000), rel=0.05)
    assert mean(values[:10]).error == 0.0


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    estimate = perplexity(np.full(100, math.log(30.0)))
    assert estimate.value == pytest.approx(30.0)
    assert estimate.error == pytest.approx(0.0, abs=1e-6)


def test_a_hopeless_model_has_an_infinite_perplexity_and_no_error_is_raised() -> None:
    assert perplexity(np.full(100, 1000.0)).value == math.inf


def test_the_ratio_of_perplexities_knows_that_both_saw_the_same_text() -> None:
    scores = scores_of(1, 5000)
    figures = divergence(scores, base_name="m:F16", base_digest="sha256:0")
    assert figures.log_perplexity_ratio.value == pytest.approx((scores.losses - scores.base_losses).mean())
    # The error of a mean of differences, not of two independent means.
    differences = scores.losses - scores.base_losses
    assert figures.log_perplexity_ratio.error == pytest.approx(differences.std() / math.sqrt(4999), rel=1e-6)
    assert figures.log_perplexity_ratio.error < perplexity(scores.losses).error / perplexity(scores.losses).value


def test_every_figure_of_the_divergence_is_what_its_name_says() -> None:
    scores = scores_of(2, 2001)
    figures = divergence(scores, base_name="m:F16", base_digest="sha256:0")
    ordered = np.sort(scores.divergences)
    assert (figures.base_name, figures.base_digest) == ("m:F16", "sha256:0")
    assert figures.mean_kld.value == pytest.approx(scores.divergences.mean())
    assert figures.median_kld == pytest.approx(ordered[1000])
    assert figures.p90_kld == pytest.approx(ordered[1800])
    assert figures.p99_kld == pytest.approx(ordered[1980])
    assert figures.p999_kld == pytest.approx(ordered[1998])
    assert figures.max_kld == ordered[-1]
    assert figures.rms_dp.value == pytest.approx(math.sqrt((scores.probability_changes**2).mean()))
    assert figures.mean_dp.value == pytest.approx(scores.probability_changes.mean())
    assert figures.same_top.value == pytest.approx(scores.same_top.mean())
    assert figures.base_perplexity.value == pytest.approx(math.exp(scores.base_losses.mean()))


def test_two_equal_models_differ_by_nothing() -> None:
    same = scores_of(3, 500)
    equal = Scores(same.base_losses, same.base_losses, np.zeros(500), np.zeros(500), np.ones(500, dtype=np.bool_))
    figures = divergence(equal, base_name="m:F16", base_digest="sha256:0")
    assert figures.log_perplexity_ratio.value == 0.0
    assert figures.rms_dp.value == figures.rms_dp.error == 0.0
    assert figures.same_top.value == 1.0
    assert figures.same_top.error == 0.0
