"""Promises of a recipe's options on one file, before llama.cpp is asked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.catalog import TensorInfo
from service.domain.errors import QuantizationNotApplicable
from service.domain.recipes import MetadataOverride, MetadataValue, Recipe, TypeOverride
from service.gguf.files import read_header
from service.gguf.header import ArrayInfo, Header, Pair
from service.quantization.options import apply, unheeded

GLOSS = Path(__file__).resolve().parents[3] / "demo" / "gloss-5m-f16.gguf"


@pytest.fixture(scope="module")
def gloss() -> Header:
    return read_header(GLOSS)


def override(pattern: str, kind: str = "Q6_K") -> TypeOverride:
    return TypeOverride(pattern, kind)


def test_a_level_without_options_leaves_the_header_alone(gloss: Header) -> None:
    applied = apply(gloss, Recipe("Q4_K_M"))
    assert applied.header == gloss
    assert applied.recipe == Recipe("Q4_K_M")
    assert applied.chosen == {}


def test_the_first_pattern_that_finds_a_tensor_counts(gloss: Header) -> None:
    recipe = Recipe("Q4_K_M", overrides=(override(r"blk\.0\.ffn_down", "Q8_0"), override("ffn_down")))
    applied = apply(gloss, recipe)
    assert applied.chosen["blk.0.ffn_down.weight"] == "Q8_0"
    assert applied.chosen["blk.5.ffn_down.weight"] == "Q6_K"
    assert set(applied.chosen) == {f"blk.{block}.ffn_down.weight" for block in range(6)}
    # llama.cpp gets one pattern for each tensor, whatever was asked.
    for exact, (name, kind) in zip(applied.recipe.overrides, applied.chosen.items(), strict=True):
        assert [tensor.name for tensor in gloss.tensors if re.search(exact.pattern, tensor.name)] == [name]
        assert exact.type == kind


@pytest.mark.parametrize("patterns", [("nothing",), ("ffn_down", "ffn_down"), ("ffn", r"ffn_down")])
def test_a_pattern_that_finds_nothing_new_is_refused(patterns: tuple[str, ...], gloss: Header) -> None:
    with pytest.raises(QuantizationNotApplicable, match="finds no tensor"):
        apply(gloss, Recipe("Q4_K_M", overrides=tuple(override(pattern) for pattern in patterns)))


@pytest.mark.parametrize("label", ["F32", "F16", "BF16"])
def test_overrides_at_a_float_level_are_refused(label: str, gloss: Header) -> None:
    with pytest.raises(QuantizationNotApplicable, match="passes over type overrides"):
        apply(gloss, Recipe(label, overrides=(override("ffn_down"),)))


def test_an_override_that_another_option_beats_is_no_override(gloss: Header) -> None:
    types = {tensor.name: "Q4_K" for tensor in gloss.tensors} | {"token_embd.weight": "Q8_0"}
    beaten = apply(gloss, Recipe("Q4_K_M", token_embedding_type="Q8_0", overrides=(override("token_embd"),)))
    assert "no effect" in (unheeded(beaten, types, ()) or "")
    heeded = apply(gloss, Recipe("Q4_K_M", token_embedding_type="Q8_0"))
    assert unheeded(heeded, types, ()) is None
    on_norms = apply(gloss, Recipe("Q4_K_M", overrides=(override("norm"),)))
    assert "no effect" in (unheeded(on_norms, types, ()) or "")
    assert unheeded(on_norms, types, ("blk.0.attn_norm.weight",)) is None  # fell back for its shape
    shared = apply(gloss, Recipe("Q4_K_M", pure=True, output_type="Q6_K"))
    assert "token_embedding_type" in (unheeded(shared, types, ()) or "")


def test_an_output_that_the_model_does_not_have_cannot_be_kept(gloss: Header) -> None:
    with pytest.raises(QuantizationNotApplicable, match="no output"):
        apply(gloss, Recipe("Q4_K_M", keep_output=True))


def test_blocks_behind_those_left_out_move_up(gloss: Header) -> None:
    applied = apply(gloss, Recipe("Q4_K_M", prune_layers=(1, 4), overrides=(override(r"blk\.3\.ffn_down"),)))
    names = [tensor.name for tensor in applied.header.tensors]
    assert len(names) == len(gloss.tensors) - 2 * 9
    assert applied.header.whole("llama.block_count") == 4
    moved = dict(zip(names, applied.source_names, strict=True))
    assert moved["blk.0.attn_q.weight"] == "blk.0.attn_q.weight"
    assert moved["blk.1.attn_q.weight"] == "blk.2.attn_q.weight"
    assert moved["blk.3.attn_q.weight"] == "blk.5.attn_q.weight"
    assert "blk.4.attn_q.weight" not in names
    assert applied.chosen == {"blk.3.ffn_down.weight": "Q6_K"}  # by its name in the result


@pytest.mark.parametrize("layers", [(6,), tuple(range(6))])
def test_blocks_that_are_not_there_or_all_of_them_cannot_be_left_out(layers: tuple[int, ...], gloss: Header) -> None:
    with pytest.raises(QuantizationNotApplicable, match="blocks 0 to 5"):
        apply(gloss, Recipe("Q4_K_M", prune_layers=layers))


def test_models_whose_blocks_llama_cpp_counts_otherwise_keep_them(gloss: Header) -> None:
    stack = TensorInfo("enc.blk.0.attn_q.weight", (32, 32), "F16", 2048)
    with pytest.raises(QuantizationNotApplicable, match="two stacks"):
        apply(
            replace(gloss, tensors=(*gloss.tensors, stack), offsets=(*gloss.offsets, 0)),
            Recipe("Q8_0", prune_layers=(1,)),
        )
    pairs = {**gloss.pairs, "llama.block_count": Pair("u32", 7, 36)}
    with pytest.raises(QuantizationNotApplicable, match="tensors for 6"):
        apply(replace(gloss, pairs=pairs), Recipe("Q8_0", prune_layers=(1,)))
    heads = Pair("arr", ArrayInfo("u32", 6, (8,) * 6), 80)
    with pytest.raises(QuantizationNotApplicable, match="prune_layers"):
        apply(
            replace(gloss, pairs={**gloss.pairs, "llama.attention.head_count": heads}),
            Recipe("Q8_0", prune_layers=(1,)),
        )


def test_metadata_takes_the_type_of_its_key(gloss: Header) -> None:
    applied = apply(gloss, Recipe("Q8_0", metadata=(MetadataOverride("llama.rope.freq_base", 20000),)))
    assert applied.recipe.metadata == (MetadataOverride("llama.rope.freq_base", 20000.0),)
    assert isinstance(applied.recipe.metadata[0].value, float)
    assert applied.header.metadata["llama.rope.freq_base"] == 20000.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", 512.0),
        ("llama.context_length", True),
        ("general.name", 5),
        ("tokenizer.ggml.tokens", "a"),
        ("tokenizer.ggml.add_bos_token", 1),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 7),
        ("llama.embedding_length", 0),
        ("general.type", "adapter"),
    ],
)
def test_metadata_that_leaves_no_readable_model_is_refused(key: str, value: MetadataValue, gloss: Header) -> None:
    with pytest.raises(QuantizationNotApplicable):
        apply(gloss, Recipe("Q8_0", metadata=(MetadataOverride(key, value),)))
