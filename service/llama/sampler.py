"""llama.cpp's sampler stages, chained for one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as native

from service.llama.context import Context


class SamplerChain:
    """llama.cpp's sampler stages in order, for one request; owns them."""

    def __init__(self, stages: Sequence[Any]) -> None:
        """`stages` are handles from the `native.llama_sampler_init_*` functions; the chain frees them."""
        self.handle = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        for stage in stages:
            native.llama_sampler_chain_add(self.handle, stage)

    def sample(self, context: Context, index: int) -> int:
        """Draw the next token from the logits of batch entry `index`, and remember it for the penalties."""
        return int(native.llama_sampler_sample(self.handle, context.handle, index))

    def accept(self, token: int) -> None:
        """Show the chain a token that it did not draw (a prompt token, for the penalties)."""
        native.llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        """Free the chain and its stages."""
        if self.handle:
            native.llama_sampler_free(self.handle)
            self.handle = None


def sampler_stages(
    *,
    vocabulary: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repeat_penalty: float,
    repeat_last_n: int,
    presence_penalty: float,
    frequency_penalty: float,
    logit_bias: Sequence[tuple[int, float]],
    seed: int,
) -> list[Any]:
    """Sampler handles in llama.cpp's usual order; stages at their neutral value are left out."""
    stages: list[Any] = []
    if logit_bias:
        biases = (native.llama_logit_bias * len(logit_bias))(*(native.llama_logit_bias(t, b) for t, b in logit_bias))
        stages.append(native.llama_sampler_init_logit_bias(vocabulary, len(logit_bias), biases))
    if repeat_last_n and (repeat_penalty != 1.0 or presence_penalty or frequency_penalty):
        stages.append(
            native.llama_sampler_init_penalties(
                vocabulary, repeat_last_n, repeat_penalty, frequency_penalty, presence_penalty
            )
        )
    if temperature <= 0.0:
        stages.append(native.llama_sampler_init_greedy())
        return stages
    if top_k > 0:
        stages.append(native.llama_sampler_init_top_k(top_k))
    if typical_p < 1.0:
        stages.append(native.llama_sampler_init_typical(typical_p, 1))
    if top_p < 1.0:
        stages.append(native.llama_sampler_init_top_p(top_p, 1))
    if min_p > 0.0:
        stages.append(native.llama_sampler_init_min_p(min_p, 1))
    stages.append(native.llama_sampler_init_temp(temperature))
    stages.append(native.llama_sampler_init_dist(seed))
    return stages
