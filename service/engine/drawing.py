"""From the final logits to one token: greedy, by cutting and drawing, or by mirostat.

Pure numpy; runs in the worker process and knows no llama.cpp. The stages' order is llama.cpp's.

A seed must give the same text whether the request runs alone or in a full batch, with a cached prefix or without. But
sums in another order change the last bits of the logits. Looking up one random number in the sums of the probabilities
would let every token's error move every border. So each token gets noise of its own, and the largest sum of logit /
temperature and Gumbel noise wins: the same distribution, and another token only where two are as close as the error.
"""

from __future__ import annotations

import random
import secrets
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain.generation import SamplingParams
from service.engine.candidates import (
    Candidates,
    everything,
    exclude_top_choices,
    in_order,
    keep_min_p,
    keep_top_p,
    keep_typical,
    largest,
    likely,
)
from service.engine.gumbel import KEY_BITS, draw, draw_from_all
from service.engine.mirostat import Mirostat

_SEED_BITS = 64
# Beyond these a temperature changes nothing any more, but float32 overflows.
_COLDEST, _HOTTEST = 1e-6, 1e6


class Chooser(Protocol):
    """Decides for a token, given the final logits."""

    def choose(self, logits: NDArray[np.float32], top: int) -> int:
        """The next token. `top` is the id of the largest logit, which is finite; none is NaN."""


class Greedy:
    """The likeliest token, the first of several."""

    def choose(self, logits: NDArray[np.float32], top: int) -> int:
        """`top`; whatever else the request says cannot matter."""
        return top


class Drawing:
    """Cuts the unlikely tokens and draws among the rest.

    Random numbers come from Python's Mersenne Twister, which is the same on every machine. Every token takes a key of
    64 bits for the draw, with XTC before it a number that decides whether to exclude, whatever the logits are.
    """

    def __init__(self, params: SamplingParams, generator: random.Random) -> None:
        """`params` with a temperature above 0 and without mirostat."""
        self._generator = generator
        self._temperature = min(max(params.temperature, _COLDEST), _HOTTEST)
        self._top_k = params.top_k
        self._typical_p = params.typical_p
        self._top_p = max(params.top_p, 0.0)
        self._min_p = min(params.min_p, 1.0)
        # Above one half there can be no two tokens to choose from.
        self._xtc_probability = params.xtc_probability if params.xtc_threshold <= 0.5 else 0.0
        self._xtc_threshold = params.xtc_threshold
        self._cuts = self._top_k > 0 or self._typical_p < 1.0 or self._top_p < 1.0 or self._min_p > 0.0

    def choose(self, logits: NDArray[np.float32], top: int) -> int:
        """A token drawn with its probability among those that stay."""
        excludes = self._xtc_probability > 0.0 and self._generator.random() <= self._xtc_probability
        key = self._generator.getrandbits(KEY_BITS)
        maximum = float(logits[top])
        # The parameters decide how to draw, never how many tokens are left: that can depend on the last bits as well.
        if not self._cuts and not excludes:
            return draw_from_all(logits, maximum, self._temperature, key)
        return draw(self.keep(logits, maximum, excludes=excludes), self._temperature, key)

    def keep(self, logits: NDArray[np.float32], maximum: float, *, excludes: bool) -> Candidates:
        """The tokens that stay, with their logits before the temperature; `excludes` lets XTC act."""
        if self._top_k <= 0 and self._typical_p >= 1.0 and (self._top_p < 1.0 or self._min_p > 0.0):
            kept = likely(logits, maximum, top_p=self._top_p, min_p=self._min_p)
        else:
            kept = largest(logits, self._top_k) if self._top_k > 0 else everything(logits)
            if self._typical_p < 1.0:
                kept = keep_typical(kept, self._typical_p)
            if self._top_p < 1.0:
                kept = keep_top_p(in_order(kept), self._top_p)
            if self._min_p > 0.0:
                kept = keep_min_p(in_order(kept), self._min_p)
        return exclude_top_choices(kept, self._xtc_threshold) if excludes else kept


class MirostatDrawing:
    """Draws by mirostat, with one key for each token."""

    def __init__(self, params: SamplingParams, generator: random.Random) -> None:
        """`params` with a temperature above 0 and with mirostat."""
        self._generator = generator
        temperature = min(max(params.temperature, _COLDEST), _HOTTEST)
        self._mirostat = Mirostat(
            params.mirostat, tau=params.mirostat_tau, eta=params.mirostat_eta, temperature=temperature
        )

    def choose(self, logits: NDArray[np.float32], top: int) -> int:
        """A token drawn with its probability among those within the bound."""
        return self._mirostat.draw(logits, self._generator.getrandbits(KEY_BITS))


def make_chooser(params: SamplingParams) -> Chooser:
    """What decides after bias and penalties. Temperature 0 leaves nothing for the other stages to decide."""
    if params.temperature <= 0.0:
        return Greedy()
    seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
    # random.Random ignores a seed's sign.
    generator = random.Random(seed % (1 << _SEED_BITS))
    return MirostatDrawing(params, generator) if params.mirostat else Drawing(params, generator)
