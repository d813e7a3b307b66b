"""What a variant is loaded with: the server's defaults, what was asked for it, and what to say when it does not fit.

Pure: the pool acts on it. Runs in the server process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.domain.catalog import FileFacts, Variant
from service.domain.errors import DoesNotFit, InvalidParameter
from service.domain.generation import EmbeddingRequest
from service.domain.memory import (
    CACHE_BLOCK,
    CacheChoice,
    CacheType,
    ContextOptions,
    MemoryNeed,
    Placement,
    Wish,
    bounded_context,
    can_hold,
    embedding_bytes,
    largest_context,
    memory_need,
    place,
    smallest_need,
)
from service.workers.ladder import Rung, flags
from service.workers.options import PoolOptions


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the operator asks for one variant; None leaves it to the server's settings."""

    context_length: int | None = None
    parallel: int | None = None
    cache_type_k: CacheChoice | None = None
    cache_type_v: CacheChoice | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """Another level of the same model, for advice: stored, or one that could be made."""

    name: str
    facts: FileFacts
    stored: bool
    recommended: bool
    note: str = ""  # what making it asks for, beyond asking


class Sizes:
    """What variants are loaded with on this server, and what that takes."""

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._default = Wish(options.context_length, options.parallel, options.cache_type_k, options.cache_type_v)

    def context_options(self, rung: Rung) -> ContextOptions:
        """How contexts are set up on a rung of the launch ladder."""
        worker = self._options.worker
        flash_attention = self._options.flash_attention and flags(rung, worker.gpu_layers).flash_attention
        return ContextOptions(batch_tokens=worker.batch_tokens, flash_attention=flash_attention)

    def wish(self, variant: Variant, asked: LoadOptions, context_length: int = 0) -> Wish:
        """What a variant is loaded with, with at least `context_length` tokens for each request if it has them."""
        wish = wish_for(self._default, asked, context_length)
        return replace(wish, context_length=bounded_context(variant.facts, wish.context_length))

    def need(self, variant: Variant, context: int | None = None) -> MemoryNeed:
        """What serving one request of `context` tokens takes; without `context`, what this server would reserve.

        When it does not fit, the least that it would take.
        """
        return self._need(variant, self._wish_for_one(context), self._options.memory_budget_bytes)

    def room_for(self, variant: Variant, context: int, budget_bytes: int) -> tuple[MemoryNeed, int]:
        """What one request of `context` tokens takes, and the largest context within the budget; for advice."""
        wish = self._wish_for_one(context)
        largest = largest_context(variant.facts, budget_bytes, wish, self.context_options(Rung.FULL))
        return self._need(variant, wish, budget_bytes), largest

    def embedding_bytes(self, variant: Variant, request: EmbeddingRequest, rung: Rung) -> int:
        """What a worker takes for the vectors of these texts beside what it was loaded with; an upper bound."""
        shape = variant.facts.shape
        if not shape.generates:
            return 0  # it was loaded for nothing else
        longest = max((len(text) for text in request.inputs), default=0) + len(request.query or "")
        tokens = min(longest, self._options.context_length, shape.context_length or longest)
        return embedding_bytes(shape, tokens, self.context_options(rung))

    def _wish_for_one(self, context: int | None) -> Wish:
        return self._default if context is None else replace(self._default, context_length=context, parallel=1)

    def _need(self, variant: Variant, wish: Wish, budget_bytes: int) -> MemoryNeed:
        options = self.context_options(Rung.FULL)
        placement = place(variant.facts, wish, budget_bytes=budget_bytes, options=options)
        return placement.need if placement is not None else smallest_need(variant.facts, wish, options)


def wish_for(default: Wish, asked: LoadOptions, context_length: int = 0) -> Wish:
    """The server's wish, what was asked instead, and at least `context_length` tokens for each request."""
    return Wish(
        context_length=max(asked.context_length or default.context_length, context_length),
        parallel=asked.parallel or default.parallel,
        cache_type_k=asked.cache_type_k or default.cache_type_k,
        cache_type_v=asked.cache_type_v or default.cache_type_v,
    )


