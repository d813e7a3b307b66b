"""Promises of `facts`: what a file says of itself is checked against its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.domain.catalog import ModelShape
from service.gguf.files import facts, read_header

Write = Callable[[Any], Path]
F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, MXFP4 = 0, 1, 2, 8, 12, 14, 39
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q6_K": 18, "MXFP4_MOE": 38}


def label(tiny: Any, write: Write, file_type: int | None, *inner: int, embedding: int = F16) -> str:
    tensors = [("token_embd.weight", (256, 64), embedding), ("output_norm.weight", (256,), F32)]
    tensors += [(f"blk.{index}.ffn_up.weight", (256, 32), kind) for index, kind in enumerate(inner)]
    file = tiny.with_(tensors=tuple(tensors)).without("general.file_type")
    if file_type is not None:
        file = file.with_pair("general.file_type", "u32", file_type)
    return facts(read_header(write(file))).quantization


def test_the_facts_of_a_small_model(tiny: Any, write: Write) -> None:
    found = facts(read_header(write(tiny)))
    assert found.quantization == "F16"
    assert found.parameters == 32 * 8 + 32 * 32 + 32 * 16 + 32
    assert found.tensor_bytes == 512 + 2048 + 1024 + 128
    assert found.bits_per_weight == pytest.approx(found.tensor_bytes * 8 / found.parameters)
    assert found.general_name == "Tiny model"
    assert found.license == "apache-2.0"
    assert found.has_chat_template
    assert not found.quantized_tensors
    assert found.types == (("F16", 3), ("F32", 1))
    assert found.shape == ModelShape(
        architecture="llama",
        layers=1,
        embedding=32,
        heads=4,
        kv_heads=2,
        key_length=8,
        value_length=8,
        feed_forward=64,
        vocabulary=8,
        context_length=64,
        cache_heads=2,
    )


def test_per_layer_numbers_are_summed_up(tiny: Any, write: Write) -> None:
    file = (
        tiny.with_pair("llama.block_count", "u32", 3)
        .with_pair("llama.attention.head_count_kv", "[i32", [2, 0, 1])
        .with_pair("llama.feed_forward_length", "[u32", [64, 0, 96])
        .with_pair("llama.attention.key_length", "u32", 16)
        .with_pair("llama.attention.value_length", "u32", 12)
        .with_pair("llama.attention.sliding_window", "u32", 40)
    )
    shape = facts(read_header(write(file))).shape
    assert (shape.layers, shape.kv_heads, shape.feed_forward) == (3, 1, 96)
    assert (shape.key_length, shape.value_length, shape.sliding_window) == (16, 12, 40)


def test_the_vocabulary_is_counted_where_there_is_no_tokenizer(tiny: Any, write: Write) -> None:
    bare = tiny.with_(pairs=tuple(pair for pair in tiny.pairs if not pair[0].startswith("tokenizer.")))
    assert facts(read_header(write(bare))).shape.vocabulary == 8
    assert facts(read_header(write(bare.with_pair("llama.vocab_size", "u32", 7)))).shape.vocabulary == 7
    assert not facts(read_header(write(bare))).has_chat_template


def test_free_texts_are_cleaned_and_cut(tiny: Any, write: Write) -> None:
    file = tiny.with_pair("general.license", "str", "a\x1b[31m\n" + "b" * 500).with_pair("general.name", "str", " \n")
    found = facts(read_header(write(file)))
    assert found.license is not None
    assert len(found.license) == 200
    assert found.license.isprintable()
    assert found.general_name is None


@pytest.mark.parametrize(
    ("said", "inner", "expected"),
    [
        ("Q4_K_M", (Q4_K, Q4_K, Q6_K), "Q4_K_M"),
        ("Q4_K_S", (Q4_K, Q4_K, Q6_K), "Q4_K_S"),  # a mix is not told from its neighbour: the file is believed
        (None, (Q4_K, Q4_K, Q6_K), "Q4_K_M"),
        (None, (Q4_K, Q4_K), "Q4_K_S"),
        ("F16", (Q4_K, Q4_K), "Q4_K_S"),  # tools that forget to set the file type
        ("F16", (F16, F16), "F16"),
        ("F32", (F16, F16), "F16"),
        ("Q4_0", (F16, F16, F32), "F16"),
        ("Q8_0", (Q8_0,), "Q8_0"),
        ("Q6_K", (Q8_0, Q8_0), "Q6_K"),  # rows that no block of 256 fits fall back to Q8_0
        ("MXFP4_MOE", (Q8_0, Q8_0), "Q8_0"),  # llama.cpp's name for what it does to a model without experts
        ("MXFP4_MOE", (MXFP4, MXFP4, Q8_0), "MXFP4_MOE"),
        ("Q4_0", (Q6_K, Q6_K), "Q6_K"),
        (None, (MXFP4,), "MXFP4_MOE"),
        (None, (), "F16"),
    ],
)
def test_the_label_is_borne_out_by_the_tensors(
    tiny: Any, write: Write, said: str | None, inner: tuple[int, ...], expected: str
) -> None:
    assert label(tiny, write, None if said is None else FILE_TYPES[said], *inner) == expected


def test_a_large_embedding_does_not_name_the_level(tiny: Any, write: Write) -> None:
    assert label(tiny, write, FILE_TYPES["Q4_K_M"], Q4_K, embedding=Q6_K) == "Q4_K_M"
    assert label(tiny, write, None, Q4_K, embedding=Q6_K) == "Q4_K_S"


def test_levels_that_nobody_can_name_are_unknown(tiny: Any, write: Write) -> None:
    file = tiny.with_pair("general.file_type", "u32", 39).with_(tensors=(("blk.0.ffn_up.weight", (64, 4), 40),))
    raw = file.build() + bytes(64 * 4)
    found = facts(read_header(write(raw)))
    assert found.quantization == "UNKNOWN"
    assert found.quantized_tensors
