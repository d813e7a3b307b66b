"""Times in llama-server's words, for every dialect whose clients look for them."""

from __future__ import annotations

from typing import Any

from service.domain.generation import Timings, Usage


def timings_shape(usage: Usage, timings: Timings) -> dict[str, Any]:
    """llama-server's object of that name: milliseconds, and 0 for a figure that there is not."""
    computed = usage.prompt_tokens - usage.cached_tokens
    # Its clock of a generation starts at the first token as well.
    timed = max(usage.completion_tokens - 1, 0)
    prompt_ms, predicted_ms = timings.prompt_seconds * 1e3, timings.generation_seconds * 1e3
    found = {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, computed),
        "prompt_per_second": _ratio(computed * 1e3, prompt_ms),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, timed),
        "predicted_per_second": _ratio(timed * 1e3, predicted_ms),
    }
    if usage.draft_tokens:
        found |= {"draft_n": usage.draft_tokens, "draft_n_accepted": usage.accepted_tokens}
    return found


def _ratio(amount: float, by: float) -> float:
    return amount / by if by > 0 else 0.0
