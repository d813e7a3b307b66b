"""Promises of service.gguf.packed: packed tensors read as the floats that they mean, and hostile ones are refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import Tensor
from service.gguf.packed import unpacked, with_quantization, words
from tests import packing

Array = NDArray[Any]
DTYPES = {"int32": "I32", "int64": "I64", "uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}
PREFIX = "model.layers.0.self_attn.q_proj"


def tensor(name: str, values: Array, dtype: str | None = None) -> Tensor:
    """As `open_tensors` gives them: rows of floats in float32, of whole numbers as they are."""

    def read(start: int, stop: int) -> Array:
        rows = values[start:stop] if values.ndim else values.reshape(1)
        return rows.astype(np.float32) if rows.dtype.kind == "f" else rows.copy()

    return Tensor(name, values.shape, dtype or DTYPES[values.dtype.name], read)


def checkpoint(parts: Mapping[str, Array], prefix: str = PREFIX) -> dict[str, Tensor]:
    return {f"{prefix}.{ending}": tensor(f"{prefix}.{ending}", values) for ending, values in parts.items()}


def weights(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def check(parts: Mapping[str, Array], expected: Array, config: dict[str, Any], description: str, tolerance: float = 0):
    others = {"model.norm.weight": tensor("model.norm.weight", np.ones(8, np.float32))}
    found, said = unpacked({**checkpoint(parts), **others}, {"quantization_config": config})
    assert said == description
    assert list(found) == [f"{PREFIX}.weight", "model.norm.weight"]
    made = found[f"{PREFIX}.weight"]
    assert made.name == f"{PREFIX}.weight"
    assert made.shape == expected.shape
    assert made.dtype == "F16"
    rows = len(expected)
    for start, stop in ((0, rows), (0, 1), (rows - 1, rows), (3, rows - 2), (rows // 2, rows // 2), (1, 4)):
        read = made.read(start, stop)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, expected[start:stop], rtol=tolerance, atol=0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_scale_times_code_less_zero(bits: int, group_size: int, act_order: bool, version: int) -> None:
    parts, expected = packing.gptq(
        weights(64, 96), bits=bits, group_size=group_size, act_order=act_order, version=version
    )
    layout = {1: "gptq", 2: "gptq_v2"}[version]
    config = packing.gptq_config(bits=bits, group_size=group_size, desc_act=act_order, checkpoint_format=layout)
    groups = "one group a row" if group_size == -1 else "groups of 32"
    check(parts, expected, config, f"GPTQ, {bits} bits, {groups}")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_before_there_was_an_order_or_a_format(bits: int) -> None:
    parts, expected = packing.gptq(weights(32, 64), bits=bits, symmetric=True, group_index=False)
    config = {"bits": bits, "group_size": 32, "desc_act": False}
    check(parts, expected, config, f"GPTQ, {bits} bits, groups of 32")
    del parts["qzeros"]
    check(parts, expected, {**config, "sym": True}, f"GPTQ, {bits} bits, groups of 32")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_of_zero_borrow_from_their_neighbours_and_come_back(bits: int) -> None:
    """GPTQModel subtracts from the word: where every weight of a group is positive the zero is 0, and it borrows."""
    weight = weights(64, 32)
    weight[::3] = np.abs(weight[::3])
    parts, expected = packing.gptq(weight, bits=bits, group_size=16)
    check(parts, expected, packing.gptq_config(bits=bits, group_size=16), f"GPTQ, {bits} bits, groups of 16")


def test_a_matrix_of_other_bits_than_the_rest_is_known_by_its_shape() -> None:
    parts, expected = packing.gptq(weights(32, 64), bits=8)
    check(
        parts,
        expected,
        packing.gptq_config(bits=4, dynamic={"+:.*q_proj.*": {"bits": 8}}),
        "GPTQ, 4 bits, groups of 32",
    )


def test_biases_of_zeros_that_autogptq_added_are_left_out() -> None:
    parts, _ = packing.gptq(weights(32, 64))
    for bias, kept in ((np.zeros(32, np.float16), False), (np.ones(32, np.float16), True)):
        found, _ = unpacked(checkpoint({**parts, "bias": bias}), {"quantization_config": packing.gptq_config()})
        assert (f"{PREFIX}.bias" in found) == kept


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("layout", ["gemm", "gemv"])
def test_awq_is_scale_times_code_less_zero(layout: str, group_size: int) -> None:
    parts, expected = packing.awq(weights(24, 384), group_size=group_size, layout=layout)
    groups = "one group a row" if group_size == -1 else f"groups of {group_size}"
    config = packing.awq_config(group_size=group_size, version=layout)
    check(parts, expected, config, f"AWQ, 4 bits, {groups}")
    old = {"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": layout.upper()}
    check(parts, expected, old, f"AWQ, 4 bits, {groups}")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", [(48, 64), (9, 7), (5, 130)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_is_a_level_times_the_largest_of_its_block(
    kind: str, shape: tuple[int, int], block: int, nested: bool
) -> None:
    parts, expected = packing.four_bits(weights(*shape), kind=kind, block=block, nested=nested)
    more = ", double quantization" if nested else ""
    description = f"bitsandbytes {kind.upper()}, blocks of {block}{more}"
    check(parts, expected, packing.four_bits_config(), description, tolerance=1e-6)


@pytest.mark.parametrize(("dtype", "stored"), [("BF16", np.uint16), ("F32", np.float32)])
def test_bytes_that_are_called_floats_are_the_same_bytes(dtype: str, stored: Any) -> None:
    """bnb_4bit_quant_storage: a BF16 tensor is read as float32 with these bits in its upper half."""
    parts, expected = packing.four_bits(weights(16, 64))
    values = parts.pop("weight").reshape(-1).view(stored)
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    raw = tensor(f"{PREFIX}.weight", values[:, None], dtype)
    found, _ = unpacked({**checkpoint(parts), raw.name: raw}, {"quantization_config": packing.four_bits_config()})
    np.testing.assert_allclose(found[raw.name].read(3, 11), expected[3:11], rtol=1e-6)


def test_llm_int8_is_a_byte_times_the_largest_of_its_row() -> None:
    parts, expected = packing.eight_bits(weights(12, 40))
    check(parts, expected, {"load_in_8bit": True}, "bitsandbytes LLM.int8", tolerance=1e-6)
    with pytest.raises(InvalidModel, match="one kind of GPU"):
        unpacked(
            checkpoint({**parts, "weight_format": np.array(2, np.uint8)}), {"quantization_config": {"load_in_8bit": 1}}
        )


@pytest.mark.parametrize("shape", [[], [8], [2, 2, 2], [-1, 8], [0, 8]])
def test_four_bits_of_a_shape_that_no_matrix_has_are_refused(shape: list[int]) -> None:
    parts, _ = packing.four_bits(weights(16, 64))
    state = next(name for name in parts if "quant_state" in name)
    said = {**json.loads(parts[state].tobytes()), "shape": shape}
    parts[state] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    with pytest.raises(InvalidModel, match="corrupt"):
        unpacked(checkpoint(parts), {"quantization_config": packing.four_bits_config()})


def test_a_layout_of_llm_int8_that_is_no_number_is_refused() -> None:
    parts, _ = packing.eight_bits(weights(12, 40))
    with pytest.raises(InvalidModel, match="one kind of GPU"):
        unpacked(
            checkpoint({**parts, "weight_format": np.array(np.nan, np.float32)}),
            {"quantization_config": {"load_in_8bit": 1}},
        )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_are_scale_times_code_less_zero(bits: int, symmetric: bool) -> None:
    parts, expected = packing.compressed(weights(20, 96), bits=bits, symmetric=symmetric)
    check(parts, expected, packing.compressed_config(bits), f"compressed-tensors, {bits} bits")


@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1), (3, 2)])
def test_fp8_has_a_scale_for_the_whole_for_rows_or_for_blocks(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (40, 24)).astype(np.float32)
    scale = random.uniform(0.5, 2, shape).astype(np.float32)
    if shape == (3, 2):
        expected = codes * np.kron(scale, np.ones((16, 16), np.float32))[:40, :24]
    else:
        expected = codes * scale.reshape(-1, 1)
    parts = {
        f"{PREFIX}.weight": tensor(f"{PREFIX}.weight", codes, "F8_E4M3"),
        f"{PREFIX}.weight_scale_inv": tensor(f"{PREFIX}.weight_scale_inv", scale),
        f"{PREFIX}.input_scale": tensor(f"{PREFIX}.input_scale", np.float32(1).reshape(())),
    }
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    found, said = unpacked(parts, {"quantization_config": config})
    assert said == "FP8"
    assert list(found) == [f"{PREFIX}.weight"]
    np.testing.assert_allclose(found[f"{PREFIX}.weight"].read(5, 33), expected[5:33], rtol=1e-6)


def test_what_is_not_packed_stays_as_it_is() -> None:
    plain = checkpoint({"weight": weights(8, 8)})
    assert unpacked(plain, {}) == (plain, None)
    assert unpacked(plain, {"quantization_config": packing.gptq_config()}) == (plain, None)
    parts, _ = packing.gptq(weights(32, 64))
    with pytest.raises(InvalidModel, match=r"quantize_config\.json"):
        unpacked(checkpoint(parts), {})


@pytest.mark.parametrize("method", ["aqlm", "hqq", "mxfp4", "quanto", "", "x" * 1000])
def test_methods_that_are_not_read_are_named_with_those_that_are(method: str) -> None:
    with pytest.raises(InvalidModel, match="GPTQ, AWQ, bitsandbytes") as caught:
        unpacked({}, {"quantization_config": {"quant_method": method, "x": 1}})
    assert method[:70] in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (packing.gptq_config(checkpoint_format="marlin"), "marlin"),
        (packing.gptq_config(is_marlin_format=True), "not read"),
        (packing.gptq_config(bits=5), "5 bits"),
        (packing.gptq_config(bits="4"), "None bits"),
        (packing.gptq_config(group_size=0), "groups of 0"),
        (packing.awq_config(bits=8), "8 bits"),
        (packing.awq_config(version="gemv_fast"), "gemv_fast"),
        (packing.awq_config(group_size=-2), "groups of -2"),
        (packing.compressed_config(2), "bits"),
        (packing.compressed_config(4, "nvfp4-pack-quantized"), "nvfp4-pack-quantized"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "weight_block_size"),
    ],
)
def test_layouts_that_are_not_read_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    parts, _ = packing.gptq(weights(32, 64))
    with pytest.raises(InvalidModel, match=words):
        unpacked(checkpoint(parts), {"quantization_config": config})


def test_configurations_in_files_of_their_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "quant_config.json").write_text(json.dumps({"w_bit": 4}))
    assert with_quantization({"a": 1}, Files.of_folder(tmp_path)) == {"a": 1, "quantization_config": {"w_bit": 4}}
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 3}))
    assert with_quantization({}, Files.of_folder(tmp_path)) == {"quantization_config": {"bits": 3}}
    own = {"quantization_config": {"bits": 8}}
    assert with_quantization(own, Files.of_folder(tmp_path)) is own


def test_a_name_that_is_there_packed_and_plain_is_refused() -> None:
    parts, _ = packing.gptq(weights(32, 64))
    with pytest.raises(InvalidModel, match="twice"):
        unpacked(checkpoint({**parts, "weight": weights(32, 64)}), {"quantization_config": packing.gptq_config()})


def test_reading_takes_memory_for_the_rows_and_a_bounded_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of 2 Mi words by inputs: no more than a window of its columns is gathered, each column once or so."""
    monkeypatch.setattr(words, "_KEPT_BYTES", 2**20)
    monkeypatch.setattr(words, "_READ_BYTES", 2**18)
    rows_read = 0
    inputs, outputs = 4096, 4096

    def read(start: int, stop: int) -> Array:
        nonlocal rows_read
        rows_read += stop - start
        return np.full((stop - start, outputs), 0x11111111, np.int32)

    tensors = {
        "a.qweight": Tensor("a.qweight", (inputs // 8, outputs), "I32", read),
        "a.qzeros": tensor("a.qzeros", np.zeros((32, outputs // 8), np.int32)),
        "a.scales": tensor("a.scales", np.ones((32, outputs), np.float16)),
    }
    config = packing.gptq_config(group_size=128, checkpoint_format="gptq_v2")
    found, _ = unpacked(tensors, {"quantization_config": config})
    tracemalloc.start()
    for start in range(0, outputs, 128):
        assert float(found["a.weight"].read(start, start + 128).mean()) == 1.0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 2**20
    assert rows_read <= (inputs // 8) * (inputs // 8 * outputs * 4 / 2**20 + 1)


SOUND: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "gptq": (packing.gptq(weights(32, 64), act_order=True)[0], packing.gptq_config()),
    "awq": (packing.awq(weights(16, 64))[0], packing.awq_config()),
    "gemv": (packing.awq(weights(16, 64), layout="gemv")[0], packing.awq_config(version="gemv")),
    "nf4": (packing.four_bits(weights(8, 64))[0], packing.four_bits_config()),
    "int8": (packing.eight_bits(weights(8, 64))[0], {"load_in_8bit": True}),
    "compressed": (packing.compressed(weights(8, 64), symmetric=False)[0], packing.compressed_config()),
}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(SOUND)), st.data())
def test_hostile_tensors_and_configurations_are_refused_with_invalid_model(form: str, data: st.DataObject) -> None:
    parts, config = SOUND[form]
    parts, config = dict(parts), dict(config)
    with np.errstate(all="ignore"), suppress(InvalidModel):
        for _ in range(data.draw(st.integers(1, 3))):
            _spoil(parts, config, data)
        found, _ = unpacked(checkpoint(parts), {"quantization_config": config})
        for made in found.values():
            if made.rows:
                made.read(0, 1)
                made.read(made.rows - 1, made.rows)


def _spoil(parts: dict[str, Array], config: dict[str, Any], data: st.DataObject) -> None:
    what = data.draw(st.sampled_from(["drop", "shape", "type", "values", "config"]))
    name = data.draw(st.sampled_from(sorted(parts))) if parts else ""
    if what == "config" or not name:
        key = data.draw(st.sampled_from([*config, "bits", "group_size", "version", "checkpoint_format"]))
        odd: list[Any] = [0, -1, 1, 3, 7, 2**31, 2**70, True, None, "x", [], {}, [1, 2], {"a": {"weights": {}}}]
        config[key] = data.draw(st.sampled_from(odd))
    elif what == "drop":
        del parts[name]
    elif what == "shape":
        parts[name] = np.resize(parts[name], data.draw(st.lists(st.integers(0, 70), max_size=3)))
    elif what == "type":
        parts[name] = parts[name].astype(data.draw(st.sampled_from(sorted(DTYPES))))
    else:
        old = parts[name]
        noise = data.draw(st.binary(min_size=1, max_size=8)) * (old.nbytes + 1)
        parts[name] = np.frombuffer(noise[: old.nbytes], old.dtype).reshape(old.shape)
