"""Mirostat (arXiv 2007.14966), versions 1 and 2: keeps the surprise of the drawn tokens near a target.

After llama.cpp's definitions, which it follows but for two cases that are undefined there: forbidden tokens, and a
vocabulary without a slope. Without sorting the vocabulary at every token. Pure numpy; runs in the worker process.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.engine.candidates import Candidates, largest
from service.engine.gumbel import race

_MOST_BITS = 1000.0
_ESTIMATED_FROM = 100  # likeliest tokens from which version 1 estimates the slope, the paper's m


class Mirostat:
    """The control loop of both versions; `mu`, in bits, bounds the surprise of the next token."""

    def __init__(self, version: int, *, tau: float, eta: float, temperature: float) -> None:
        """`tau` is the wanted surprise in bits, `eta` the learning rate; `temperature` > 0 comes first."""
        self.mu = _bounded(2.0 * tau)
        self._version = version
        self._tau = tau
        self._eta = eta
        self._temperature = temperature

    def draw(self, logits: NDArray[np.float32], key: int) -> int:
        """The next token; `key`, 64 bits, decides. The largest logit must be finite and none NaN."""
        kept = self.keep(logits)
        weights = np.exp(kept.logits - kept.logits.max(), dtype=np.float64)
        index = race(weights, kept.ids, key)
        surprise = -math.log2(float(weights[index]) / float(weights.sum()))
        self.mu = _bounded(self.mu - self._eta * (surprise - self._tau))
        return int(kept.ids[index])

    def keep(self, logits: NDArray[np.float32]) -> Candidates:
        """The tokens of the next draw, with their logits divided by the temperature."""
        logits = logits / self._temperature
        return self._keep_1(logits) if self._version == 1 else self._keep_2(logits)

    def _keep_1(self, logits: NDArray[np.float32]) -> Candidates:
        likeliest = largest(logits, _ESTIMATED_FROM)
        count = zipf_count(likeliest.logits, vocabulary=logits.size, mu=self.mu)
        if count <= likeliest.ids.size:
            return Candidates(likeliest.ids[:count], likeliest.logits[:count], is_sorted=True)
        return largest(logits, count, ordered=False)

    def _keep_2(self, logits: NDArray[np.float32]) -> Candidates:
        weights = np.exp(logits - logits.max())
        # Surprise above mu is a probability below 2 ** -mu. A negative mu leaves the likeliest alone, as 0 does.
        least = float(weights.sum()) * 2.0 ** -max(self.mu, 0.0)
        ids: NDArray[np.int64] = (weights >= max(least, np.finfo(np.float32).tiny)).nonzero()[0]
        if not ids.size:
            ids = np.array([logits.argmax()])
        return Candidates(ids, logits[ids])


def _bounded(mu: float) -> float:
    return min(max(mu, -_MOST_BITS), _MOST_BITS)  # further out it changes nothing but could overflow


def zipf_count(logits: NDArray[np.float32], *, vocabulary: int, mu: float) -> int:
    """How many tokens have a surprise of about `mu` bits, if probabilities fall with rank ** -s (equation 2 there).

    `logits` are the largest ones, in order, from which s is estimated. At least 1, at most `vocabulary`.
    """
    if logits.size < 2:
        return 1
    ranks = np.arange(1, logits.size + 1, dtype=np.float64)
    steps = np.log(ranks[1:] / ranks[:-1])
    slope = float(steps @ (logits[:-1] - logits[1:]).astype(np.float64)) / float(steps @ steps)
    if slope < 1e-6:  # all equally likely: any bound takes all or one
        return vocabulary if 2.0**mu >= vocabulary else 1
    excess = slope - 1.0
    # excess / (1 - vocabulary ** -excess), whose limit at 0 is 1 / log(vocabulary)
    ratio = 1.0 / math.log(vocabulary) if abs(excess) < 1e-9 else -excess / math.expm1(-excess * math.log(vocabulary))
    exponent = (math.log(ratio) + mu * math.log(2.0)) / slope
    return vocabulary if exponent >= math.log(vocabulary) else max(int(math.exp(exponent)), 1)
