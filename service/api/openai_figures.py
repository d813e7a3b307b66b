"""Tokens in OpenAI's words, and what tells one backend from another."""

from __future__ import annotations

from typing import Any

from service.domain.catalog import Variant
from service.domain.generation import Usage


def fingerprint(variant: Variant) -> str:
    """Clients compare it to see whether the backend has changed; here it is the file that answered."""
    return f"fp_{variant.digest.removeprefix('sha256:')[:12]}"


def usage_shape(usage: Usage) -> dict[str, Any]:
    """`usage` of the chat route and of the one for raw text."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            # OpenAI's words for tokens guessed ahead; unlike there, the wrong ones are not among completion_tokens.
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.draft_tokens - usage.accepted_tokens,
        },
    }
