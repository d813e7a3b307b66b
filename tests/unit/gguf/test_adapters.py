"""Only adapters that llama.cpp can compute with, beside this very base, are let through."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.gguf.adapters import check_adapter, check_values, read_adapter
from service.gguf.header import Header, Pair

PAIRS: dict[str, Pair] = {
    "general.architecture": Pair("str", "llama", 0),
    "general.type": Pair("str", "adapter", 0),
    "adapter.type": Pair("str", "lora", 0),
    "adapter.lora.alpha": Pair("f32", 8.0, 0),
}
UP = "blk.0.ffn_up.weight"


def header(tensors: dict[str, tuple[int, ...]], pairs: dict[str, Pair] | None = None, type_: str = "F32") -> Header:
    infos = tuple(TensorInfo(name, shape, type_, math.prod(shape) * 4) for name, shape in tensors.items())
    found = PAIRS if pairs is None else pairs
    return Header(3, 32, MappingProxyType(found), infos, (0,) * len(infos), 0, 0)


BASE = header(
    {
        "token_embd.weight": (8, 100),
        "output.weight": (8, 100),
        UP: (8, 24),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_up_exps.weight": (8, 24, 4),
        "blk.1.ffn_up.weight": (8, 24),
    }
)
TIED = header({"token_embd.weight": (8, 100), UP: (8, 24)})


def pair(a: tuple[int, ...], b: tuple[int, ...], name: str = UP) -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_a": a, f"{name}.lora_b": b}


def test_an_adapter_that_fits_says_what_it_is() -> None:
    tensors = pair((8, 4), (4, 24)) | pair((8, 2), (2, 24), "blk.1.ffn_up.weight")
    facts = check_adapter(header(tensors | {"blk.0.attn_norm.weight": (8,)}), BASE)
    assert (facts.architecture, facts.rank, facts.alpha, facts.tensors) == ("llama", 4, 8.0, 4)
    assert facts.parameters == 8 * 4 + 4 * 24 + 8 * 2 + 2 * 24


@pytest.mark.parametrize(
    ("tensors", "base"),
    [
        (pair((8, 4), (4, 24)), BASE),
        (pair((8, 1), (1, 24)), BASE),
        (pair((8, 4, 1, 1), (4, 24, 1)), BASE),
        (pair((4, 100), (4, 8), "token_embd.weight"), BASE),
        (pair((8, 4), (4, 100), "output.weight"), BASE),
        (pair((8, 4, 4), (4, 24, 4), "blk.0.ffn_up_exps.weight"), BASE),
    ],
)
def test_what_llama_cpp_computes_with_is_taken(tensors: dict[str, tuple[int, ...]], base: Header) -> None:
    check_adapter(header(tensors), base)


@pytest.mark.parametrize(
    ("tensors", "base"),
    [
        (pair((4, 8), (4, 24)), BASE),
        (pair((8, 4), (5, 24)), BASE),
        (pair((8, 4), (4, 25)), BASE),
        (pair((8, 4, 2), (4, 24)), BASE),
        (pair((8, 4), (4, 24, 3)), BASE),
        (pair((8, 4, 1, 2), (4, 24, 1, 2)), BASE),
        (pair((8, 4, 3), (4, 24, 3), "blk.0.ffn_up_exps.weight"), BASE),
        (pair((8, 4), (4, 24), "blk.0.ffn_up_exps.weight"), BASE),
        (pair((8, 4), (4, 100), "token_embd.weight"), BASE),
        (pair((4, 100), (4, 8), "token_embd.weight"), TIED),
        (pair((8, 4), (4, 100), "output.weight"), TIED),
        (pair((8, 4), (4, 1), "blk.0.ffn_norm.weight"), BASE),
        (pair((8, 4), (4, 24), "blk.7.ffn_up.weight"), BASE),
        (pair((8, 4), (4, 24), f"{UP}.lora_a"), BASE),
        (pair((8, 20000), (20000, 24)), BASE),
        ({f"{UP}.lora_a": (8, 4)}, BASE),
        ({f"{UP}.lora_b": (4, 24)}, BASE),
        ({"blk.0.attn_norm.weight": (8,)}, BASE),
        ({UP: (8, 24)}, BASE),
        ({"cls.output.weight": (8, 2)}, BASE),
    ],
)
def test_what_llama_cpp_would_abort_on_or_leave_out_is_refused(
    tensors: dict[str, tuple[int, ...]], base: Header
) -> None:
    with pytest.raises(InvalidModel):
        check_adapter(header(tensors), base)


EXTENT = st.sampled_from([1, 2, 4, 8, 24])
SHAPE = st.lists(EXTENT, min_size=1, max_size=4).map(tuple)


@given(SHAPE, SHAPE, st.sampled_from([UP, "blk.0.ffn_up_exps.weight", "token_embd.weight"]))
def test_the_factors_of_what_is_taken_can_be_multiplied_to_the_shape_of_the_weights(
    a: tuple[int, ...], b: tuple[int, ...], name: str
) -> None:
    try:
        check_adapter(header(pair(a, b, name)), BASE)
    except InvalidModel:
        return
    factors = [np.zeros((*shape, 1, 1, 1)[:4], dtype=np.int8).transpose(3, 2, 1, 0) for shape in (a, b)]
    shape = next(tensor.shape for tensor in BASE.tensors if tensor.name == name)
    product = np.matmul(factors[1], factors[0])
    assert product.shape[::-1] == (*shape, 1, 1, 1)[:4]


@pytest.mark.parametrize(
    "change",
    [
        {"general.architecture": Pair("str", "qwen2", 0)},
        {"general.architecture": Pair("u32", 7, 0)},
        {"general.type": Pair("str", "model", 0)},
        {"general.type": Pair("u32", 1, 0)},
        {"general.type": None},
        {"adapter.type": Pair("str", "control_vector", 0)},
        {"adapter.type": Pair("f32", 1.0, 0)},
        {"adapter.type": None},
        {"adapter.lora.alpha": Pair("f32", math.nan, 0)},
        {"adapter.lora.alpha": Pair("f32", math.inf, 0)},
        {"adapter.lora.alpha": Pair("u32", 8, 0)},
        {"adapter.lora.alpha": Pair("str", "8", 0)},
        {"adapter.alora.invocation_tokens": Pair("u32", 1, 0)},
    ],
)
def test_pairs_that_llama_cpp_trusts_are_what_it_takes_them_for(change: dict[str, Pair | None]) -> None:
    pairs = {key: value for key, value in (PAIRS | change).items() if value is not None}
    with pytest.raises(InvalidModel):
        check_adapter(header(pair((8, 4), (4, 24)), pairs), BASE)


@pytest.mark.parametrize("type_", ["I32", "Q8_1", "Q8_K", "F64", "Q4_K", "IQ1_S"])
def test_types_that_factors_are_not_written_in_are_refused(type_: str) -> None:
    with pytest.raises(InvalidModel, match="type"):
        check_adapter(header(pair((8, 4), (4, 24)), type_=type_), BASE)


def write(path: Path, values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType | None = None) -> Header:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_tensor(f"{UP}.lora_a", values, raw_dtype=kind)
    writer.add_tensor(f"{UP}.lora_b", np.ones((24, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = header({UP: (values.shape[-1] if kind is None else 32, 24)})
    return read_adapter(path, base)[0]


BAD = {
    "F32": (np.ones((4, 32), dtype=np.float32), None, struct.pack("<f", math.nan)),
    "F16": (np.ones((4, 32), dtype=np.float16), None, struct.pack("<e", math.inf)),
    "BF16": (np.full((4, 64), 0x3F, dtype=np.uint8), gguf.GGMLQuantizationType.BF16, b"\x80\x7f"),
    "Q8_0": (np.full((4, 34), 0x3B, dtype=np.uint8), gguf.GGMLQuantizationType.Q8_0, struct.pack("<e", math.nan)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_value_that_is_no_finite_number_is_found_in_every_type(kind: str, tmp_path: Path) -> None:
    values, raw, bad = BAD[kind]
    path = tmp_path / "adapter.gguf"
    found = write(path, values, raw)
    seen: list[float] = []
    check_values(path, found, seen.append)
    assert seen[-1] == 1.0
    (offset,) = [at for tensor, at in zip(found.tensors, found.offsets, strict=True) if tensor.name.endswith("_a")]
    at = found.data_offset + offset + 34 * 2
    data = bytearray(path.read_bytes())
    data[at : at + len(bad)] = bad
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match="no finite numbers"):
        check_values(path, found, seen.append)
