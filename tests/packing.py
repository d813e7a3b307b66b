"""Packers of quantized checkpoints, and what they stand for: written from the papers and layouts, not from the service.

Each packer takes a matrix (outputs, inputs) and gives the tensors that a library would store for it, by the ending of
their names, and the floats that they mean by the definition of the format, as exact float32. Slow and plain: whole
numbers are put together in Python's integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import write_json, write_safetensors

Array = NDArray[Any]
Packed = tuple[dict[str, Array], NDArray[np.float32]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def in_words(codes: Array, bits: int) -> NDArray[np.int32]:
    """Rows of codes as rows of 32-bit words: the first code in the lowest bits, no bit left out."""
    rows = []
    for row in codes:
        value = sum(int(code) << (bits * place) for place, code in enumerate(row))
        words = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(value.to_bytes(4 * words, "little"), "<i4"))
    return np.stack(rows)


def _grid(weight: Array, bits: int, group_of: Array, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Codes (outputs, inputs), zeros and scales (outputs, groups), for each group its own."""
    top = 2**bits - 1
    groups = int(group_of.max()) + 1
    outputs = len(weight)
    codes = np.zeros(weight.shape, np.int64)
    zeros, scales = np.zeros((outputs, groups), np.int64), np.zeros((outputs, groups), np.float16)
    for group in range(groups):
        inside = weight[:, group_of == group].astype(np.float64)
        low, high = np.minimum(inside.min(axis=1), 0), np.maximum(inside.max(axis=1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, group] = np.maximum((high - low) / top, 1e-4)
        step = scales[:, group].astype(np.float64)
        zeros[:, group] = 2 ** (bits - 1) if symmetric else np.clip(np.round(-low / step), 0, top)
        codes[:, group_of == group] = np.clip(np.round(inside / step[:, None]) + zeros[:, [group]], 0, top)
    return codes, zeros, scales


def _meant(codes: Array, zeros: Array, scales: Array, group_of: Array) -> NDArray[np.float32]:
    return (codes - zeros[:, group_of]).astype(np.float32) * scales.astype(np.float32)[:, group_of]


def gptq(
    weight: Array,
    *,
    bits: int = 4,
    group_size: int = 32,
    act_order: bool = False,
    symmetric: bool = False,
    version: int = 1,
    group_index: bool = True,
) -> Packed:
    """AutoGPTQ's tensors. In version 1 zeros lose one as GPTQModel does it: from the word for 2, 4 and 8 bits."""
    inputs = weight.shape[1]
    size = inputs if group_size == -1 else group_size
    group_of = np.arange(inputs) // size
    if act_order:
        group_of = np.random.default_rng(0).permutation(group_of)
    codes, zeros, scales = _grid(weight, bits, group_of, symmetric=symmetric)
    stored = in_words(zeros.T, bits)
    if version == 1 and bits == 3:
        stored = in_words((zeros.T - 1) % 8, bits)
    elif version == 1:
        ones = sum(1 << place for place in range(0, 32, bits))
        stored = (stored.view(np.uint32) - np.uint32(ones)).view(np.int32)
    tensors: dict[str, Array] = {
        "qweight": np.ascontiguousarray(in_words(codes, bits).T),
        "qzeros": stored,
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": group_of.astype(np.int32),
    }
    if not group_index:
        del tensors["g_idx"]
    return tensors, _meant(codes, zeros, scales, group_of)


def gptq_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, **values}


