"""How much memory a variant takes when it is served: weights, key-value cache, compute buffers. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from service.domain.catalog import FileFacts, ModelShape

_F16_BYTES = 2
_F32_BYTES = 4
_MICRO_BATCH_TOKENS = 512  # llama.cpp computes at most this many tokens at once (n_ubatch)
_RUNTIME_BYTES = 56 * 1024 * 1024  # interpreter, numpy and llama.cpp's own tables in a worker, measured


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes a worker needs, by what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int = _RUNTIME_BYTES

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.runtime_bytes


def kv_cache_bytes(shape: ModelShape, cells: int) -> int:
    """Keys and values in F16 for `cells` tokens: layers x kv heads x (key + value length) x 2 bytes each."""
    return cells * shape.layers * shape.kv_heads * (shape.key_length + shape.value_length) * _F16_BYTES


def compute_bytes(shape: ModelShape, cells: int) -> int:
    """Activations of one micro-batch, after llama.cpp's graph allocator (it reuses buffers across layers).

    The largest live set is either the feed-forward pair with the residual stream, or the logits; the attention mask
    takes cells x micro-batch in F16 or F32.
    """
    feed_forward = _MICRO_BATCH_TOKENS * (2 * shape.feed_forward + 3 * shape.embedding) * _F32_BYTES
    logits = _MICRO_BATCH_TOKENS * (shape.vocabulary + shape.embedding) * _F32_BYTES
    mask = _MICRO_BATCH_TOKENS * cells * _F32_BYTES
    return max(feed_forward, logits) + mask


def memory_need(facts: FileFacts, cells: int) -> MemoryNeed:
    """What serving a file with `cells` tokens of key-value cache takes."""
    return MemoryNeed(
        weights_bytes=facts.tensor_bytes,
        kv_cache_bytes=kv_cache_bytes(facts.shape, cells),
        compute_bytes=compute_bytes(facts.shape, cells),
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """How a variant is to be loaded: tokens one request may hold, and how many run at once."""

    context_length: int
    parallel: int
    need: MemoryNeed

    @property
    def cells(self) -> int:
        """Tokens of key-value cache."""
        return self.context_length * self.parallel


def place(facts: FileFacts, *, context_length: int, parallel: int, budget_bytes: int) -> Placement | None:
    """The most parallel placement, of `parallel` or fewer, that fits the budget; None when even one does not fit.

    A model's trained context bounds `context_length` when the file states one.
    """
    trained = facts.shape.context_length
    context = min(context_length, trained) if trained else context_length
    while parallel >= 1:
        need = memory_need(facts, context * parallel)
        if need.total_bytes <= budget_bytes:
            return Placement(context_length=context, parallel=parallel, need=need)
        parallel //= 2
    return None


def largest_context(facts: FileFacts, budget_bytes: int) -> int:
    """The largest context one request could have within the budget, in steps of 256 tokens; 0 when none fits."""
    low, high = 0, max(facts.shape.context_length, 256) // 256
    while low < high:
        middle = (low + high + 1) // 2
        if memory_need(facts, middle * 256).total_bytes <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low * 256
