"""Which tokens stay in the draw: top-k, typical, top-p, min-p, XTC, after llama.cpp's definitions.

Every function keeps at least one token. They work on few candidates instead of the whole vocabulary wherever the result
is the same. Pure numpy; runs in the worker process.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FIRST_MARGIN = 8.0
_NO_WEIGHT = 104.0  # exp(-104) is 0 in float32
_LEAST_LOGIT = float(np.finfo(np.float32).min)
_TINY = float(np.finfo(np.float32).tiny)


class Candidates(NamedTuple):
    """Tokens of the draw with their logits. Both have shape (candidates,); some logits may be -inf, not all."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    is_sorted: bool = False  # likeliest first


def largest(logits: NDArray[np.float32], count: int, *, ordered: bool = True) -> Candidates:
    """Top-k: the `count` > 0 largest logits, of equal ones those with the smallest ids; fewer where fewer are allowed.

    Neither orders the vocabulary nor builds an array of it. Cut into rows, one under the other, it has a largest logit
    in each column; `count` of these are at least as large as the `count`-th largest of them, so that one is a threshold
    which leaves little more than is wanted. `ordered` False saves time for large counts.
    """
    columns = max(1024, 8 * count)
    rows = logits.size // columns
    heads = logits[: rows * columns].reshape(rows, columns).max(axis=0) if rows > 1 else logits
    threshold = np.partition(heads, heads.size - count)[heads.size - count] if count < heads.size else -np.inf
    ids: NDArray[np.int64] = (logits >= max(threshold, _LEAST_LOGIT)).nonzero()[0]
    values = logits[ids]
    if not ordered or ids.size > 8 * count:
        ids = ids[_largest_places(values, count)]
        values = logits[ids]
        if not ordered:
            return Candidates(ids, values)
    order = np.argsort(-values, kind="stable")[:count]
    return Candidates(ids[order], values[order], is_sorted=True)


def _largest_places(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest, ascending; of equal ones the first."""
    if count >= values.size:
        return np.arange(values.size)
    least = np.partition(values, values.size - count)[values.size - count]
    places: NDArray[np.int64] = (values >= least).nonzero()[0]
    if places.size > count:
        surplus = (values[places] == least).nonzero()[0][count - places.size :]
        places = np.delete(places, surplus)
    return places


def everything(logits: NDArray[np.float32]) -> Candidates:
    """All tokens of the vocabulary, by id."""
    return Candidates(_ids(logits.size), logits)


def likely(logits: NDArray[np.float32], maximum: float, *, top_p: float, min_p: float) -> Candidates:
    """Top-p, then min-p, over the whole vocabulary: one of them must cut. `maximum` is the largest logit, finite."""
    if top_p >= 1.0:
        ids: NDArray[np.int64] = (logits >= maximum + math.log(min_p)).nonzero()[0]
        return Candidates(ids, logits[ids])
    weights = np.exp(logits - maximum)
    enough = top_p * float(weights.sum())
    # Each cut keeps the first tokens of the same order, so whichever keeps fewer decides.
    margin = -math.log(min_p) if min_p > 0.0 else _FIRST_MARGIN
    ids = (logits >= maximum - margin).nonzero()[0]
    while min_p <= 0.0 and margin < _NO_WEIGHT and float(weights[ids].sum()) < enough:
        margin *= 2
        ids = (logits >= maximum - margin).nonzero()[0]
    values = logits[ids]
    # Sorting numbers is many times faster than sorting their indices.
    kept = int(np.exp(np.sort(values)[::-1] - maximum).cumsum().searchsorted(enough)) + 1
    ids = ids[_largest_places(values, kept)]
    return Candidates(ids, logits[ids])


def keep_typical(candidates: Candidates, typical_p: float) -> Candidates:
    """Locally typical sampling (arXiv 2202.00666): the tokens whose surprise is nearest to the entropy, until their
    probabilities sum to more than `typical_p`."""
    chances = softmax(candidates.logits)
    possible = (chances > 0).nonzero()[0]
    chances = chances[possible]
    surprise = -np.log(chances)
    distance = np.abs(surprise - (chances * surprise).sum())
    # Only the nearest tokens need an order.
    reach = 1.0
    near = (distance <= reach).nonzero()[0]
    while near.size < distance.size and float(chances[near].sum()) <= typical_p:
        reach *= 2
        near = (distance <= reach).nonzero()[0]
    near = near[np.argsort(distance[near], kind="stable")]
    kept = int(chances[near].cumsum().searchsorted(typical_p, side="right")) + 1
    chosen = possible[near[:kept]]
    return Candidates(candidates.ids[chosen], candidates.logits[chosen])


def in_order(candidates: Candidates) -> Candidates:
    """The same tokens, likeliest first."""
    if candidates.is_sorted:
        return candidates
    order = np.argsort(-candidates.logits, kind="stable")
    return Candidates(candidates.ids[order], candidates.logits[order], is_sorted=True)


def keep_top_p(candidates: Candidates, top_p: float) -> Candidates:
    """Nucleus sampling (arXiv 1904.09751): the fewest tokens, likeliest first, that have a probability of `top_p`
    together. `candidates` must be in order."""
    sums = np.exp(candidates.logits - candidates.logits[0]).cumsum()
    kept = int(sums.searchsorted(top_p * sums[-1])) + 1
    return Candidates(candidates.ids[:kept], candidates.logits[:kept], is_sorted=True)


def keep_min_p(candidates: Candidates, min_p: float) -> Candidates:
    """The tokens at least `min_p` (> 0) times as likely as the likeliest. `candidates` must be in order."""
    logits = candidates.logits
    kept = max(int(np.count_nonzero(logits >= logits[0] + math.log(min_p))), 1)
    return Candidates(candidates.ids[:kept], logits[:kept], is_sorted=True)


def exclude_top_choices(candidates: Candidates, threshold: float) -> Candidates:
    """XTC: of the tokens with a probability of at least `threshold` only the least likely stays."""
    above = (softmax(candidates.logits) >= max(threshold, _TINY)).nonzero()[0]
    if above.size < 2:
        return candidates
    # Backwards, so that the later one of two equals stays: it is the last in order.
    last = above.size - 1 - int(candidates.logits[above][::-1].argmin())
    kept = np.ones(candidates.ids.size, dtype=bool)
    kept[np.delete(above, last)] = False
    return Candidates(candidates.ids[kept], candidates.logits[kept], candidates.is_sorted)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities; -inf gives 0. At least one logit must be finite and none +inf."""
    weights: NDArray[np.float32] = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


@lru_cache(maxsize=4)
def _ids(vocabulary: int) -> NDArray[np.int64]:
    return np.arange(vocabulary)
