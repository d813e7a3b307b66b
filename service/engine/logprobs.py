"""Natural logarithms of token probabilities, from raw logits. Pure numpy; runs in the worker process."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.engine.candidates import largest

LEAST_LOGPROB = -9999.0  # what is reported for impossible tokens: JSON has no infinity


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The token's log-probability, and (id, log-probability) of the `top` likeliest tokens, likeliest first.

    `logits` has shape (vocabulary,) and is not changed. Tokens with -inf or NaN are impossible: they are no
    alternatives, so there may be fewer than `top`.
    """
    maximum = float(logits.max())
    if not math.isfinite(maximum):
        logits = np.where(np.isnan(logits), np.float32(-np.inf), np.minimum(logits, np.finfo(np.float32).max))
        maximum = float(logits.max())
        if maximum == -math.inf:
            return LEAST_LOGPROB, []
    normaliser = maximum + math.log(float(np.exp(logits - maximum).sum()))
    alternatives: list[tuple[int, float]] = []
    if top > 0:
        found = largest(logits, top)
        chances = np.maximum(found.logits - normaliser, LEAST_LOGPROB)
        alternatives = list(zip(found.ids.tolist(), chances.tolist(), strict=True))
    return max(float(logits[token]) - normaliser, LEAST_LOGPROB), alternatives
