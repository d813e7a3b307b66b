"""From llama-server's words to a GenerationRequest. Pure; raises NotSupported and InvalidParameter with the field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from service.api.llama_server_shapes import SampledBody
from service.api.sampling import sampling_params
from service.api.shapes import schema_grammar
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import GenerationRequest, Grammar, GrammarKind, SamplingParams

_BAN = -100.0  # llama-server bans a token with false; here that is the lowest bias


def sampled(asked: GenerationRequest, body: SampledBody) -> GenerationRequest:
    """What is `asked`, completed by the fields that both routes share.

    `n_predict` 0 only fills the cache: one token is drawn for it, which is not shown.
    """
    _refuse(body)
    return replace(
        asked,
        max_tokens=None if body.n_predict < 0 else max(body.n_predict, 1),
        sampling=_sampling(body),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        ignore_eos=body.ignore_eos,
        logprobs=body.n_probs or None,
        grammar=_grammar(body),
        context_length=body.context_length,
        cache_prompt=body.cache_prompt,
    )


def grammar_field(body: SampledBody) -> str:
    """The field that says what the text must look like."""
    return "grammar" if body.json_schema is None else "json_schema"


def _refuse(body: SampledBody) -> None:
    asked = {
        "n_cmpl": body.n_cmpl > 1,
        "return_tokens": body.return_tokens,
        "post_sampling_probs": body.post_sampling_probs and body.n_probs > 0,
        "dynatemp_range": body.dynatemp_range > 0,
        "image_data": bool(body.image_data),
    }
    for field, wanted in asked.items():
        if wanted:
            raise NotSupported(f"{field} is not carried out by this server; leave it out.", param=field)


def _grammar(body: SampledBody) -> Grammar | None:
    if body.grammar and body.json_schema is not None:
        raise InvalidParameter(
            "grammar and json_schema both say what the text must look like; send one of them.", param="grammar"
        )
    if body.grammar:
        return Grammar(GrammarKind.GBNF, body.grammar)
    return None if body.json_schema is None else schema_grammar(body.json_schema)


def _sampling(body: SampledBody) -> SamplingParams:
    seed = None if body.seed == -1 else body.seed
    params = sampling_params(body, SamplingParams(), seed=seed, logit_bias=tuple(_biases(body)))
    return params if body.samplers is None or body.mirostat else _only(params, set(body.samplers))


def _only(params: SamplingParams, stages: set[str]) -> SamplingParams:
    """The stages that are listed; the others change nothing. Their order is always the same here."""
    return replace(
        params,
        temperature=params.temperature if "temperature" in stages else 1.0,
        top_k=params.top_k if "top_k" in stages else 0,
        top_p=params.top_p if "top_p" in stages else 1.0,
        min_p=params.min_p if "min_p" in stages else 0.0,
        typical_p=params.typical_p if stages & {"typ_p", "typical_p"} else 1.0,
        repeat_penalty=params.repeat_penalty if "penalties" in stages else 1.0,
        presence_penalty=params.presence_penalty if "penalties" in stages else 0.0,
        frequency_penalty=params.frequency_penalty if "penalties" in stages else 0.0,
        dry_multiplier=params.dry_multiplier if "dry" in stages else 0.0,
        xtc_probability=params.xtc_probability if "xtc" in stages else 0.0,
    )


def _biases(body: SampledBody) -> Iterator[tuple[int, float]]:
    pairs = body.logit_bias.items() if isinstance(body.logit_bias, dict) else body.logit_bias
    for token, bias in pairs:
        yield int(token), _BAN if bias is False else min(max(float(bias), _BAN), -_BAN)
