"""Promises of service.gguf: a sound file is read; whatever else comes is refused with InvalidModel, and cheaply."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.files import read_header
from service.gguf.header import Header

Write = Callable[[Any], Path]
BOUNDARIES = (0, 1, 2, 3, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def refusal(path: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_header(path)
    assert str(path) not in caught.value.message
    assert str(path.parent) not in caught.value.message
    return caught.value.message


def test_a_sound_file_is_read(tiny: Any, write: Write) -> None:
    path = write(tiny)
    header = read_header(path)
    assert header.version == 3
    assert header.alignment == 32
    assert header.file_size == path.stat().st_size
    assert header.text("general.architecture") == "llama"
    assert header.whole("llama.context_length") == 64
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    tokens = header.array("tokenizer.ggml.tokens")
    assert tokens is not None
    assert (tokens.element_type, tokens.count, tokens.values) == ("str", 8, None)
    assert [(t.name, t.shape, t.type, t.size_bytes) for t in header.tensors] == [
        ("token_embd.weight", (32, 8), "F16", 512),
        ("blk.0.attn_q.weight", (32, 32), "F16", 2048),
        ("blk.0.attn_k.weight", (32, 16), "F16", 1024),
        ("output_norm.weight", (32,), "F32", 128),
    ]
    assert header.offsets == (0, 512, 2560, 3584)
    assert header.data_offset + 3584 + 128 == header.file_size


def test_version_2_and_the_gap_before_larger_alignments_are_read(tiny: Any, write: Write) -> None:
    assert read_header(write(tiny.with_(version=2))).version == 2
    header = read_header(write(tiny.with_pair("general.alignment", "u32", 1024).with_(alignment=1024)))
    assert header.alignment == 1024
    assert header.data_offset % 1024 == 0


def test_padding_after_the_last_tensor_may_be_missing(tiny: Any, write: Write) -> None:
    odd = tiny.with_(tensors=(("blk.0.ffn_up.weight", (2, 3), 0), ("token_embd.weight", (3, 2), 0)))
    assert read_header(write(odd)).offsets == (0, 32)
    assert read_header(write(odd.with_(missing_bytes=8))).offsets == (0, 32)
    assert "1 bytes of tensor data are missing" in refusal(write(odd.with_(missing_bytes=9)))


@pytest.mark.parametrize(
    ("version", "word"),
    [
        (0, "version 0"),
        (1, "no longer reads"),
        (4, "version 4"),
        (0x03000000, "big-endian"),
        (0x02000000, "big-endian"),
    ],
)
def test_other_versions_are_refused_by_name(tiny: Any, write: Write, version: int, word: str) -> None:
    assert word in refusal(write(tiny.with_(version=version)))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"G", "letters GGUF"),
        (b"MZ\x90\x00" + bytes(64), "letters GGUF"),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F16"' + bytes(64), "safetensors"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x80\x02}q\x00." + bytes(40), "pickled"),
        (b"\x80\x04\x95" + bytes(40), "pickled"),
        (struct.pack("<I", 0x67676D6C) + bytes(40), "old GGML"),
        (struct.pack("<I", 0x67676A74) + bytes(40), "ggjt"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"GGUF", "ends inside its header"),
    ],
)
def test_other_files_are_told_apart_and_come_with_a_remedy(write: Write, content: bytes, word: str) -> None:
    assert word in refusal(write(content))


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero"), tmp_path / "missing", Path("a\0b")):
        with pytest.raises(InvalidModel):
            read_header(path)


def test_tensor_data_that_is_not_there_is_refused(tiny: Any, write: Write) -> None:
    # Bleeding Llama (CVE-2026-7482): sizes that reach past the end of the file leaked the heap of the reader.
    assert "5 bytes of tensor data are missing" in refusal(write(tiny.with_(missing_bytes=5)))
    assert "4096 bytes" not in refusal(write(tiny.with_(missing_bytes=3712)))
    huge = tiny.with_(tensors=(("token_embd.weight", (2**20, 2**20), 0),))
    assert "are missing" in refusal(write(huge))


@pytest.mark.parametrize(
    "shape", [(), (0,), (32, 0), (-1, 4), (2**62, 4), (2**31, 2**31, 2**31), (1, 1, 1, 1, 1), (-(2**63),)]
)
def test_shapes_that_no_tensor_can_have_are_refused(tiny: Any, write: Write, shape: tuple[int, ...]) -> None:
    refusal(write(tiny.with_(tensors=(("token_embd.weight", shape, 0),))))


def test_four_dimensions_are_for_recurrent_networks_that_mix_with_them(tiny: Any, write: Write) -> None:
    shape = (32, 1, 1, 5)
    assert read_header(write(tiny.with_(tensors=(("blk.0.time_mix_lerp_fused.weight", shape, 0),))))
    assert read_header(write(tiny.with_(tensors=(("blk.0.ffn_up.weight", (32, 1, 5, 1), 0),))))
    assert "four dimensions" in refusal(write(tiny.with_(tensors=(("blk.0.ffn_up.weight", shape, 0),))))


def test_offsets_must_follow_each_other(tiny: Any, write: Write) -> None:
    right = (0, 512, 2560, 3584)
    for wrong in (
        (0, 0, 2560, 3584),
        (0, 513, 2560, 3584),
        (512, 0, 2560, 3584),
        (0, 512, 2560, 2**63),
        (32, 544, 0, 0),
    ):
        assert "should start at byte" in refusal(write(tiny.with_(offsets=wrong)))
    assert read_header(write(tiny.with_(offsets=right))).offsets == right


def test_names_are_unique_short_and_printable(tiny: Any, write: Write) -> None:
    tensor = ("a" * 63, (32,), 0)
    assert read_header(write(tiny.with_(tensors=(tensor,)))).tensors[0].name == "a" * 63
    assert "64 bytes; 63 are allowed" in refusal(write(tiny.with_(tensors=(("a" * 64, (32,), 0),))))
    assert "occurs twice" in refusal(write(tiny.with_(tensors=(tensor, tensor))))
    assert "occurs twice" in refusal(write(tiny.with_(pairs=(*tiny.pairs, ("general.name", "u32", 1)))))
    # A NUL would end the name in C, a line end would forge a line of llama.cpp's log.
    for name in ("a\0b", "a\n[   1/   1] b", "", "\x1b[2J"):
        refusal(write(tiny.with_(tensors=((name, (32,), 0),))))
        refusal(write(tiny.with_pair(name, "u32", 1)))
    assert "UTF-8" in refusal(
        write(tiny.with_pair("k", "u32", 1).build().replace(b"\1\0\0\0\0\0\0\0k", b"\1" + bytes(7) + b"\xff"))
    )


def test_types_and_rows_must_be_known_to_ggml(tiny: Any, write: Write) -> None:
    assert "does not know" in refusal(write(tiny.with_(tensors=(("w.weight", (32, 32), 4),))))
    assert "does not know" in refusal(write(tiny.with_(tensors=(("w.weight", (32, 32), 2**31),))))
    assert "do not fill" in refusal(write(tiny.with_(tensors=(("w.weight", (33, 32), 2),))))
    assert "do not fill" in refusal(write(tiny.with_(tensors=(("w.weight", (32, 256), 12),))))
    assert "does not compute with" in refusal(write(tiny.with_(tensors=(("w.weight", (32, 32), 26),))))
    for kind in (1, 8):  # F16 and Q8_0: activations are F32, and the kernels take nothing else beside them
        for name in ("blk.0.attn_norm.weight", "blk.0.attn_q.bias", "blk.0.ssm_d", "rope_freqs.weight"):
            assert "computes with F32" in refusal(write(tiny.with_(tensors=((name, (32,), kind),))))
    assert read_header(write(tiny.with_(tensors=(("blk.0.ffn_gate_tid2eid.weight", (8, 8), 26),))))


@pytest.mark.parametrize(
    ("kind", "value"), [("u32", 0), ("u32", 48), ("u32", 131072), ("u64", 32), ("str", "32"), ("[u32", [32])]
)
def test_the_alignment_is_a_u32_power_of_two_up_to_64_kib(tiny: Any, write: Write, kind: str, value: Any) -> None:
    assert "general.alignment" in refusal(write(tiny.with_pair("general.alignment", kind, value)))


@pytest.mark.parametrize(("position", "word"), [(8, "tensors"), (16, "key-value pairs")])
@pytest.mark.parametrize("count", [65_537, 2**32, 2**63, 2**64 - 1])
def test_counts_are_bounded(tiny: Any, write: Write, position: int, word: str, count: int) -> None:
    raw = bytearray(tiny.build())
    raw[position : position + 8] = struct.pack("<Q", count)
    assert f"{count} {word}" in refusal(write(bytes(raw)))


@pytest.mark.parametrize("position", [8, 16])
def test_counts_fit_into_what_is_left_of_the_file(tiny: Any, write: Write, position: int) -> None:
    raw = bytearray(tiny.build())
    raw[position : position + 8] = struct.pack("<Q", 60_000)
    assert "more than the rest of the file can hold" in refusal(write(bytes(raw)))


@pytest.mark.parametrize("element", ["u8", "u64", "str", "bool"])
@pytest.mark.parametrize("count", [2**24 + 1, 2**24, 2**40, 2**64 - 1])
def test_arrays_fit_into_what_is_left_of_the_file(tiny: Any, write: Write, element: str, count: int) -> None:
    raw = tiny.with_pair("x", "[" + element, []).build()
    assert (
        raw.count(
            struct.pack("<I", 9) + struct.pack("<I", {"u8": 0, "u64": 10, "str": 8, "bool": 7}[element]) + bytes(8)
        )
        == 1
    )
    head = struct.pack("<I", 9) + struct.pack("<I", {"u8": 0, "u64": 10, "str": 8, "bool": 7}[element])
    refusal(write(raw.replace(head + bytes(8), head + struct.pack("<Q", count))))


def test_arrays_of_arrays_and_unknown_kinds_are_refused(tiny: Any, write: Write) -> None:
    raw = tiny.with_pair("x", "[i8", [1]).build()
    head = struct.pack("<I", 9) + struct.pack("<I", 1)
    assert "Arrays of arrays" in refusal(write(raw.replace(head, struct.pack("<I", 9) * 2)))
    assert "GGUF does not know" in refusal(write(raw.replace(head, struct.pack("<II", 9, 13))))
    assert "GGUF does not know" in refusal(write(raw.replace(head, struct.pack("<II", 13, 1))))


def test_truth_values_are_0_or_1(tiny: Any, write: Write) -> None:
    assert "truth value" in refusal(write(tiny.with_pair("x", "bool", 2)))
    assert "truth value" in refusal(write(tiny.with_pair("x", "[bool", [0, 1, 255])))
    assert read_header(write(tiny.with_pair("x", "[bool", [0, 1]))).array("x") is not None


def test_strings_are_tolerated_where_they_are_only_text(tiny: Any, write: Write) -> None:
    header = read_header(write(tiny.with_pair("general.name", "str", b"caf\xe9")))
    assert header.text("general.name") == "caf\ufffd"
    assert read_header(
        write(tiny.with_pair("tokenizer.ggml.tokens", "[str", [b"\xff", b"\xfe", b"", b"a", b"b", b"c", b"d", b"e"]))
    )


def test_strings_with_a_nul_count_as_c_strings_when_written_again(tiny: Any, write: Write) -> None:
    header = read_header(write(tiny.with_pair("x", "str", b"ab\0cd").with_pair("y", "[str", [b"ab\0cd", b"\0", b"e"])))
    assert header.pairs["x"].written_bytes == 8 + 1 + 4 + 8 + 2
    assert header.pairs["y"].written_bytes == 8 + 1 + 4 + 4 + 8 + 3 * 8 + 3


# --- what llama.cpp does not survive


@pytest.mark.parametrize(
    ("key", "kind", "value", "word"),
    [
        ("general.architecture", "str", "", "letters, digits"),
        ("general.architecture", "str", "ll ama", "letters, digits"),
        ("general.architecture", "u32", 1, "letters, digits"),
        ("general.architecture", "str", "qwen2", "qwen2."),
        ("general.architecture", "str", "clip", "vision or audio"),
        ("general.type", "str", "adapter", "LoRA"),
        ("general.type", "str", "imatrix", "importance matrix"),
        ("general.file_type", "str", "F16", "general.file_type"),
        ("split.count", "u16", 3, "one of 3 pieces"),
        ("llama.block_count", "u32", 0, "block_count is 0"),
        ("llama.block_count", "u32", 513, "1 to 512"),
        ("llama.block_count", "i32", -1, "not u32"),
        ("llama.embedding_length", "u32", 0, "embedding_length is 0"),
        ("llama.context_length", "u32", 0, "context_length is 0"),
        ("llama.context_length", "u32", 2**32 - 1, "context_length"),
        ("llama.attention.head_count", "u32", 0, "head_count is 0 or missing"),
        ("llama.attention.head_count_kv", "u32", 0, "which has attention weights"),
        ("llama.attention.head_count_kv", "u32", 3, "cannot share"),
        ("llama.attention.head_count_kv", "u32", 8, "cannot share"),
        ("llama.attention.head_count", "u32", 64, "heads of no length"),
        ("llama.attention.head_count_kv", "[i32", [-2], "negative"),
        ("llama.attention.head_count_kv", "[u32", [2, 2], "each of 1 layers"),
        ("llama.attention.key_length", "u32", 0, "heads of no length"),
        ("llama.attention.layer_norm_rms_epsilon", "f32", float("nan"), "nan"),
        ("llama.attention.layer_norm_rms_epsilon", "f32", -1.0, "-1"),
        ("llama.rope.freq_base", "f32", float("nan"), "nan"),
        ("llama.rope.scaling.type", "str", "magic", "rope.scaling.type"),
        ("llama.nextn_predict_layers", "u32", 2, "nextn"),
        ("llama.pooling_type", "u32", 5, "pooling_type"),
        ("llama.pooling_type", "u32", 0x105840EF, "pooling_type"),
        ("llama.attention.sliding_window", "u32", 2**31, "sliding_window"),
        ("llama.expert_count", "u32", 1025, "expert_count"),
        ("llama.expert_count", "u32", 4, "expert_used_count is 0"),
        ("llama.expert_used_count", "u32", 1, "of 0 experts"),
        ("llama.expert_group_count", "u32", 1, "expert_group_count"),
        ("tokenizer.ggml.model", "u32", 1, "tokenizer.ggml.model"),
        ("tokenizer.ggml.tokens", "[str", [], "empty"),
        ("tokenizer.ggml.tokens", "[u32", [1], "array of strings"),
        ("tokenizer.ggml.tokens", "[str", ["a"] * 8, "7 tokens"),
        ("tokenizer.ggml.tokens", "[str", ["a", b"a\0b", "c", "d", "e", "f", "g", "h"], "1 tokens"),
        ("tokenizer.ggml.tokens", "[str", ["x" * 100] * 2 + ["c", "d", "e", "f", "g", "h"], "1 tokens"),
        ("tokenizer.ggml.scores", "[f32", [0.0] * 7, "7 entries for 8 tokens"),
        ("tokenizer.ggml.scores", "[f64", [0.0] * 8, "f32 or i32"),
        ("tokenizer.ggml.token_type", "[i32", [1] * 9, "9 entries for 8 tokens"),
        ("tokenizer.ggml.merges", "[u32", [1], "merges"),
        ("tokenizer.ggml.bos_token_id", "u32", 8, "every text (bos)"),
        ("tokenizer.ggml.add_eos_token", "bool", 1, "every text (eos)"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_abort_on_is_refused(
    tiny: Any, write: Write, key: str, kind: str, value: Any, word: str
) -> None:
    assert word in refusal(write(tiny.with_pair(key, kind, value)))


@pytest.mark.parametrize(
    "key", ["general.architecture", "llama.block_count", "llama.embedding_length", "llama.context_length"]
)
def test_what_llama_cpp_needs_is_asked_for(tiny: Any, write: Write, key: str) -> None:
    assert "onvert the model again" in refusal(write(tiny.without(key)))


def test_a_sentencepiece_vocabulary_spells_every_byte(tiny: Any, write: Write) -> None:
    # Without this llama.cpp throws through C on the first character that the vocabulary cannot spell.
    words = ["<unk>", "<s>", "</s>"]
    bare = tiny.without("tokenizer.ggml.scores").without("tokenizer.ggml.token_type")
    model = bare.with_pair("tokenizer.ggml.model", "str", "llama")

    def tokens(spelled: list[bytes]) -> Path:
        return write(model.with_pair("tokenizer.ggml.tokens", "[str", [*words, *spelled]))

    assert read_header(tokens([b"<0x%02X>" % byte for byte in range(256)])).byte_tokens == 256
    assert read_header(tokens([b"<0x00>", *(bytes([byte]) for byte in range(1, 256))])).byte_tokens == 256
    assert "1 of the 256 bytes" in refusal(tokens([b"<0x%02X>" % byte for byte in range(255)]))
    assert "156 of the 256 bytes" in refusal(tokens([b"<0x%02x>" % byte for byte in range(256)]))


def test_a_bert_vocabulary_has_the_tokens_around_every_text(tiny: Any, write: Write) -> None:
    bert = tiny.with_pair("tokenizer.ggml.model", "str", "bert").with_pair("tokenizer.ggml.add_bos_token", "bool", 0)
    assert "(seperator)" in refusal(write(bert))
    assert read_header(write(bert.with_pair("tokenizer.ggml.seperator_token_id", "u32", 2)))
    assert "(bos)" in refusal(write(bert.without("tokenizer.ggml.bos_token_id")))


def test_a_reranker_has_no_more_classes_than_numbers(tiny: Any, write: Write) -> None:
    reranker = tiny.with_pair("llama.pooling_type", "u32", 4)
    assert read_header(write(reranker.with_pair("llama.classifier.output_labels", "[str", ["yes"] * 32)))
    assert "33 classes" in refusal(write(reranker.with_pair("llama.classifier.output_labels", "[str", ["yes"] * 33)))


def of_architecture(tiny: Any, name: str) -> Any:
    """The same file as one of another architecture."""
    other = tiny.with_(pairs=tuple((key.replace("llama.", f"{name}."), *rest) for key, *rest in tiny.pairs))
    return other.with_pair("general.architecture", "str", name)


def test_rotary_sections_have_a_sum_to_divide_by(tiny: Any, write: Write) -> None:
    other = of_architecture(tiny, "paddleocr")
    key = "paddleocr.rope.dimension_sections"
    assert "no sections" in refusal(write(other))
    assert "no sections" in refusal(write(other.with_pair(key, "[i32", [0, 0, 0, 4])))
    assert "no section can have" in refusal(write(other.with_pair(key, "[i32", [4, -4, 0, 0])))
    assert read_header(write(other.with_pair(key, "[i32", [4, 4, 4, 0])))


def test_an_architecture_of_experts_has_some(tiny: Any, write: Write) -> None:
    other = of_architecture(tiny, "smallthinker")
    assert "has experts" in refusal(write(other))
    used = other.with_pair("smallthinker.expert_used_count", "u32", 2)
    assert read_header(write(used.with_pair("smallthinker.expert_count", "u32", 4)))


def test_layers_without_attention_may_have_no_heads(tiny: Any, write: Write) -> None:
    without = tiny.with_(tensors=(("token_embd.weight", (32, 8), 1),))
    recurrent = of_architecture(without, "mamba")
    assert read_header(write(recurrent.with_pair("mamba.attention.head_count", "u32", 0)))
    assert read_header(write(recurrent.without("mamba.attention.head_count").without("mamba.attention.head_count_kv")))
    assert read_header(write(without.with_pair("llama.attention.head_count_kv", "[u32", [0])))
    # llama.cpp divides by the number of heads of every other architecture, weights or none.
    assert "head_count is 0 or missing" in refusal(write(without.with_pair("llama.attention.head_count", "u32", 0)))


def test_a_file_without_tensors_is_refused(tiny: Any, write: Write) -> None:
    assert "no tensors" in refusal(write(tiny.with_(tensors=())))


# --- mutants


def outcome(path: Path) -> Header | None:
    """The header or None; any other exception than InvalidModel fails the test."""
    try:
        header = read_header(path)
    except InvalidModel:
        return None
    for tensor, offset in zip(header.tensors, header.offsets, strict=True):
        assert header.data_offset + offset + tensor.size_bytes <= header.file_size
    return header


def test_every_number_of_the_header_may_be_anything(tiny: Any, write: Write) -> None:
    raw = tiny.build()
    assert len(tiny.numbers) > 100
    accepted = tried = 0
    started = time.monotonic()
    for position, size in tiny.numbers:
        for boundary in BOUNDARIES:
            mutant = bytearray(raw)
            mutant[position : position + size] = (boundary % (1 << 8 * size)).to_bytes(size, "little")
            accepted += outcome(write(bytes(mutant))) is not None
            tried += 1
    assert tried > 1300
    assert 0 < accepted < tried
    assert time.monotonic() - started < 20.0


def test_every_truncation_is_refused(tiny: Any, write: Write) -> None:
    raw = tiny.build()
    for length in range(0, len(raw), 7):
        assert outcome(write(raw[:length])) is None


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(tiny: Any, write: Write, data: st.DataObject) -> None:
    raw = bytearray(tiny.build())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(st.binary(max_size=9))
        raw[place : place + data.draw(st.integers(0, 9))] = piece
    outcome(write(bytes(raw)))


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400))
def test_random_bytes_after_the_magic_are_refused(write: Write, tail: bytes) -> None:
    outcome(write(b"GGUF\x03\x00\x00\x00" + tail))


# --- cost


def test_a_vocabulary_of_256k_tokens_is_read_in_well_under_a_second(tiny: Any, write: Write) -> None:
    count = 256_000
    large = (
        tiny.with_pair("tokenizer.ggml.tokens", "[str", [f"token{index}" for index in range(count)])
        .with_pair("tokenizer.ggml.merges", "[str", [f"a{index} b{index}" for index in range(count)])
        .with_pair("tokenizer.ggml.scores", "[f32", [0.0] * count)
        .with_pair("tokenizer.ggml.token_type", "[i32", [1] * count)
    )
    path = write(large)
    started = time.process_time()
    assert read_header(path).array("tokenizer.ggml.tokens") is not None
    assert time.process_time() - started < 1.0


def test_memory_stays_bounded_whatever_the_arrays_hold(tiny: Any, write: Write) -> None:
    many = tiny
    pairs = tuple((f"k{index}", "[u8", bytes(1024)) for index in range(200))
    path = write(many.with_(pairs=(*tiny.pairs, *pairs, ("big", "[u64", range(200_000)))))
    tracemalloc.start()
    try:
        read_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


def test_texts_beyond_the_budget_are_refused(tiny: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gguf.parsing.MAX_TEXT_BYTES", 1024)
    assert "of text" in refusal(write(tiny.with_pair("x", "str", "y" * 1100)))
    monkeypatch.setattr("service.gguf.parsing.MAX_STRING_BYTES", 512)
    assert "512 are allowed" in refusal(write(tiny.with_pair("x", "str", "y" * 513)))


def test_a_header_beyond_the_limit_is_refused(tiny: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gguf.cursor.MAX_HEADER_BYTES", 512)
    assert "header is larger" in refusal(write(tiny))


def test_random_mutants_of_a_real_header_are_refused_or_harmless(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[3] / "demo" / "gloss-5m-f16.gguf"
    raw = source.read_bytes()
    path = tmp_path / "mutant.gguf"
    path.write_bytes(raw)
    generator = random.Random(20260801)
    with path.open("r+b", buffering=0) as file:
        for _ in range(300):
            place = generator.randrange(1800)
            file.seek(place)
            file.write(generator.randbytes(generator.choice((1, 4, 8))))
            started = time.process_time()
            outcome(path)
            assert time.process_time() - started < 1.0
            file.seek(place)
            file.write(raw[place : place + 8])
