"""compressed-tensors, which LLM Compressor writes: whole numbers of 4 or 8 bits in words, bytes, or 8-bit floats.

"pack-quantized": words run along the inputs in their order, the first in the lowest bits, codes are offset so that none
is negative; zeros, if any, are packed along the outputs. "int-quantized" and "float-quantized": bytes as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor
from service.gguf.packed.fp8 import LEFT_OUT, scaled
from service.gguf.packed.parts import (
    DTYPE,
    Floats,
    Unpacked,
    by_blocks,
    check,
    check_extents,
    check_floats,
    finite,
    multiplied,
    part,
    replaced,
    shown,
    whole,
    word,
)
from service.gguf.packed.words import WORD, WORDS, numbers

_BITS = (4, 8)
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_PARTS = (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")
_REMEDY = "Take the checkpoint that it was made from, or a GGUF file of the model."


def unpack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked:
    """See `service.gguf.packed`."""
    layout = word(config, "format") or ""
    if layout == "dense":
        return Unpacked(tensors, None)
    if layout not in _FORMATS:
        raise InvalidModel(f"compressed-tensors in the format {shown(layout)} are not read. {_REMEDY}")
    bits, block_size = _scheme(config)
    made: dict[str, Tensor] = {}
    dropped = [name for name in tensors if name.endswith(LEFT_OUT)]
    for name, tensor in tensors.items():
        if name.endswith(".weight_packed"):
            prefix = name.removesuffix(".weight_packed")
            made[name] = _packed(tensors, prefix, bits)
        elif name.endswith(".weight") and f"{name}_scale" in tensors:
            prefix = name.removesuffix(".weight")
            made[name] = _bytes(tensors, tensor, part(tensors, f"{name}_scale"), block_size)
        else:
            continue
        dropped += [prefix + ending for ending in _PARTS]
    if not made:
        return Unpacked(tensors, None)
    what = "FP8" if layout == "float-quantized" else f"{bits} bits"
    return Unpacked(replaced(tensors, made, dropped), f"compressed-tensors, {what}")


def _scheme(config: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """Bits and the size of blocks; groups of layers that differ in them are not read."""
    groups = config.get("config_groups")
    found = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    schemes = [weights for weights in found if isinstance(weights, dict)]
    bits = {whole(weights, "num_bits") for weights in schemes}
    if len(bits) != 1 or not bits <= set(_BITS):
        raise InvalidModel(f"compressed-tensors with weights of {sorted(map(str, bits))} bits are not read. {_REMEDY}")
    sizes = schemes[0].get("block_structure")
    if isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes):
        return bits.pop() or 0, (sizes[0], sizes[1])
    return bits.pop() or 0, (128, 128)


def _bytes(tensors: Mapping[str, Tensor], codes: Tensor, scale: Tensor, block_size: tuple[int, int]) -> Tensor:
    if codes.dtype not in ("I8", "F8_E4M3"):
        raise InvalidModel(f"{shown(codes.name)} is {codes.dtype}, not I8 or F8_E4M3; the checkpoint is corrupt.")
    zeros = tensors.get(f"{codes.name}_zero_point")
    if zeros is not None and (zeros.weights > scale.weights or zeros.all().any()):  # at most one for each scale
        raise InvalidModel(f"{shown(codes.name)} has zero points, which are not read for bytes. {_REMEDY}")
    return scaled(codes, scale, block_size)


def _packed(tensors: Mapping[str, Tensor], prefix: str, bits: int) -> Tensor:
    codes, scales = part(tensors, f"{prefix}.weight_packed"), part(tensors, f"{prefix}.weight_scale")
    extents = part(tensors, f"{prefix}.weight_shape")
    check(extents, ("I64", "I32"), (2,))
    rows, width = (int(extent) for extent in extents.all())
    check_extents(f"{prefix}.weight", rows, width)
    per_word = WORD // bits
    check(codes, WORDS, (rows, -(-width // per_word)))
    if len(scales.shape) != 2:
        raise InvalidModel(f"{shown(scales.name)} is no matrix; the checkpoint is corrupt.")
    groups = scales.shape[1]
    check_extents(scales.name, groups)
    check_floats(scales, (rows, groups))
    if groups > width:
        raise InvalidModel(f"{shown(scales.name)} has more groups than inputs; the checkpoint is corrupt.")
    zeros = tensors.get(f"{prefix}.weight_zero_point")
    if zeros is not None:
        check(zeros, WORDS, (-(-rows // per_word), groups))
    order = tensors.get(f"{prefix}.weight_g_idx")
    if order is not None:
        check(order, ("I32", "I64"), (width,))

    def group_numbers() -> NDArray[np.intp] | int:
        if order is None:
            return -(-width // groups)
        found = order.all().astype(np.int64)
        if int(found.max()) < 0:  # all -1: groups in order
            return -(-width // groups)
        if int(found.min()) < 0 or int(found.max()) >= groups:
            raise InvalidModel(f"{shown(prefix)} names groups that are not there; the checkpoint is corrupt.")
        return found

    def zero_points(start: int, stop: int) -> Floats:
        if zeros is None:
            return np.full((stop - start, groups), 1 << (bits - 1), np.float32)
        first, last = start // per_word, -(-stop // per_word)
        found = numbers(zeros.read(first, last).view(np.uint32).T, bits)
        return found[:, start - first * per_word : stop - first * per_word].T.astype(np.float32)

    def block(start: int, stop: int) -> Floats:
        return multiplied(
            numbers(codes.read(start, stop).view(np.uint32), bits)[:, :width],
            zero_points(start, stop),
            finite(scales.read(start, stop), scales.name),
            group_numbers(),
        )

    return Tensor(f"{prefix}.weight", (rows, width), DTYPE, by_blocks(width, block))
