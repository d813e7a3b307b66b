"""Sampling parameters to the next token; seeds that repeat. In the worker process, on the engine's thread.

The stages and their order are llama.cpp's: bias, penalties, DRY, then top-k, typical, top-p, min-p, XTC, temperature,
or temperature and mirostat. They run in numpy over few candidates, because llama.cpp's sampler chain first builds one
for every token of the vocabulary, which costs more than all else together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain.generation import SamplingParams
from service.engine.drawing import Chooser, make_chooser
from service.engine.penalties import Adjustment, LogitBias, Penalties
from service.llama.context import Context
from service.llama.model import Model
from service.llama.sampler import DryPenalty

# DRY reserves room for its window, and a request could ask for any.
_LONGEST_DRY_WINDOW = 1 << 17


class Sampler(Protocol):
    """Draws one token at a time for one request."""

    def sample(self, logits: NDArray[np.float32], context: Context, index: int) -> int:
        """Draw the next token and remember it for the penalties.

        `logits`, shape (vocabulary,), are `context.logits(index)`; tokens with -inf are forbidden. They may be changed.
        """

    def close(self) -> None:
        """Free what it holds."""


def make_sampler(params: SamplingParams, model: Model, prompt_tokens: Sequence[int]) -> Sampler:
    """A sampler that does what `params` say. Penalties and DRY see the end of the prompt as well."""
    return _Sampler(_adjustments(params, model, prompt_tokens), make_chooser(params))


class _Sampler:
    """Adjust the logits, choose, remember."""

    def __init__(self, adjustments: tuple[Adjustment, ...], chooser: Chooser) -> None:
        self._adjustments = adjustments
        self._chooser = chooser

    def sample(self, logits: NDArray[np.float32], context: Context, index: int) -> int:
        """See `Sampler`. Logits without a finite maximum, as broken models have, give the likeliest token there is."""
        for adjustment in self._adjustments:
            adjustment.apply(logits)
        top = int(logits.argmax())  # a NaN counts as the largest
        if math.isnan(logits[top]):
            logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
            top = int(logits.argmax())
        token = self._chooser.choose(logits, top) if math.isfinite(logits[top]) else top
        for adjustment in self._adjustments:
            adjustment.accept(token)
        return token

    def close(self) -> None:
        """Free the adjustments."""
        for adjustment in self._adjustments:
            adjustment.close()


def _adjustments(params: SamplingParams, model: Model, prompt_tokens: Sequence[int]) -> tuple[Adjustment, ...]:
    adjustments: list[Adjustment] = []
    if params.logit_bias:
        adjustments.append(LogitBias(params.logit_bias, model.vocabulary_size))
    if params.repeat_last_n and (params.repeat_penalty != 1.0 or params.presence_penalty or params.frequency_penalty):
        adjustments.append(
            Penalties(
                prompt_tokens,
                last_n=params.repeat_last_n,
                repeat=params.repeat_penalty,
                presence=params.presence_penalty,
                frequency=params.frequency_penalty,
            )
        )
    if params.dry_multiplier and params.dry_base >= 1.0 and params.dry_penalty_last_n:
        last_n = params.dry_penalty_last_n
        adjustments.append(
            DryPenalty(
                model,
                prompt_tokens,
                multiplier=params.dry_multiplier,
                base=params.dry_base,
                allowed_length=params.dry_allowed_length,
                last_n=_LONGEST_DRY_WINDOW if last_n < 0 else min(last_n, _LONGEST_DRY_WINDOW),
                sequence_breakers=params.dry_sequence_breakers,
            )
        )
    return tuple(adjustments)
