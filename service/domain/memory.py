"""How much memory a variant takes when it is served: weights, key-value cache, compute buffers. Pure arithmetic.

The figures are resident memory of a worker whose cache is full (docs/measurements.md): llama.cpp reserves more than it
touches, and pages that nobody has touched take no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from service.domain.catalog import FileFacts, ModelShape

_F16_BYTES = 2
_F32_BYTES = 4
MICRO_BATCH_TOKENS = 512  # llama.cpp computes at most this many tokens at once (n_ubatch)
_CELL_STEP = 256  # llama.cpp rounds the cells of a context up to a multiple of this
CACHE_BLOCK = 32  # values in a block of Q8_0 and Q4_0: a head must be a multiple of it
_CONTEXT_STEP = 256
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_EMBEDDING_SEQUENCES = 64  # texts in a batch of embeddings; llama.cpp wants it to be a multiple
_RECURRENT_EMBEDDING_SEQUENCES = 8
_EMBEDDING_LOGITS_BYTES = 32 << 20
_LEAST_EMBEDDING_BATCH_TOKENS = 64
_DRAFT_ROWS = 8  # guesses of a step, together; up to 64 where a text repeats itself much

# What a worker takes beside the model: the interpreter with numpy, jinja2 and libllama's code (47 MiB after the
# imports), tables and threads of llama.cpp, allocator and buffers of the channel. Measured as what is left of the
# resident set of tests/integration/workers/test_memory.py. A new import in the worker moves it.
RUNTIME_BYTES = 61 << 20
# Texts, scores and hash tables of llama.cpp's vocabulary: 150 bytes a token without merges, 340 with them.
_VOCABULARY_ENTRY_BYTES = 220


class CacheType(StrEnum):
    """How keys or values are stored."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class CacheChoice(StrEnum):
    """How somebody wants keys or values stored."""

    AUTO = "auto"  # the first of CacheType that fits
    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def type(self) -> CacheType | None:
        """The type that was chosen; None leaves it open."""
        return None if self is CacheChoice.AUTO else CacheType(self.value)