def check_context(variant: Variant, context_length: int | None) -> None:
    """Raise InvalidParameter for more context than the model was trained for."""
    trained = variant.facts.shape.context_length
    if trained and context_length is not None and context_length > trained:
        raise InvalidParameter(
            f"{variant.name} was trained for a context of {trained} tokens; ask for that or less.",
            param="context_length",
        )


def check_asked(variant: Variant, asked: LoadOptions, *, flash_attention: bool) -> None:
    """Raise InvalidParameter for what this model cannot be loaded with, whatever the memory."""
    check_context(variant, asked.context_length)
    shape = variant.facts.shape
    for name, choice, length in (
        ("cache_type_k", asked.cache_type_k, shape.key_length),
        ("cache_type_v", asked.cache_type_v, shape.value_length),
    ):
        if choice is None or choice.type in (None, CacheType.F16):
            continue
        if length % CACHE_BLOCK:
            raise InvalidParameter(
                f"{variant.name} has heads of {length} values, and {choice} stores {CACHE_BLOCK} at a time; use f16.",
                param=name,
            )
        if name == "cache_type_v" and not can_hold(
            shape, CacheType.F16, CacheType(choice), flash_attention=flash_attention
        ):
            raise InvalidParameter(
                f"Values in {choice} need flash attention, which {variant.name} is loaded without; use f16.", param=name
            )


def without_flash_attention(facts: FileFacts, placement: Placement) -> Placement:
    """The placement of a worker that came up without flash attention: values are F16, and the scores take memory."""
    options = replace(placement.options, flash_attention=False, cache_type_v=CacheType.F16)
    return replace(placement, options=options, need=memory_need(facts, placement.cells, placement.parallel, options))


def refusal(
    variant: Variant, wish: Wish, budget_bytes: int, options: ContextOptions, levels: Sequence[Level]
) -> DoesNotFit:
    """The error for a wish that no placement fulfils: the figures, and what would fit.

    `levels` are smaller ones of the same model; of those that fit, recommended ones are named first, then the largest.
    """
    need = smallest_need(variant.facts, wish, options)
    context = min(wish.context_length, variant.facts.shape.context_length or wish.context_length)
    largest = largest_context(variant.facts, budget_bytes, wish, options)
    figures = (
        f"{variant.name} needs {need.total_bytes} bytes at a context of {context} tokens (weights "
        f"{need.weights_bytes}, KV cache {need.kv_cache_bytes}, compute {need.compute_bytes}, runtime "
        f"{need.runtime_bytes}), and the memory budget is {budget_bytes} bytes."
    )
    if largest:
        remedy = f"The largest context that fits is {largest} tokens (QUANTRY_CONTEXT_LENGTH)"
    else:
        remedy = "No context fits"
    smaller_cache = replace(wish, cache_type_k=CacheChoice.AUTO, cache_type_v=CacheChoice.AUTO)
    found = place(variant.facts, smaller_cache, budget_bytes=budget_bytes, options=options)
    fitting = [at for at in levels if place(at.facts, wish, budget_bytes=budget_bytes, options=options)]
    offers = []
    if found is not None:
        types = f"{found.options.cache_type_k}/{found.options.cache_type_v}"
        offers.append(f"a cache of {types} (QUANTRY_CACHE_TYPE_K, QUANTRY_CACHE_TYPE_V)")
    for stored in (True, False):
        kind = [level for level in fitting if level.stored is stored]
        if kind:
            best = max(kind, key=lambda level: (level.recommended, level.facts.tensor_bytes))
            offers.append(f"{best.name} ({'stored' if stored else 'can be made' + best.note})")
    if offers:
        remedy += f"; at {context}, {' or '.join(offers)} would fit"
    return DoesNotFit(f"{figures} {remedy}. Or raise QUANTRY_MEMORY_BUDGET_BYTES.")
