"""GGUF version 1: as version 3, but counts and lengths have 32 bits (ggml's gguf.c of August 2023)."""

from __future__ import annotations

import struct
from pathlib import Path

from service.domain.errors import InvalidModel
from service.gguf.header import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_ARRAY_ELEMENTS,
    MAX_KEY_BYTES,
    MAX_PAIRS,
    MAX_STRING_BYTES,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    padded,
)
from service.gguf.legacy.old_file import Cursor, OldModel, opened, tensor
from service.gguf.rewriting import Part, pair

_STRING, _ARRAY = 8, 9
# Bytes of a value by its kind; 64-bit ones came with version 2, and some writers were ahead of it.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_SMALLEST_PAIR_BYTES = 4 + 1 + 4 + 1
_SMALLEST_TENSOR_BYTES = 4 + 1 + 4 + 4 + 4 + 8


def read(path: Path) -> OldModel:
    """The metadata and tensors of such a file. Raises InvalidModel."""
    with opened(path) as cursor:
        cursor.skip(len(MAGIC) + 4, "its first bytes")
        tensor_count = cursor.number("I", "the number of tensors")
        pair_count = cursor.number("I", "the number of key-value pairs")
        cursor.check_count(pair_count, MAX_PAIRS, _SMALLEST_PAIR_BYTES, "key-value pairs")
        cursor.check_count(tensor_count, MAX_TENSORS, _SMALLEST_TENSOR_BYTES, "tensors")
        pairs = [_pair(cursor) for _ in range(pair_count)]
        infos = []
        offsets = []
        for _ in range(tensor_count):
            name = cursor.counted("a tensor name", MAX_TENSOR_NAME_BYTES)
            dimensions = cursor.number("I", "the shape of a tensor")
            cursor.check_count(dimensions, 4, 4, "dimensions of a tensor")
            shape = cursor.numbers("I", dimensions, "the shape of a tensor")
            infos.append(tensor(name, shape, cursor.number("I", "the type of a tensor")))
            offsets.append(cursor.number("Q", "the offset of a tensor"))
        alignment = _alignment(pairs)
        start = padded(cursor.position, alignment)
        parts = [Part(info, path, start + offset) for info, offset in zip(infos, offsets, strict=True)]
        _check_places(parts, start, cursor.size, alignment)
    return OldModel(pairs, parts, alignment, "GGUF version 1")


def _pair(cursor: Cursor) -> bytes:
    key = cursor.counted("a key", MAX_KEY_BYTES)
    kind = cursor.number("I", "a value")
    return _string(key) + struct.pack("<I", kind) + _value(cursor, kind)


def _value(cursor: Cursor, kind: int) -> bytes:
    if kind == _STRING:
        return _string(cursor.counted("a string", MAX_STRING_BYTES))
    if kind == _ARRAY:
        item = cursor.number("I", "an array")
        count = cursor.number("I", "an array")
        head = struct.pack("<IQ", item, count)
        cursor.check_count(count, MAX_ARRAY_ELEMENTS, 4 if item == _STRING else _size(item), "elements of an array")
        if item == _STRING:
            strings = bytearray(head)
            for _ in range(count):  # one by one: millions of them may be empty
                strings += _string(cursor.counted("a string", MAX_STRING_BYTES))
            return bytes(strings)
        return head + cursor.take(count * _size(item), "an array")
    return cursor.take(_size(kind), "a value")


def _alignment(pairs: list[bytes]) -> int:
    begin = pair("general.alignment", "u32", 0)[:-4]
    for one in pairs:
        if one.startswith(begin):
            value = int.from_bytes(one[len(begin) :], "little")
            if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
                raise InvalidModel(f"general.alignment is {value}, no power of two up to {MAX_ALIGNMENT}.")
            return value
    return DEFAULT_ALIGNMENT


def _size(kind: int) -> int:
    size = _SIZES.get(kind)
    if size is None:
        raise InvalidModel(f"A value has the type {kind}, which GGUF does not know; the file is corrupt.")
    return size


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _check_places(parts: list[Part], start: int, size: int, alignment: int) -> None:
    end = start
    for part in parts:
        if part.start != end:
            raise InvalidModel(f"Tensors overlap, or leave gaps, at {part.tensor.name!a}; the file is corrupt.")
        if part.start + part.tensor.size_bytes > size:
            raise InvalidModel("The file is truncated: tensor data is missing. Download it again.")
        end += padded(part.tensor.size_bytes, alignment)
