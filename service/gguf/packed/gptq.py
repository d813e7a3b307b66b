"""GPTQ, in the layout of AutoGPTQ and GPTQModel: (code - zero) * scale, one zero and one scale for a group of inputs.

`qweight` has the codes of each output in a column, packed along the inputs; `qzeros` those of the zeros, packed along
the outputs; `g_idx` the group of each input, which follows no order where `desc_act` sorted them. In checkpoint_format
"gptq" (v1) zeros are stored less one, in "gptq_v2" as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    multiplied,
    part,
    replaced,
    shown,
    whole,
    word,
)
from service.gguf.packed.words import WORD, WORDS, Columns, Words, columns, numbers, unit

_BITS = (2, 3, 4, 8)
_FORMATS = {"gptq": True, "gptq_v2": False}
_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
_REMEDY = "Take the checkpoint that it was made from, or save it again with GPTQModel in the format gptq."


def unpack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked:
    """See `service.gguf.packed`."""
    layout = word(config, "checkpoint_format", "format") or "gptq"
    if layout not in _FORMATS or config.get("is_marlin_format") is True:
        raise InvalidModel(f"GPTQ checkpoints in the format {shown(layout)} are not read. {_REMEDY}")
    stated_bits, size = whole(config, "bits"), whole(config, "group_size")
    if stated_bits not in _BITS:
        raise InvalidModel(f"GPTQ with {stated_bits} bits is not read; 2, 3, 4 and 8 are. {_REMEDY}")
    if size is None or (size < 1 and size != -1):
        raise InvalidModel(f"GPTQ with groups of {size} inputs cannot be; the configuration is corrupt.")
    kept = Columns()
    made: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        prefix = name.removesuffix(".qweight")
        matrix = _Matrix(tensors, prefix, stated_bits, size, _FORMATS[layout], config.get("sym") is True, kept)
        made[name] = Tensor(f"{prefix}.weight", matrix.shape, DTYPE, by_blocks(matrix.inputs, matrix.block))
        dropped += [prefix + ending for ending in _PARTS]
        bias = tensors.get(f"{prefix}.bias")
        # AutoGPTQ up to 0.4 gave every layer a bias, of zeros where the model has none.
        if bias is not None and bias.shape == matrix.shape[:1] and not bias.all().any():
            dropped.append(bias.name)
    if not made:
        return Unpacked(tensors, None)
    groups = "one group a row" if size == -1 else f"groups of {size}"
    return Unpacked(replaced(tensors, made, dropped), f"GPTQ, {stated_bits} bits, {groups}")


class _Matrix:
    """One packed matrix whose parts fit each other. Raises InvalidModel when they do not."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        prefix: str,
        bits: int,
        group_size: int,
        zeros_less_one: bool,
        symmetric: bool,
        kept: Columns,
    ) -> None:
        self._codes = part(tensors, f"{prefix}.qweight")
        self._scales = part(tensors, f"{prefix}.scales")
        self._group_of = tensors.get(f"{prefix}.g_idx")
        self._kept = kept
        self._zeros_less_one = zeros_less_one
        if len(self._codes.shape) != 2 or len(self._scales.shape) != 2:
            raise InvalidModel(f"{shown(self._codes.name)} or its scales are no matrix; the checkpoint is corrupt.")
        words, outputs = self._codes.shape
        self.inputs, self._bits = self._extent(words, bits)
        self.shape = (outputs, self.inputs)
        check_extents(f"{prefix}.weight", *self.shape)
        check(self._codes, WORDS, (words, outputs))
        self._size = self.inputs if group_size == -1 else group_size
        self._groups = -(-self.inputs // self._size)
        if self._group_of is not None:
            check(self._group_of, ("I32", "I64"), (self.inputs,))
            self._groups = self._scales.shape[0]
        check_extents(f"{prefix}.scales", self._groups)
        check_floats(self._scales, (self._groups, outputs))
        self._zeros = tensors.get(f"{prefix}.qzeros")
        if self._zeros is None and not symmetric:
            part(tensors, f"{prefix}.qzeros")
        if self._zeros is not None:
            unit_words, unit_numbers = unit(self._bits)
            check(self._zeros, WORDS, (self._groups, -(-outputs // unit_numbers) * unit_words))

    def _extent(self, words: int, bits: int) -> tuple[int, int]:
        """How many inputs, of how many bits: GPTQModel's `dynamic` may give a matrix other bits than the rest."""
        if self._group_of is None:
            return words * WORD // bits, bits
        inputs = self._group_of.rows
        for candidate in (bits, *_BITS):
            unit_words, unit_numbers = unit(candidate)
            if words == -(-inputs // unit_numbers) * unit_words:
                return inputs, candidate
        raise InvalidModel(
            f"{shown(self._codes.name)} has {words} words for {inputs} inputs, which is none of 2, 3, 4 and 8 bits; "
            "the checkpoint is corrupt."
        )

    def block(self, start: int, stop: int) -> Floats:
        """Rows of the matrix, which are few."""
        codes = numbers(self._kept.rows(self._codes, start, stop), self._bits)[:, : self.inputs]
        scales = finite(columns(self._scales, start, stop).T.astype(np.float32), self._scales.name)
        return multiplied(codes, self._zero_points(start, stop), scales, self._group_numbers())

    def _group_numbers(self) -> NDArray[np.intp] | int:
        if self._group_of is None:
            return self._size
        found = self._group_of.all().astype(np.int64)
        if int(found.min()) < 0 or int(found.max()) >= self._groups:
            raise InvalidModel(f"{shown(self._group_of.name)} names groups that are not there; it is corrupt.")
        if self.inputs % self._groups == 0:
            size = self.inputs // self._groups
            if np.array_equal(found, np.arange(self.inputs) // size):
                return size
        return found

    def _zero_points(self, start: int, stop: int) -> Floats:
        if self._zeros is None:
            return np.full((stop - start, self._groups), 1 << (self._bits - 1), np.float32)
        unit_words, unit_numbers = unit(self._bits)
        first, last = start // unit_numbers, -(-stop // unit_numbers)
        words: Words = columns(self._zeros, first * unit_words, last * unit_words).view(np.uint32)
        found = _plus_one(words, self._bits) if self._zeros_less_one else numbers(words, self._bits)
        return found[:, start - first * unit_numbers : stop - first * unit_numbers].T.astype(np.float32)


def _plus_one(words: Words, bits: int) -> NDArray[np.uint8]:
    """The zeros of a v1 file. GPTQModel takes one from each by one subtraction from the word, with borrows between
    neighbours where a zero is 0, so that it is undone by one addition; for 3 bits, which span words, from each.
    """
    if bits == 3:
        return (numbers(words, bits) + np.uint8(1)) & np.uint8(7)
    ones = sum(1 << place for place in range(0, WORD, bits))
    return numbers(words + np.uint32(ones), bits)
