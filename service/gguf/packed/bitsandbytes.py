"""bitsandbytes: NF4 and FP4 (4 bits, with or without double quantization), and LLM.int8.

4 bits: the weights of a matrix one after the other, two in a byte, the first in the upper half; each is a place in
`quant_map`, multiplied with the `absmax` of its block of weights. With double quantization `absmax` is itself such a
place, in `nested_quant_map`, times the `nested_absmax` of its block, plus an offset. LLM.int8: bytes times SCB / 127.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor
from service.gguf.packed.parts import (
    DTYPE,
    Floats,
    Unpacked,
    by_blocks,
    check,
    check_extents,
    check_floats,
    finite,
    part,
    replaced,
    shown,
)

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
"""How the names of the tensors end that describe 4-bit weights, in JSON."""

_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_MAX_STATE_BYTES = 64 * 1024
_MAX_BLOCK = 2**20
_ROWWISE = 0


class _State(msgspec.Struct):
    quant_type: str
    blocksize: int
    shape: list[int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def unpack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked:
    """See `service.gguf.packed`; what there is to know lies beside each tensor, so `config` says nothing new."""
    del config
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    descriptions: list[str] = []
    for name in tensors:
        ending = next((ending for ending in STATES if name.endswith(ending)), None)
        if ending is not None:
            weight = name.removesuffix(ending)
            made[weight], description = _four_bits(tensors, weight, name)
            dropped += [name, *(weight + other for other in _PARTS)]
            descriptions.append(description)
        elif name.endswith(".SCB"):
            prefix = name.removesuffix(".SCB")
            made[f"{prefix}.weight"] = _eight_bits(tensors, prefix)
            dropped += [name, f"{prefix}.weight_format"]
            descriptions.append("LLM.int8")
    if not made:
        return Unpacked(tensors, None)
    return Unpacked(replaced(tensors, made, dropped), f"bitsandbytes {', '.join(dict.fromkeys(descriptions))}")


# --- 4 bits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FourBits:
    packed: Tensor
    levels: Floats  # 16
    absmax: Tensor
    state: _State
    nested: tuple[Floats, Floats] | None  # levels, and the largest of each block of absmax

    def flat(self, start: int, stop: int) -> Floats:
        """Weights `start` to `stop` of all, row by row."""
        first = start // 2
        raw = _bytes_of(self.packed, first, -(-stop // 2))
        codes = np.empty((len(raw), 2), np.uint8)
        codes[:, 0], codes[:, 1] = raw >> 4, raw & 15
        values = self.levels[codes.reshape(-1)[start - 2 * first : stop - 2 * first]]
        block = self.state.blocksize
        begin, end = start // block, -(-stop // block)
        largest = np.repeat(self._largest(begin, end), block)[start - begin * block : stop - begin * block]
        return finite(values * largest, self.absmax.name)

    def _largest(self, start: int, stop: int) -> Floats:
        found: Floats = self.absmax.read(start, stop).reshape(-1)
        if self.nested is None:
            return found
        levels, largest = self.nested
        blocks = np.arange(start, stop) // self.state.nested_blocksize
        return levels[found.astype(np.uint8)] * largest[blocks] + np.float32(self.state.nested_offset)


def _four_bits(tensors: Mapping[str, Tensor], name: str, state_name: str) -> tuple[Tensor, str]:
    packed, state = part(tensors, name), _state(part(tensors, state_name))
    if len(state.shape) != 2 or not 2 <= state.blocksize <= _MAX_BLOCK:
        raise InvalidModel(
            f"{shown(state_name)} gives {len(state.shape)} dimensions and blocks of {state.blocksize}; it is corrupt."
        )
    check_extents(name, *state.shape)
    weights = math.prod(state.shape)
    _check_bytes(packed, -(-weights // 2))
    levels, absmax = part(tensors, f"{name}.quant_map"), part(tensors, f"{name}.absmax")
    check_floats(levels, (16,))
    blocks = -(-weights // state.blocksize)
    nested = None
    description = f"{state.quant_type.upper()}, blocks of {state.blocksize}"
    if f"{name}.nested_absmax" in tensors:
        check(absmax, ("U8",), (blocks,))
        outer, largest = part(tensors, f"{name}.nested_quant_map"), part(tensors, f"{name}.nested_absmax")
        check_floats(outer, (256,))
        if not 1 <= state.nested_blocksize <= _MAX_BLOCK or not math.isfinite(state.nested_offset):
            raise InvalidModel(f"{shown(state_name)} does not say how the blocks' own scales are packed.")
        check_floats(largest, (-(-blocks // state.nested_blocksize),))
        nested = outer.all(), largest.all()
        description += ", double quantization"
    else:
        check_floats(absmax, (blocks,))
    rows, width = state.shape
    matrix = _FourBits(packed, levels.all(), absmax, state, nested)

    def block(start: int, stop: int) -> Floats:
        return matrix.flat(start * width, stop * width).reshape(stop - start, width)

    return Tensor(name, (rows, width), DTYPE, by_blocks(width, block)), description


def _state(tensor: Tensor) -> _State:
    if tensor.dtype != "U8" or tensor.weights > _MAX_STATE_BYTES:
        raise InvalidModel(f"{shown(tensor.name)} is no text in bytes; the checkpoint is corrupt.")
    try:
        return msgspec.json.decode(tensor.all().tobytes(), type=_State)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InvalidModel(f"{shown(tensor.name)} is not the JSON that it should be; it is corrupt.") from None


# bytes of one stored number, and the type that its bits are read as
_STORED = {"U8": (1, np.uint8), "I8": (1, np.int8), "BF16": (2, np.float32), "F32": (4, np.float32)}


def _check_bytes(packed: Tensor, size: int) -> None:
    """`bnb_4bit_quant_storage` may call the bytes something else, and then there are as many of them."""
    item = _STORED.get(packed.dtype, (0, None))[0]
    if item == 0:
        raise InvalidModel(
            f"{shown(packed.name)} keeps its bytes as {packed.dtype}; {', '.join(_STORED)} are read. Save the "
            "checkpoint again with bnb_4bit_quant_storage=torch.uint8."
        )
    if packed.weights * item != size or packed.rows != packed.weights:
        raise InvalidModel(f"{shown(packed.name)} is not {size} bytes, one after the other; the checkpoint is corrupt.")


def _bytes_of(packed: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
    item = _STORED[packed.dtype][0]
    first = start // item
    values = packed.read(first, -(-stop // item)).reshape(-1)
    if packed.dtype == "BF16":  # reading has put its 16 bits into the upper half of 32
        values = (values.view(np.uint32) >> 16).astype("<u2")
    return values.view(np.uint8)[start - first * item : stop - first * item]


# --- 8 bits ------------------------------------------------------------------------------------------------------


def _eight_bits(tensors: Mapping[str, Tensor], prefix: str) -> Tensor:
    codes, largest = part(tensors, f"{prefix}.weight"), part(tensors, f"{prefix}.SCB")
    if len(codes.shape) != 2:
        raise InvalidModel(f"{shown(codes.name)} is no matrix; the checkpoint is corrupt.")
    rows, width = codes.shape
    check_extents(codes.name, rows, width)
    check(codes, ("I8",), codes.shape)
    check_floats(largest, (rows,))
    layout = tensors.get(f"{prefix}.weight_format")
    if layout is not None and (layout.weights != 1 or layout.all().reshape(-1)[0] != _ROWWISE):
        raise InvalidModel(
            f"{shown(codes.name)} is laid out for one kind of GPU; save the checkpoint again with a bitsandbytes of "
            "0.37.1 or later."
        )

    def block(start: int, stop: int) -> Floats:
        scales = finite(largest.read(start, stop), largest.name) / np.float32(127)
        values: Floats = codes.read(start, stop).astype(np.float32)
        return values * scales[:, None]

    return Tensor(codes.name, codes.shape, DTYPE, by_blocks(width, block))