def awq(weight: Array, *, group_size: int = 32, layout: str = "gemm") -> Packed:
    """AutoAWQ's tensors, in its versions gemm and gemv."""
    outputs, inputs = weight.shape
    size = inputs if group_size == -1 else group_size
    group_of = np.arange(inputs) // size
    codes, zeros, scales = _grid(weight, 4, group_of, symmetric=False)
    expected = _meant(codes, zeros, scales, group_of)
    if layout == "gemm":
        order = [8 * word + place for word in range(outputs // 8) for place in AWQ_ORDER]
        tensors: dict[str, Array] = {
            "qweight": in_words(codes.T[:, order], 4),
            "qzeros": in_words(zeros.T[:, order], 4),
            "scales": np.ascontiguousarray(scales.T),
        }
        return tensors, expected
    several = {64: 2, 32: 4}.get(size, 1)
    words = -(-(inputs // size) // 8)
    padding = -(-words // several) * several * 8 - inputs // size
    tensors = {
        "qweight": in_words(codes, 4),
        "qzeros": in_words(np.pad(zeros, ((0, 0), (0, padding))), 4),
        "scales": np.pad(scales, ((0, 0), (0, padding))),
    }
    return tensors, expected


def awq_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", **values}


def nf4_levels() -> NDArray[np.float32]:
    """NormalFloat of QLoRA: quantiles of the normal distribution, eight above zero and seven below, and zero."""
    last = (1 - 1 / 30 + 1 - 1 / 32) / 2
    normal = NormalDist()
    above = [normal.inv_cdf(p) for p in np.linspace(last, 0.5, 9)[:-1]]
    below = [-normal.inv_cdf(p) for p in np.linspace(last, 0.5, 8)[:-1]]
    levels = np.array(sorted([*below, 0.0, *above]))
    return (levels / levels.max()).astype(np.float32)


def fp4_levels() -> NDArray[np.float32]:
    """One sign, two exponent and one fraction bit, as bitsandbytes numbers them; the largest is 1."""
    positive = [0.0, 0.0625, 8, 12, 4, 6, 2, 3]
    return (np.array([*positive, *(-value for value in positive)]) / 12).astype(np.float32)


def four_bits(weight: Array, *, kind: str = "nf4", block: int = 64, nested: bool = True) -> Packed:
    """bitsandbytes' tensors: blocks of the flattened matrix, their scales packed again if `nested`."""
    levels = nf4_levels() if kind == "nf4" else fp4_levels()
    flat = weight.reshape(-1).astype(np.float32)
    blocks = -(-len(flat) // block)
    padded = np.pad(flat, (0, blocks * block - len(flat))).reshape(blocks, block)
    absmax = np.abs(padded).max(axis=1)
    codes = np.abs(padded[:, :, None] / absmax[:, None, None] - levels).argmin(axis=2).reshape(-1)[: len(flat)]
    even = np.pad(codes, (0, len(flat) % 2)).astype(np.uint8)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(weight.shape)}
    tensors: dict[str, Array] = {"weight": (even[0::2] * 16 + even[1::2])[:, None], "weight.quant_map": levels}
    if nested:
        outer = np.linspace(-1, 1, 256, dtype=np.float32) ** 3
        offset = np.float32(absmax.mean())
        groups = -(-blocks // 256)
        shifted = np.pad(absmax - offset, (0, groups * 256 - blocks)).reshape(groups, 256)
        largest = np.maximum(np.abs(shifted).max(axis=1), np.float32(1e-6))
        places = np.abs(shifted[:, :, None] / largest[:, None, None] - outer).argmin(axis=2)
        absmax = (outer[places] * largest[:, None]).reshape(-1)[:blocks] + offset
        tensors |= {
            "weight.absmax": places.reshape(-1)[:blocks].astype(np.uint8),
            "weight.nested_absmax": largest,
            "weight.nested_quant_map": outer,
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
    else:
        tensors["weight.absmax"] = absmax
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = text
    meant = levels[codes] * np.repeat(absmax, block)[: len(flat)]
    return tensors, meant.reshape(weight.shape).astype(np.float32)


def four_bits_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **values}


def eight_bits(weight: Array) -> Packed:
    """LLM.int8's tensors."""
    largest = np.abs(weight).max(axis=1).astype(np.float32)
    codes = np.round(weight / largest[:, None] * 127).astype(np.int8)
    tensors: dict[str, Array] = {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    return tensors, codes.astype(np.float32) * (largest / np.float32(127))[:, None]


def compressed(weight: Array, *, bits: int = 4, group_size: int = 32, symmetric: bool = True) -> Packed:
    """compressed-tensors' "pack-quantized"; `weight_shape` says what the padding hides."""
    group_of = np.arange(weight.shape[1]) // group_size
    codes, zeros, scales = _grid(weight, bits, group_of, symmetric=symmetric)
    tensors: dict[str, Array] = {
        "weight_packed": in_words(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(in_words(zeros.T, bits).T)
    return tensors, _meant(codes, zeros, scales, group_of)


def compressed_config(bits: int = 4, layout: str = "pack-quantized") -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"}}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups}


FORMATS: Mapping[str, tuple[Callable[[Array], Packed], dict[str, Any], str]] = {
    "gptq": (lambda weight: gptq(weight, group_size=64, act_order=True), gptq_config(group_size=64), "GPTQ"),
    "awq": (lambda weight: awq(weight, group_size=64), awq_config(group_size=64), "AWQ"),
    "nf4": (four_bits, four_bits_config(), "NF4"),
    "llm.int8": (eight_bits, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "LLM.int8"),
    "compressed-tensors": (compressed, compressed_config(), "compressed-tensors"),
}
"""A packer of each format, what a checkpoint's configuration says of it, and what it is called."""


def pack_checkpoint(source: Path, packed: Path, plain: Path, form: str) -> None:
    """From the F32 checkpoint `source`: the matrices of its layers packed, and the same with the floats they mean."""
    packer, config, _ = FORMATS[form]
    packed.mkdir()
    plain.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (packed / file.name).write_bytes(file.read_bytes())
            (plain / file.name).write_bytes(file.read_bytes())
    values = json.loads((source / "config.json").read_text())
    write_json(plain / "config.json", values)
    write_json(packed / "config.json", {**values, "quantization_config": config})
    small: dict[str, Array] = {}
    floats: dict[str, Array] = {}
    for name, tensor in read_safetensors(source / "model.safetensors").items():
        if tensor.ndim == 2 and ".layers." in name:
            parts, meant = packer(tensor)
            prefix = name.removesuffix("weight")
            small |= {prefix + ending: part for ending, part in parts.items()}
            floats[name] = meant
        else:
            small[name] = floats[name] = tensor
    write_safetensors(packed / "model.safetensors", small)
    write_safetensors(plain / "model.safetensors", floats)


def read_safetensors(path: Path) -> dict[str, Array]:
    """All tensors of a file of F32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4").reshape(entry["shape"])
    return found
