"""From a generation to llama-server's `/completion`: the whole answer, and the pieces of a stream. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.llama_server_shapes import SampledBody
from service.api.timings import timings_shape
from service.domain.generation import (
    Finished,
    FinishReason,
    GenerationRequest,
    GrammarKind,
    TokenChance,
    TokenLogprob,
)

_NO_SLOT = -1  # sequences have no number here that would mean anything to a client


def piece(text: str, drawn: Sequence[TokenLogprob], prompt_tokens: int) -> dict[str, Any]:
    """One piece of a stream. How many tokens have been drawn is told at its end only."""
    found = {
        "index": 0,
        "content": text,
        "tokens": [],
        "stop": False,
        "id_slot": _NO_SLOT,
        "tokens_evaluated": prompt_tokens,
    }
    if drawn:
        found["completion_probabilities"] = chances(drawn)
    return found


def whole(
    body: SampledBody,
    asked: GenerationRequest,
    end: Finished,
    *,
    model: str,
    prompt: str,
    text: str,
    has_new_line: bool,
) -> dict[str, Any]:
    """What `/completion` answers; at the end of a stream with `text` empty."""
    usage, drawn = end.usage, end.usage.completion_tokens
    only_prompt = body.n_predict == 0
    cut = end.reason is FinishReason.LENGTH
    return {
        "index": 0,
        "content": "" if only_prompt else text,
        "tokens": [],
        "id_slot": _NO_SLOT,
        "stop": True,
        "model": model,
        "tokens_predicted": 0 if only_prompt else drawn,
        "tokens_evaluated": usage.prompt_tokens,
        "generation_settings": settings(body, asked),
        "prompt": prompt,
        "has_new_line": has_new_line and not only_prompt,
        "truncated": cut and (asked.max_tokens is None or drawn < asked.max_tokens),
        "stop_type": "word" if end.stop is not None else "limit" if cut or only_prompt else "eos",
        "stopping_word": end.stop or "",
        # The last token is drawn and not computed.
        "tokens_cached": usage.prompt_tokens + max(drawn - 1, 0),
        "timings": timings_shape(usage, end.timings),
    }


def chances(drawn: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """`completion_probabilities`: what was drawn and what else was likely, with token ids."""
    return [{**_chance(token), "top_logprobs": [_chance(other) for other in token.top]} for token in drawn]


def selected(answer: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields at these paths (`timings/prompt_n`), under their paths; all of them where no path is given."""
    if not paths:
        return answer
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = answer
        for key in path.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            found[path] = value
    return found


def settings(body: SampledBody | None, asked: GenerationRequest) -> dict[str, Any]:
    """`generation_settings`: how the text was drawn. `body` None: the defaults."""
    params = asked.sampling
    grammar = asked.grammar
    most = -1 if asked.max_tokens is None else asked.max_tokens
    if body is not None:
        most = body.n_predict
    return {
        "seed": (1 << 32) - 1 if params.seed is None else params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "typical_p": params.typical_p,
        "repeat_last_n": params.repeat_last_n,
        "repeat_penalty": params.repeat_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "mirostat": params.mirostat,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "stop": list(asked.stop),
        "max_tokens": most,
        "n_predict": most,
        "n_keep": 0,
        "ignore_eos": asked.ignore_eos,
        "stream": body is not None and body.stream,
        "logit_bias": [{"token": token, "bias": bias} for token, bias in params.logit_bias],
        "n_probs": asked.logprobs or 0,
        "grammar": grammar.source if grammar is not None and grammar.kind is GrammarKind.GBNF else "",
        "samplers": ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
        "lora": [] if body is None else [{"id": one.id, "scale": one.scale} for one in body.lora],
    }


def _chance(chance: TokenChance | TokenLogprob) -> dict[str, Any]:
    return {
        "id": chance.id,
        "token": chance.token.decode("utf-8", "ignore"),
        "bytes": list(chance.token),
        "logprob": chance.logprob,
    }
