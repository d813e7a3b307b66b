"""Promises of a plan that need no llama.cpp: what follows from the types of the tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.recipes import Recipe
from service.gguf.files import read_header
from service.gguf.header import Header, Pair
from service.quantization.layout import file_bytes, level_plan
from service.quantization.log import DryRun
from service.quantization.options import Applied, apply

GLOSS = Path(__file__).resolve().parents[3] / "demo" / "gloss-5m-f16.gguf"


@pytest.fixture(scope="module")
def gloss() -> Header:
    return read_header(GLOSS)


def applied(header: Header, label: str) -> Applied:
    """A level without options."""
    return apply(header, Recipe(label))


def types(header: Header, matrix: str, shared: str) -> dict[str, str]:
    """All matrices as one type and the embedding as another."""
    wanted = {tensor.name: matrix if len(tensor.shape) > 1 else "F32" for tensor in header.tensors}
    return wanted | {"token_embd.weight": shared}


def test_a_file_copied_tensor_by_tensor_keeps_its_size(gloss: Header) -> None:
    same = {tensor.name: tensor.type for tensor in gloss.tensors}
    assert file_bytes(gloss, same) == gloss.file_size


def test_keys_that_the_quantizer_sets_or_drops_do_not_change_the_size(gloss: Header) -> None:
    same = {tensor.name: tensor.type for tensor in gloss.tensors}
    pairs = dict(gloss.pairs)
    for key in ("general.file_type", "general.quantization_version"):
        del pairs[key]
    pairs["split.count"] = Pair("u16", 1, 8 + 11 + 4 + 2)
    assert file_bytes(replace(gloss, pairs=pairs), same) == gloss.file_size
    pairs["x" * 30] = Pair("str", "y" * 10, 8 + 30 + 4 + 8 + 10)
    assert file_bytes(replace(gloss, pairs=pairs), same) == gloss.file_size + 64


def test_a_plan_counts_types_and_bits(gloss: Header) -> None:
    run = DryRun(types=types(gloss, "Q4_K", "Q6_K"), fallbacks=(), needs_imatrix=True)
    plan = level_plan(applied(gloss, "Q4_K_S"), run)
    assert plan.types == (("Q4_K", 42), ("F32", 13), ("Q6_K", 1))
    assert 4.5 < plan.bits_per_weight < 5.0
    assert plan.needs_imatrix
    assert plan.error is None
    assert plan.size_bytes % 32 == 0


def test_a_level_without_a_tensor_of_its_type_is_refused_with_the_reason(gloss: Header) -> None:
    run = DryRun(types=types(gloss, "Q8_0", "Q8_0"), fallbacks=(), needs_imatrix=False)
    refused = level_plan(applied(gloss, "MXFP4_MOE"), run)
    assert refused.error is not None
    assert "mixture-of-experts" in refused.error
    assert level_plan(applied(gloss, "Q6_K"), run).error is not None
    assert level_plan(applied(gloss, "Q8_0"), run).error is None


def test_shapes_explain_a_level_whose_type_no_tensor_gets(gloss: Header) -> None:
    run = DryRun(types=types(gloss, "Q5_0", "Q8_0"), fallbacks=("blk.0.attn_q.weight",), needs_imatrix=False)
    plan = level_plan(applied(gloss, "Q4_K_M"), run)
    assert plan.error is None
    assert plan.fallbacks == ("blk.0.attn_q.weight",)
    assert level_plan(applied(gloss, "MXFP4_MOE"), run).error is not None


def test_the_silent_fallback_of_the_output_tensor_is_named(gloss: Header) -> None:
    narrow = tuple(
        replace(tensor, shape=(320, 4096)) if tensor.name == "token_embd.weight" else tensor for tensor in gloss.tensors
    )
    run = DryRun(types=types(gloss, "Q4_K", "Q8_0"), fallbacks=(), needs_imatrix=False)
    assert level_plan(applied(replace(gloss, tensors=narrow), "Q4_K_M"), run).fallbacks == ("token_embd.weight",)
    assert level_plan(applied(gloss, "Q4_K_M"), run).fallbacks == ()
