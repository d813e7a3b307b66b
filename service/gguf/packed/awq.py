"""AWQ, in the layouts of AutoAWQ: (code - zero) * scale, one zero and one scale for a group of inputs, 4 bits.

In "gemm", the usual one, words run along the outputs, and hold eight of them in the order 0 2 4 6 1 3 5 7, lowest bits
first; a row is one input. In "gemv", words run along the inputs in their order, a row is one output, and zeros and
scales are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor
from service.gguf.header import padded
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
from service.gguf.packed.words import WORDS, Columns, Words, columns, numbers

_BITS = 4
_PER_WORD = 8
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = (".qweight", ".qzeros", ".scales")
_REMEDY = "Take the checkpoint that it was made from, or save it again with AutoAWQ in the version gemm."

_Opened = tuple[tuple[int, int], Callable[[int, int], Floats]]


def unpack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked:
    """See `service.gguf.packed`."""
    bits, size = whole(config, "bits", "w_bit"), whole(config, "group_size", "q_group_size")
    layout = word(config, "version", "checkpoint_format", "format") or "gemm"
    if bits != _BITS:
        raise InvalidModel(f"AWQ with {bits} bits is not read; 4 are. {_REMEDY}")
    if layout not in ("gemm", "gemv"):
        raise InvalidModel(f"AWQ checkpoints in the version {shown(layout)} are not read. {_REMEDY}")
    if size is None or (size < 1 and size != -1):
        raise InvalidModel(f"AWQ with groups of {size} inputs cannot be; the configuration is corrupt.")
    kept = Columns()
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        prefix = name.removesuffix(".qweight")
        shape, block = _gemv(tensors, prefix, size) if layout == "gemv" else _gemm(tensors, prefix, size, kept)
        made[name] = Tensor(f"{prefix}.weight", shape, DTYPE, by_blocks(shape[1], block))
        dropped += [prefix + ending for ending in _PARTS]
    if not made:
        return Unpacked(tensors, None)
    groups = "one group a row" if size == -1 else f"groups of {size}"
    return Unpacked(replaced(tensors, made, dropped), f"AWQ, {bits} bits, {groups}")


def _parts(tensors: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    codes, zeros, scales = (part(tensors, prefix + ending) for ending in _PARTS)
    if len(codes.shape) != 2:
        raise InvalidModel(f"{shown(codes.name)} is no matrix; the checkpoint is corrupt.")
    return codes, zeros, scales


def _grouped(prefix: str, inputs: int, size: int) -> tuple[int, int]:
    """The size and the number of the groups."""
    size = inputs if size == -1 else size
    if inputs % size:
        raise InvalidModel(f"{shown(prefix)} has {inputs} inputs, which groups of {size} do not fill.")
    return size, inputs // size


def _gemm(tensors: Mapping[str, Tensor], prefix: str, size: int, kept: Columns) -> _Opened:
    codes, zeros, scales = _parts(tensors, prefix)
    inputs, words = codes.shape
    outputs = words * _PER_WORD
    check_extents(prefix, outputs, inputs)
    size, groups = _grouped(prefix, inputs, size)
    check(codes, WORDS, (inputs, words))
    check(zeros, WORDS, (groups, words))
    check_floats(scales, (groups, outputs))

    def block(start: int, stop: int) -> Floats:
        first, last = start // _PER_WORD, -(-stop // _PER_WORD)
        inside = slice(start - first * _PER_WORD, stop - first * _PER_WORD)
        zero_words: Words = columns(zeros, first, last).view(np.uint32).T
        return multiplied(
            _outputs(kept.rows(codes, first, last))[inside],
            _outputs(zero_words)[inside].astype(np.float32),
            finite(columns(scales, start, stop).T.astype(np.float32), scales.name),
            size,
        )

    return (outputs, inputs), block


def _outputs(words: Words) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A row for each output, out of one for each word."""
    found = np.empty((len(words), _PER_WORD, words.shape[1]), np.uint8)
    for place, output in enumerate(_ORDER):
        found[:, output] = (words >> np.uint32(_BITS * place)) & 15
    return found.reshape(len(words) * _PER_WORD, words.shape[1])


def _gemv(tensors: Mapping[str, Tensor], prefix: str, size: int) -> _Opened:
    codes, zeros, scales = _parts(tensors, prefix)
    outputs, words = codes.shape
    inputs = words * _PER_WORD
    check_extents(prefix, outputs, inputs)
    size, groups = _grouped(prefix, inputs, size)
    # Rows of zeros are padded to what the kernel loads at once: one word for groups of 128, two for 64, four for 32.
    several = {64: 2, 32: 4}.get(size, 1)
    zero_words = padded(padded(groups, _PER_WORD) // _PER_WORD, several)
    check(codes, WORDS, (outputs, words))
    check(zeros, WORDS, (outputs, zero_words))
    check_floats(scales, (outputs, zero_words * _PER_WORD))

    def block(start: int, stop: int) -> Floats:
        return multiplied(
            numbers(codes.read(start, stop).view(np.uint32), _BITS),
            numbers(zeros.read(start, stop).view(np.uint32), _BITS)[:, :groups].astype(np.float32),
            finite(scales.read(start, stop)[:, :groups], scales.name),
            size,
        )

    return (outputs, inputs), block