# Bytes of a block of 32 values: a scale in F16, and 8 or 4 bits each.
_BLOCK_BYTES = {CacheType.F16: _F16_BYTES * CACHE_BLOCK, CacheType.Q8_0: 34, CacheType.Q4_0: 18}


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a worker sets up its context, beside how many tokens that holds."""

    batch_tokens: int = MICRO_BATCH_TOKENS
    cache_type_k: CacheType = CacheType.F16
    cache_type_v: CacheType = CacheType.F16
    flash_attention: bool = True


_DEFAULT = ContextOptions()


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes a worker needs, by what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int = RUNTIME_BYTES

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.runtime_bytes


def kv_cache_bytes(
    shape: ModelShape, cells: int, cache_type_k: CacheType = CacheType.F16, cache_type_v: CacheType = CacheType.F16
) -> int:
    """Keys and values for `cells` tokens: layers x kv heads x (key length + value length), each in its type.

    llama_kv_cache zeroes them when it is made, so they are resident from the start.
    """
    heads = shape.cache_heads or shape.layers * shape.kv_heads
    key = heads * shape.key_length * _BLOCK_BYTES[cache_type_k]
    value = heads * shape.value_length * _BLOCK_BYTES[cache_type_v]
    return _padded(cells) * (key + value) // CACHE_BLOCK


def state_bytes(shape: ModelShape, sequences: int) -> int:
    """Recurrent state of so many sequences: llama_memory_recurrent keeps all of it in F32, and zeroes it."""
    return shape.state_values * sequences * _F32_BYTES


def compute_bytes(shape: ModelShape, cells: int, parallel: int = 1, options: ContextOptions = _DEFAULT) -> int:
    """What the computation of one micro-batch touches: ggml-alloc's layout of the graph, work buffer, logits.

    A row of logits is in the graph for each sample and each guess; the output buffer has one for every sequence id, and
    llama.cpp zeroes it (llama_context::output_reserve), so that all of them are touched.
    """
    tokens = min(options.batch_tokens, MICRO_BATCH_TOKENS, _padded(cells))
    ids = sequence_ids(parallel, recurrent=shape.state_values > 0)
    logits = shape.vocabulary * _F32_BYTES * (parallel + _DRAFT_ROWS + ids)
    return tokens * _token_bytes(shape, _padded(cells), options.flash_attention) + logits


def embedding_bytes(shape: ModelShape, text_tokens: int, options: ContextOptions = _DEFAULT) -> int:
    """What the context for embeddings takes once it has had texts of `text_tokens`, beside one that generates.

    A model that looks back alone takes a long text in pieces and holds it in a cache of its own; one that looks ahead
    takes it whole. Every token of a batch has a row of logits, of the model that has any, and a vector.
    """
    recurrent = shape.state_values > 0
    sequences = _RECURRENT_EMBEDDING_SEQUENCES if recurrent else _EMBEDDING_SEQUENCES
    tokens = embedding_batch_tokens(shape.vocabulary, options.batch_tokens)
    cells = tokens
    if text_tokens > tokens:
        length = min(shape.context_length or text_tokens, text_tokens + text_tokens // 2)
        tokens, cells = (tokens, length + tokens) if shape.generates else (length, length)
    tokens = -(-tokens // sequences) * sequences
    logits = 2 * shape.vocabulary if shape.generates else shape.vocabulary
    rows = tokens * (logits + shape.embedding) * _F32_BYTES
    held = kv_cache_bytes(shape, cells) + state_bytes(shape, sequences) if shape.generates else 0
    return held + tokens * _token_bytes(shape, _padded(cells), options.flash_attention) + rows


def embedding_batch_tokens(vocabulary: int, batch_tokens: int) -> int:
    """Tokens of a batch of embeddings, of texts that are no longer.

    llama.cpp keeps logits for every token of it: more bytes of them than this cost memory and win no time.
    """
    bounded = _EMBEDDING_LOGITS_BYTES // (_F32_BYTES * max(1, vocabulary))
    return min(batch_tokens, max(_LEAST_EMBEDDING_BATCH_TOKENS, bounded))


def _token_bytes(shape: ModelShape, cells: int, flash_attention: bool) -> int:
    """What each token of a micro-batch touches where it attends to `cells`.

    At the widest place of a layer, three tensors of the feed-forward width live (up, gate, their product) beside four
    of the embedding's; with a narrow feed-forward it is the attention's five. In a mixture each of a token's experts
    has tensors of its own. The mask has a row of cells for each token. Without flash attention the scores of all heads
    are there as well, and once more in F16 as operand.
    """
    attention = shape.heads * (shape.key_length + shape.value_length) // 2
    inner = max(shape.feed_forward, shape.expert_width)
    layer = max(3 * inner + 4 * shape.embedding, 3 * shape.embedding + 2 * attention)
    operand = max(inner, shape.embedding, attention) * _F16_BYTES  # converted for the matrix product
    if flash_attention:
        mask, scores = _F16_BYTES * cells, 0
    else:
        mask, scores = _F32_BYTES * cells, shape.heads * cells * (_F32_BYTES + _F16_BYTES)
    return layer * _F32_BYTES + operand + mask + scores


def memory_need(facts: FileFacts, cells: int, parallel: int = 1, options: ContextOptions = _DEFAULT) -> MemoryNeed:
    """What serving a file with `cells` tokens of key-value cache and `parallel` requests takes.

    Weights count once: mapped or repacked, and the worker gives back what it has mapped and does not use. The cache
    includes recurrent state. A model that only gives embeddings has the context for those alone.
    """
    shape = facts.shape
    runtime = RUNTIME_BYTES + shape.vocabulary * _VOCABULARY_ENTRY_BYTES
    if not shape.generates:
        return MemoryNeed(facts.tensor_bytes, 0, embedding_bytes(shape, cells // parallel, options), runtime)
    state = state_bytes(shape, sequence_ids(parallel, recurrent=shape.state_values > 0))
    return MemoryNeed(
        weights_bytes=facts.tensor_bytes,
        kv_cache_bytes=kv_cache_bytes(shape, cells, options.cache_type_k, options.cache_type_v) + state,
        compute_bytes=compute_bytes(shape, cells, parallel, options),
        runtime_bytes=runtime,
    )


def sequence_ids(parallel: int, *, recurrent: bool = False) -> int:
    """How many sequences llama.cpp is told of, so that others stay in the cache beside the running ones.

    A recurrent memory reserves a state for each: of those it has fewer.
    """
    return min(_MAX_SEQUENCES, 2 * parallel + 2 if recurrent else 3 * parallel + 16)


def can_hold(shape: ModelShape, keys: CacheType, values: CacheType, *, flash_attention: bool) -> bool:
    """Whether llama.cpp can store this model's cache so: heads of whole blocks; quantized values by flash attention."""
    if keys is not CacheType.F16 and shape.key_length % CACHE_BLOCK:
        return False
    return values is CacheType.F16 or (flash_attention and shape.value_length % CACHE_BLOCK == 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """How somebody wants a variant loaded: tokens of one request, requests at once, types of the cache."""

    context_length: int
    parallel: int
    cache_type_k: CacheChoice = CacheChoice.F16
    cache_type_v: CacheChoice = CacheChoice.F16


@dataclass(frozen=True, slots=True)
class Placement:
    """How a variant is to be loaded: tokens one request may hold, how many run at once, and the context's options."""

    context_length: int
    parallel: int
    need: MemoryNeed
    options: ContextOptions = _DEFAULT

    @property
    def cells(self) -> int:
        """Tokens of key-value cache."""
        return self.context_length * self.parallel


def place(facts: FileFacts, wish: Wish, *, budget_bytes: int, options: ContextOptions = _DEFAULT) -> Placement | None:
    """The most parallel placement, of `wish.parallel` or fewer, that fits the budget; None when even one does not fit.

    Fewer requests at once come before a quantized cache: they cost time, it costs quality. A model's trained context
    bounds the wish when the file states one.
    """
    context = bounded_context(facts, wish.context_length)
    for chosen in _choices(facts.shape, wish, options):
        parallel = wish.parallel
        while parallel >= 1:
            need = memory_need(facts, context * parallel, parallel, chosen)
            if need.total_bytes <= budget_bytes:
                return Placement(context_length=context, parallel=parallel, need=need, options=chosen)
            parallel //= 2
    return None


def smallest_need(facts: FileFacts, wish: Wish, options: ContextOptions = _DEFAULT) -> MemoryNeed:
    """What the smallest placement takes that would still be what is wished: one request, the smallest cache."""
    context = bounded_context(facts, wish.context_length)
    needs = [memory_need(facts, context, 1, chosen) for chosen in _choices(facts.shape, wish, options)]
    return min(needs, key=lambda need: need.total_bytes)


def largest_context(
    facts: FileFacts, budget_bytes: int, wish: Wish | None = None, options: ContextOptions = _DEFAULT
) -> int:
    """The largest context one request could have within the budget, in steps of 256 tokens; 0 when none fits."""
    wish = wish or Wish(context_length=_CONTEXT_STEP, parallel=1)
    low, high = 0, max(facts.shape.context_length, _CONTEXT_STEP) // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        asked = replace(wish, context_length=middle * _CONTEXT_STEP)
        if smallest_need(facts, asked, options).total_bytes <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low * _CONTEXT_STEP


def bounded_context(facts: FileFacts, context_length: int) -> int:
    """`context_length`, or what the model was trained for when that is less."""
    trained = facts.shape.context_length
    return min(context_length, trained) if trained else context_length


def _choices(shape: ModelShape, wish: Wish, options: ContextOptions) -> Iterator[ContextOptions]:
    """The options to try, best first. A type that this model cannot have becomes F16."""
    seen = set()
    for automatic in CacheType:
        keys, values = wish.cache_type_k.type or automatic, wish.cache_type_v.type or automatic
        flash = options.flash_attention
        if not can_hold(shape, keys, CacheType.F16, flash_attention=flash):
            keys = CacheType.F16
        if not can_hold(shape, CacheType.F16, values, flash_attention=flash):
            values = CacheType.F16
        if (keys, values) not in seen:
            seen.add((keys, values))
            yield replace(options, cache_type_k=keys, cache_type_v=values)


def _padded(cells: int) -> int:
    return -(-cells // _CELL_STEP) * _CELL_STEP
