"""Weights of 8-bit floats with scales: of blocks of a matrix (DeepSeek's `weight_scale_inv`), of rows, of it all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor
from service.gguf.packed.parts import (
    DTYPE,
    Floats,
    Unpacked,
    by_blocks,
    check_extents,
    check_floats,
    finite,
    part,
    replaced,
    shown,
)

_TYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALES = (".weight_scale_inv", ".weight_scale")
# What activations are scaled with; the weights alone are converted.
LEFT_OUT = (".input_scale", ".activation_scale", ".output_scale", ".k_scale", ".v_scale", ".input_scale_ub")
_FULL_BLOCK = (128, 128)


def unpack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked:
    """See `service.gguf.packed`."""
    sizes = config.get("weight_block_size")
    block_size = _FULL_BLOCK
    if isinstance(sizes, list):
        if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InvalidModel("weight_block_size is not two whole numbers; the configuration is corrupt.")
        block_size = (sizes[0], sizes[1])
    made: dict[str, Tensor] = {}
    dropped = [name for name in tensors if name.endswith(LEFT_OUT)]
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES or not name.endswith(".weight"):
            continue
        prefix = name.removesuffix(".weight")
        scales = [prefix + ending for ending in _SCALES if prefix + ending in tensors]
        made[name] = scaled(tensor, part(tensors, (scales or [f"{prefix}.weight_scale"])[0]), block_size)
        dropped += scales
    if not made:
        return Unpacked(tensors, None)
    return Unpacked(replaced(tensors, made, dropped), "FP8")


def scaled(codes: Tensor, scale: Tensor, block_size: tuple[int, int]) -> Tensor:
    """`codes`, numbers of 8 bits, times `scale`: one number, one for each row, or one for each block."""
    if len(codes.shape) != 2:
        raise InvalidModel(f"{shown(codes.name)} is no matrix; the checkpoint is corrupt.")
    rows, width = codes.shape
    check_extents(codes.name, rows, width)
    if scale.shape in ((), (1,), (1, 1)):
        high, wide, grid = rows, width, (1, 1)
    elif scale.shape in ((rows,), (rows, 1)):
        high, wide, grid = 1, width, (rows, 1)
    else:
        high, wide = block_size
        grid = (-(-rows // high), -(-width // wide))
        check_floats(scale, grid)
    check_floats(scale, scale.shape)

    def block(start: int, stop: int) -> Floats:
        first, last = start // high, -(-stop // high)
        scales = finite(scale.read(first, last), scale.name).reshape(last - first, grid[1])
        columns = scales if grid[1] == 1 else np.repeat(scales, wide, axis=1)[:, :width]
        values: Floats = codes.read(start, stop).astype(np.float32)
        return values * columns[np.arange(start, stop) // high - first]

    return Tensor(codes.name, codes.shape, DTYPE, by_blocks(width, block))
