"""How much work a step is, in bytes to write or what takes as long: for progress, not for promises. Server process.

A token through a model costs two operations a weight; a weight quantized costs some thousands, with its search for
scales. Both run on all threads, so their ratio holds from machine to machine.
"""

from __future__ import annotations

from service.domain.catalog import Variant
from service.jobs.assignments.bench import Bench

_TOKENS_PER_WEIGHT = 5000
_BYTES_PER_TOKEN = 4  # English text


def text_tokens(bench: Bench, digest: str, window: int, chunks: int | None) -> int:
    """About how many tokens of that text will be computed."""
    if not bench.stores.blobs.has(digest):
        return 0
    tokens = bench.stores.blobs.size(digest) // _BYTES_PER_TOKEN
    return tokens if chunks is None else min(tokens, chunks * window)


def text_weight(bench: Bench, variant: Variant, digest: str, window: int, chunks: int | None) -> int:
    """The work of one pass of a text through a model."""
    return tokens_weight(variant, text_tokens(bench, digest, window, chunks))


def tokens_weight(variant: Variant, tokens: int) -> int:
    """The work of so many tokens."""
    return variant.facts.parameters * tokens // _TOKENS_PER_WEIGHT
