"""Promises of the memory arithmetic: it adds up, it never says yes to more than the budget, it says what would fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import FileFacts, ModelShape
from service.domain.memory import kv_cache_bytes, largest_context, memory_need, place

LLAMA_7B = FileFacts(
    quantization="Q4_K_M",
    parameters=6_738_415_616,
    bits_per_weight=4.84,
    tensor_bytes=4_080_000_000,
    shape=ModelShape("llama", 32, 4096, 32, 32, 128, 128, 11008, 32000, 0, 4096),
)
GIB = 1 << 30


def test_the_cache_of_a_7b_model_at_4096_tokens_is_the_known_2_gib() -> None:
    assert kv_cache_bytes(LLAMA_7B.shape, 4096) == 2 * GIB


def test_grouped_query_attention_takes_its_share_of_the_cache() -> None:
    grouped = ModelShape("llama", 32, 4096, 32, 8, 128, 128, 14336, 128256, 0, 8192)
    assert kv_cache_bytes(grouped, 8192) == GIB


@given(st.integers(64, 1 << 17), st.integers(1, 64), st.integers(1, 1 << 40))
def test_a_placement_never_exceeds_the_budget_or_the_wish(context: int, parallel: int, budget: int) -> None:
    placement = place(LLAMA_7B, context_length=context, parallel=parallel, budget_bytes=budget)
    if placement is None:
        assert memory_need(LLAMA_7B, min(context, 4096)).total_bytes > budget
    else:
        assert placement.need.total_bytes <= budget
        assert placement.context_length == min(context, 4096)
        assert 1 <= placement.parallel <= parallel


@given(st.integers(1, 40 * GIB))
def test_the_largest_context_fits_and_the_next_one_does_not(budget: int) -> None:
    context = largest_context(LLAMA_7B, budget)
    assert 0 <= context <= 4096
    if context:
        assert memory_need(LLAMA_7B, context).total_bytes <= budget
    if context < 4096:
        assert memory_need(LLAMA_7B, context + 256).total_bytes > budget


def test_fewer_run_at_once_before_a_model_is_refused() -> None:
    four = memory_need(LLAMA_7B, 4 * 4096).total_bytes
    tight = place(LLAMA_7B, context_length=4096, parallel=4, budget_bytes=four - 1)
    assert tight is not None
    assert tight.parallel == 2
