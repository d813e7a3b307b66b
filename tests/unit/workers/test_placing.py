"""Promises of placing: defaults give way to what was asked, and a refusal says what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.domain.catalog import FileFacts, Lineage, ModelShape, Variant
from service.domain.errors import InvalidParameter
from service.domain.memory import CacheChoice, CacheType, ContextOptions, Placement, Wish, memory_need, place
from service.domain.names import parse_ref
from service.workers.placing import (
    Level,
    LoadOptions,
    check_asked,
    check_context,
    refusal,
    wish_for,
    without_flash_attention,
)

SHAPE = ModelShape("llama", 32, 4096, 32, 32, 128, 128, 11008, 32000, 0, 4096)
FACTS = FileFacts("F16", 6_738_415_616, 16.0, 13_476_000_000, SHAPE)
VARIANT = Variant(
    1, parse_ref("big").key, "", "F16", "sha256:" + "0" * 64, 1, FACTS, Lineage("imported"), "2026-01-01T00:00:00Z"
)
OPTIONS = ContextOptions()
WISH = Wish(4096, 4)
Q8_0 = LoadOptions(cache_type_k=CacheChoice.Q8_0, cache_type_v=CacheChoice.Q8_0)


def level(name: str, tensor_bytes: int, *, stored: bool, recommended: bool = False, note: str = "") -> Level:
    return Level(f"big:{name}", replace(FACTS, quantization=name, tensor_bytes=tensor_bytes), stored, recommended, note)


def need(tensor_bytes: int, context: int = 4096) -> int:
    return memory_need(replace(FACTS, tensor_bytes=tensor_bytes), context).total_bytes


def test_what_is_asked_comes_before_the_defaults_and_a_request_may_ask_for_more() -> None:
    assert wish_for(WISH, LoadOptions()) == WISH
    assert wish_for(WISH, LoadOptions(context_length=512, parallel=1)) == Wish(512, 1)
    assert wish_for(WISH, LoadOptions(context_length=512), 1024).context_length == 1024
    assert wish_for(WISH, Q8_0) == Wish(4096, 4, CacheChoice.Q8_0, CacheChoice.Q8_0)


def test_more_context_than_the_model_has_is_refused_with_its_limit() -> None:
    check_context(VARIANT, 4096)
    with pytest.raises(InvalidParameter, match=r"4096 tokens") as caught:
        check_context(VARIANT, 4097)
    assert caught.value.param == "context_length"


def test_a_cache_that_the_model_cannot_have_is_refused() -> None:
    check_asked(VARIANT, Q8_0, flash_attention=True)
    with pytest.raises(InvalidParameter, match="flash attention") as caught:
        check_asked(VARIANT, Q8_0, flash_attention=False)
    assert caught.value.param == "cache_type_v"
    odd = replace(VARIANT, facts=replace(FACTS, shape=replace(SHAPE, key_length=80)))
    with pytest.raises(InvalidParameter, match="heads of 80 values") as caught:
        check_asked(odd, Q8_0, flash_attention=True)
    assert caught.value.param == "cache_type_k"


def test_a_refusal_has_the_figures_by_part() -> None:
    parts = memory_need(FACTS, 4096)
    message = refusal(VARIANT, WISH, 1 << 30, OPTIONS, ()).message
    for figure in (parts.total_bytes, parts.weights_bytes, parts.kv_cache_bytes, parts.compute_bytes, 1 << 30):
        assert str(figure) in message
    assert "No context fits" in message
    assert "QUANTRY_MEMORY_BUDGET_BYTES" in message


def test_a_refusal_names_the_largest_context_that_fits() -> None:
    message = refusal(VARIANT, WISH, need(FACTS.tensor_bytes, 2048), OPTIONS, ()).message
    assert "The largest context that fits is 2048 tokens (QUANTRY_CONTEXT_LENGTH)" in message


def test_a_refusal_names_the_smaller_cache_that_fits() -> None:
    quantized = ContextOptions(cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    budget = memory_need(FACTS, 4096, 1, quantized).total_bytes
    message = refusal(VARIANT, WISH, budget, OPTIONS, ()).message
    assert "a cache of q8_0/q8_0 (QUANTRY_CACHE_TYPE_K, QUANTRY_CACHE_TYPE_V) would fit" in message


def test_a_refusal_names_a_stored_level_and_one_that_could_be_made_recommended_ones_first() -> None:
    levels = (
        level("Q8_0", 7_000_000_000, stored=True, recommended=True),
        level("Q5_0", 4_500_000_000, stored=True),
        level("Q4_K_M", 4_000_000_000, stored=True, recommended=True),
        level("Q4_K_S", 3_900_000_000, stored=False),
        level("Q3_K_M", 3_300_000_000, stored=False, recommended=True, note=" with allow_requantize"),
    )
    message = refusal(VARIANT, WISH, need(4_600_000_000), OPTIONS, levels).message
    assert "at 4096, big:Q4_K_M (stored) or big:Q3_K_M (can be made with allow_requantize) would fit." in message


def test_a_level_that_does_not_fit_either_is_not_named() -> None:
    levels = (level("Q8_0", 7_000_000_000, stored=True, recommended=True),)
    assert "Q8_0" not in refusal(VARIANT, WISH, 5_000_000_000, OPTIONS, levels).message


def test_a_worker_that_came_up_without_flash_attention_is_counted_as_such() -> None:
    placement = place(FACTS, Wish(4096, 2, CacheChoice.Q8_0, CacheChoice.Q8_0), budget_bytes=1 << 40)
    assert isinstance(placement, Placement)
    fallen = without_flash_attention(FACTS, placement)
    assert (fallen.options.cache_type_k, fallen.options.cache_type_v) == (CacheType.Q8_0, CacheType.F16)
    assert fallen.need.total_bytes > placement.need.total_bytes
    assert (
        place(
            FACTS,
            Wish(4096, 2, CacheChoice.Q8_0, CacheChoice.Q8_0),
            budget_bytes=1 << 40,
            options=ContextOptions(flash_attention=False),
        )
        == fallen
    )
