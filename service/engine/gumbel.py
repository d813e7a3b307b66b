"""One token of many by the Gumbel-max race, with noise that belongs to the tokens. Why so: see `drawing`.

Pure numpy; runs in the worker process. A key of 64 random bits decides for one token; its noise for an id is a hash of
both, so it depends neither on the other candidates nor on their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.engine.candidates import Candidates, everything

KEY_BITS = 64
_BLOCK = 256
# SplitMix64 (Steele, Lea, Flood 2014): the step between states, and the multipliers of the finaliser.
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draw(candidates: Candidates, temperature: float, key: int) -> int:
    """A token id with the probabilities softmax(logits / temperature); `key`, 64 bits, decides."""
    logits = candidates.logits.astype(np.float64)
    weights = np.exp((logits - logits.max()) / temperature)
    return int(candidates.ids[race(weights, candidates.ids, key)])


def draw_from_all(logits: NDArray[np.float32], maximum: float, temperature: float, key: int) -> int:
    """The same over a whole vocabulary, where noise for every token would cost several times as much.

    Blocks of ids race with their tokens' weights together, then the winner's tokens race. `maximum` is the largest
    logit, finite.
    """
    weights = np.exp((logits - maximum) / temperature)
    blocks = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK), dtype=np.float64)
    # Negative ids: noise that no token has.
    start = race(blocks, -1 - np.arange(blocks.size), key) * _BLOCK
    ids = everything(logits).ids[start : start + _BLOCK]
    return draw(Candidates(ids, logits[start : start + _BLOCK]), temperature, key)


def race(weights: NDArray[np.floating], ids: NDArray[np.int64], key: int) -> int:
    """An index with probability proportional to its weight; none with weight 0, of which not all may be.

    Log(weight) plus Gumbel noise is largest where weight / exponential noise is, which saves a logarithm.
    """
    return int((weights / exponentials(ids, key)).argmax())


def exponentials(ids: NDArray[np.int64], key: int) -> NDArray[np.float64]:
    """Numbers with an exponential distribution, independent over ids and keys; between 2 ** -53 and 37."""
    state = ids.view(np.uint64) * _STEP + key
    state ^= state >> 30
    state *= _FIRST
    state ^= state >> 27
    state *= _SECOND
    state ^= state >> 31
    # 52 bits and a half are exact in float64. One bit more would round up to 1 now and then, whose logarithm is 0.
    uniform = ((state >> 12).astype(np.float64) + 0.5) * 2.0**-52
    noise: NDArray[np.float64] = -np.log(uniform)
    return noise
