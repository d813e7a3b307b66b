"""How tokens are drawn, from the fields of any body. Pure.

All dialects have the same words for it and defaults of their own. What each writes in its own way, seeds and biases,
it brings as values.
"""

from __future__ import annotations

from dataclasses import fields, replace

from pydantic import BaseModel

from service.domain.generation import SamplingParams

_NAMES = tuple(field.name for field in fields(SamplingParams) if field.name not in ("seed", "logit_bias"))


def sampling_params(
    body: BaseModel,
    defaults: SamplingParams,
    *,
    seed: int | None,
    logit_bias: tuple[tuple[int, float], ...] = (),
) -> SamplingParams:
    """What the fields of `body` say that are called as those of SamplingParams; `defaults` where it says nothing.

    A field says nothing that is None, or that the body does not have. A `top_k` below nought is no cut, as nought is.
    """
    sent = {name: value for name in _NAMES if (value := getattr(body, name, None)) is not None}
    if "top_k" in sent:
        sent["top_k"] = max(0, sent["top_k"])
    if "dry_sequence_breakers" in sent:
        sent["dry_sequence_breakers"] = tuple(sent["dry_sequence_breakers"])
    return replace(defaults, **sent, seed=seed, logit_bias=logit_bias)
