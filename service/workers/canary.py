"""The canary: a prompt and some tokens, computed before a worker counts as ready. On the engine's thread.

A build whose kernels do not run on this processor dies here, before anyone depends on it.
"""

from __future__ import annotations

from service.domain.errors import LoadFailed
from service.domain.generation import EmbeddingRequest, Failed, Finished, GenerationRequest, SamplingParams
from service.engine.embeddings import Embedder
from service.engine.engine import Engine
from service.llama.embedding import ranks
from service.llama.model import Model

_PROMPT_TOKENS = 48  # more than llama.cpp's thresholds between its kernels for one token and for many
_TOKENS = 4
_ID = 0  # requests from the server count from 1


def run_canary(model: Model, engine: Engine, batch_tokens: int) -> float:
    """Compute as every request will; seconds that a full batch would take at that pace. Raises LoadFailed."""
    tokens = _tokens(model, engine.context_length - _TOKENS - 1)
    engine.submit(
        _ID,
        tokens,
        GenerationRequest(
            prompt="",
            max_tokens=_TOKENS,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
            cache_prompt=False,
            speculate=False,
        ),
    )
    while not engine.is_idle:
        for _, event in engine.step():
            if isinstance(event, Failed):
                raise LoadFailed(f"The model was loaded but could not compute: {event.message}")
            if isinstance(event, Finished):
                return event.timings.prompt_seconds / len(tokens) * batch_tokens
    raise LoadFailed("The model was loaded but gave no token.")


def run_embedding_canary(model: Model, embedder: Embedder) -> None:
    """The same for a model that only embeds, or ranks."""
    request = EmbeddingRequest(inputs=("",), query="" if ranks(model) else None)
    embedder.submit(_ID, [_tokens(model, embedder.context_length)], request)
    while not embedder.is_idle:
        for _, event in embedder.step():
            if isinstance(event, Failed):
                raise LoadFailed(f"The model was loaded but could not compute: {event.message}")


def _tokens(model: Model, limit: int) -> list[int]:
    words = model.tokenize("the quick brown fox " * _PROMPT_TOKENS, add_special=True, parse_special=False)
    return words[: max(1, min(_PROMPT_TOKENS, limit))]
