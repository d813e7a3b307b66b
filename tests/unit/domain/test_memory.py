"""Promises of the memory arithmetic: it adds up, it never says yes to more than the budget, it says what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import FileFacts, ModelShape
from service.domain.memory import (
    CacheChoice,
    CacheType,
    ContextOptions,
    Wish,
    compute_bytes,
    kv_cache_bytes,
    largest_context,
    memory_need,
    place,
    smallest_need,
)

LLAMA_7B = FileFacts(
    quantization="Q4_K_M",
    parameters=6_738_415_616,
    bits_per_weight=4.84,
    tensor_bytes=4_080_000_000,
    shape=ModelShape("llama", 32, 4096, 32, 32, 128, 128, 11008, 32000, 0, 4096),
)
ODD_HEADS = replace(LLAMA_7B, shape=replace(LLAMA_7B.shape, key_length=80, value_length=80))
GIB = 1 << 30

CHOICES = st.sampled_from(CacheChoice)
WISHES = st.builds(Wish, st.integers(64, 1 << 17), st.integers(1, 256), CHOICES, CHOICES)
OPTIONS = st.builds(
    ContextOptions,
    batch_tokens=st.integers(16, 16384),
    flash_attention=st.booleans(),
)
MODELS = st.sampled_from([LLAMA_7B, ODD_HEADS])
BUDGETS = st.integers(1, 80 * GIB)


def test_the_cache_of_a_7b_model_at_4096_tokens_is_the_known_2_gib() -> None:
    assert kv_cache_bytes(LLAMA_7B.shape, 4096) == 2 * GIB


def test_grouped_query_attention_takes_its_share_of_the_cache() -> None:
    grouped = ModelShape("llama", 32, 4096, 32, 8, 128, 128, 14336, 128256, 0, 8192)
    assert kv_cache_bytes(grouped, 8192) == GIB


@pytest.mark.parametrize(("kind", "bits"), [(CacheType.F16, 16), (CacheType.Q8_0, 8.5), (CacheType.Q4_0, 4.5)])
def test_each_type_of_cache_takes_its_bits(kind: CacheType, bits: float) -> None:
    whole = kv_cache_bytes(LLAMA_7B.shape, 4096, kind, kind)
    assert whole == 2 * GIB * bits / 16
    keys_alone = kv_cache_bytes(LLAMA_7B.shape, 4096, kind, CacheType.F16)
    assert keys_alone == (whole + 2 * GIB) / 2


def test_the_cache_is_counted_as_llama_cpp_rounds_it() -> None:
    assert kv_cache_bytes(LLAMA_7B.shape, 1) == kv_cache_bytes(LLAMA_7B.shape, 256)
    assert kv_cache_bytes(LLAMA_7B.shape, 257) == kv_cache_bytes(LLAMA_7B.shape, 512)


def test_without_flash_attention_the_scores_of_all_heads_take_memory() -> None:
    scores = compute_bytes(LLAMA_7B.shape, 4096, 1, ContextOptions(flash_attention=False))
    assert scores - compute_bytes(LLAMA_7B.shape, 4096, 1) >= 512 * 4096 * 32 * 4


def test_every_sequence_id_has_a_row_of_logits() -> None:
    row = LLAMA_7B.shape.vocabulary * 4
    alone = compute_bytes(LLAMA_7B.shape, 4096, 1)
    assert compute_bytes(LLAMA_7B.shape, 4096, 9) - alone == 4 * 8 * row
    assert compute_bytes(LLAMA_7B.shape, 4096, 256) - compute_bytes(LLAMA_7B.shape, 4096, 255) == row


def test_a_small_batch_computes_in_less() -> None:
    assert compute_bytes(LLAMA_7B.shape, 4096, 1, ContextOptions(batch_tokens=64)) < compute_bytes(
        LLAMA_7B.shape, 4096, 1
    )


@given(MODELS, WISHES, OPTIONS, BUDGETS)
def test_a_placement_never_exceeds_the_budget_or_the_wish(
    model: FileFacts, wish: Wish, options: ContextOptions, budget: int
) -> None:
    placement = place(model, wish, budget_bytes=budget, options=options)
    if placement is None:
        assert smallest_need(model, wish, options).total_bytes > budget
        return
    assert placement.need.total_bytes <= budget
    assert placement.need == memory_need(model, placement.cells, placement.parallel, placement.options)
    assert placement.context_length == min(wish.context_length, 4096)
    assert 1 <= placement.parallel <= wish.parallel
    for wanted, kind in (
        (wish.cache_type_k, placement.options.cache_type_k),
        (wish.cache_type_v, placement.options.cache_type_v),
    ):
        assert wanted.type in (None, kind) or kind is CacheType.F16
    assert placement.options.flash_attention is options.flash_attention
    if not options.flash_attention:
        assert placement.options.cache_type_v is CacheType.F16


_COSTS = {CacheType.F16: 0, CacheType.Q8_0: 1, CacheType.Q4_0: 2}


@given(MODELS, WISHES, OPTIONS, BUDGETS, BUDGETS)
def test_a_larger_budget_never_places_worse(
    model: FileFacts, wish: Wish, options: ContextOptions, one: int, other: int
) -> None:
    small = place(model, wish, budget_bytes=min(one, other), options=options)
    large = place(model, wish, budget_bytes=max(one, other), options=options)
    if small is None:
        return
    assert large is not None
    costs = [(_COSTS[at.options.cache_type_k], _COSTS[at.options.cache_type_v], -at.parallel) for at in (large, small)]
    assert costs == sorted(costs)


@given(BUDGETS, OPTIONS)
def test_the_largest_context_fits_and_the_next_one_does_not(budget: int, options: ContextOptions) -> None:
    context = largest_context(LLAMA_7B, budget, options=options)
    assert 0 <= context <= 4096
    if context:
        assert memory_need(LLAMA_7B, context, 1, options).total_bytes <= budget
    if context < 4096:
        assert memory_need(LLAMA_7B, context + 256, 1, options).total_bytes > budget


def test_fewer_run_at_once_before_a_model_is_refused() -> None:
    four = memory_need(LLAMA_7B, 4 * 4096, 4).total_bytes
    tight = place(LLAMA_7B, Wish(4096, 4), budget_bytes=four - 1)
    assert tight is not None
    assert tight.parallel == 2


AUTO = Wish(4096, 4, CacheChoice.AUTO, CacheChoice.AUTO)


@pytest.mark.parametrize("kind", CacheType)
def test_an_automatic_cache_is_the_best_that_fits(kind: CacheType) -> None:
    just_enough = memory_need(LLAMA_7B, 4096, 1, ContextOptions(cache_type_k=kind, cache_type_v=kind)).total_bytes
    placement = place(LLAMA_7B, AUTO, budget_bytes=just_enough)
    assert placement is not None
    assert (placement.options.cache_type_k, placement.options.cache_type_v) == (kind, kind)


def test_a_model_whose_heads_are_no_whole_blocks_keeps_f16() -> None:
    placement = place(ODD_HEADS, Wish(4096, 1, CacheChoice.Q8_0, CacheChoice.Q4_0), budget_bytes=80 * GIB)
    assert placement is not None
    assert (placement.options.cache_type_k, placement.options.cache_type_v) == (CacheType.F16, CacheType.F16)
