"""Sampling parameters to the next token; seeds that repeat."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from service.domain.generation import SamplingParams
from service.llama.context import Context
from service.llama.sampler import SamplerChain, sampler_stages

_SEED_LIMIT = 1 << 32


class Sampler(Protocol):
    """Draws one token at a time for one request."""

    def sample(self, context: Context, index: int) -> int:
        """The next token, from the logits of batch entry `index`."""

    def close(self) -> None:
        """Free what it holds."""


class _Greedy:
    """The most likely token. llama.cpp's sampler builds a candidate for every token of the vocabulary first, which
    costs more than finding the maximum."""

    def sample(self, context: Context, index: int) -> int:
        return int(context.logits(index).argmax())

    def close(self) -> None:
        return None


def make_sampler(params: SamplingParams, vocabulary: int, prompt_tokens: Sequence[int]) -> Sampler:
    """The cheapest sampler that does what `params` say. Penalties see the end of the prompt as well."""
    penalised = params.repeat_last_n != 0 and (
        params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    )
    if params.temperature <= 0.0 and not penalised and not params.logit_bias:
        return _Greedy()
    window = len(prompt_tokens) if params.repeat_last_n < 0 else min(params.repeat_last_n, len(prompt_tokens))
    chain = SamplerChain(
        sampler_stages(
            vocabulary=vocabulary,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            repeat_penalty=params.repeat_penalty,
            # llama.cpp wants a number of tokens; "the whole context" is the most this request can ever see.
            repeat_last_n=_WHOLE_CONTEXT if params.repeat_last_n < 0 else params.repeat_last_n,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=params.logit_bias,
            seed=secrets.randbelow(_SEED_LIMIT) if params.seed is None else params.seed,
        )
    )
    if penalised and window:
        for token in prompt_tokens[-window:]:
            chain.accept(token)
    return chain


_WHOLE_CONTEXT = 1 << 17
