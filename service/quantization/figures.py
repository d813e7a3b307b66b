"""From the scores of a text's tokens to the figures of a card. Pure.

Formulas are those of llama.cpp's tools/perplexity/perplexity.cpp, where `mean_and_uncertainty`, `covariance` and
`percentile` define them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.domain.evaluation import Divergence, Estimate
from service.quantization.scoring import Scores

_FEWEST = 10  # values, for an error


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean and its standard error, sqrt(variance / (n - 1)); no error for ten values or fewer."""
    count = len(values)
    error = math.sqrt(float(values.var()) / (count - 1)) if count > _FEWEST else 0.0
    return Estimate(float(values.mean()), error)


def perplexity(losses: NDArray[np.float64]) -> Estimate:
    """exp of the mean negative log-likelihood; the error follows from its derivative."""
    log = mean(losses)
    # Beyond float's range, or no number at all: a file that is damaged.
    value = math.exp(log.value) if log.value < 700 else math.inf
    return Estimate(value, value * log.error)


def divergence(scores: Scores, *, base_name: str, base_digest: str) -> Divergence:
    """How far the scored tokens' distributions are from the source's."""
    log_own, log_base = mean(scores.losses), mean(scores.base_losses)
    count = len(scores.losses)
    covariance = 0.0
    if count >= _FEWEST:
        products = (scores.losses * scores.base_losses).mean()
        covariance = float(products - scores.losses.mean() * scores.base_losses.mean()) / (count - 1)
    ratio_variance = log_own.error**2 + log_base.error**2 - 2.0 * covariance
    median, p90, p99, p999 = np.quantile(scores.divergences, (0.5, 0.9, 0.99, 0.999))
    squared = mean(scores.probability_changes**2)
    rms = math.sqrt(squared.value)
    same = float(scores.same_top.mean())
    return Divergence(
        base_name=base_name,
        base_digest=base_digest,
        base_perplexity=perplexity(scores.base_losses),
        log_perplexity_ratio=Estimate(log_own.value - log_base.value, math.sqrt(max(0.0, ratio_variance))),
        mean_kld=mean(scores.divergences),
        median_kld=float(median),
        p90_kld=float(p90),
        p99_kld=float(p99),
        p999_kld=float(p999),
        max_kld=float(scores.divergences.max()),
        mean_dp=mean(scores.probability_changes),
        rms_dp=Estimate(rms, 0.5 / rms * squared.error if rms > 0 else 0.0),
        same_top=Estimate(same, math.sqrt(same * (1.0 - same) / (count - 1)) if count > 1 else 0.0),
    )
