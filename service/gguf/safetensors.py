"""The header of a safetensors file: which tensors it says it holds, and where, each claim checked.

Runs in job children, on bytes that a stranger chose. Layout: u64 length of the header (little-endian), the header in
JSON, the data; offsets count from the start of the data, which the tensors fill without gap or overlap. Nothing but
InvalidModel escapes, and memory stays bounded. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass

import msgspec

from service.domain.errors import InvalidModel

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 200_000  # of one file
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 1024
_MAX_WEIGHTS = 2**56  # whose bytes 64 bits can count
# Quotation marks per tensor: of its name, of three keys and of the type; the rest is for `__metadata__`.
_MAX_QUOTES = 10 * MAX_TENSORS + 1_000_000
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element, by the type's name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: `offset` and `size_bytes` in bytes, from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class _Described(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_entries(descriptor: int, size: int) -> tuple[Entry, ...]:
    """The tensors of an open file of `size` bytes, in the order of their data. Raises InvalidModel, OSError."""
    start = os.pread(descriptor, 8, 0)
    if len(start) < 8:
        raise InvalidModel("A safetensors file is cut short; download it again.")
    (length,) = _LENGTH.unpack(start)
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise InvalidModel(
            f"A safetensors file gives its header {length} bytes, which it does not hold; download it again."
        )
    header = bytearray()
    while len(header) < length:
        chunk = os.pread(descriptor, length - len(header), 8 + len(header))
        if not chunk:
            raise InvalidModel("A safetensors file is cut short; download it again.")
        header += chunk
    return parse_header(bytes(header), size)


def parse_header(header: bytes, size: int) -> tuple[Entry, ...]:
    """The tensors that the JSON `header` of a file of `size` bytes describes. Raises InvalidModel. Pure."""
    data = 8 + len(header)
    entries = [_entry(name, described, data) for name, described in _decoded(header).items()]
    # Empty tensors lie between others, so they come first among equals.
    entries.sort(key=lambda entry: (entry.offset, entry.size_bytes))
    end = data
    for entry in entries:
        if entry.offset != end:
            raise _corrupt(f"the data of {_shown(entry.name)} overlaps another's, or leaves a gap")
        end += entry.size_bytes
    if end != size:
        raise _corrupt(f"it has {size - data} bytes of data where its tensors take {end - data}")
    return tuple(entries)


def _decoded(header: bytes) -> dict[str, _Described]:
    if not header.startswith(b"{"):
        raise _corrupt("its header is no JSON object")
    if header.count(b'"') > _MAX_QUOTES:
        raise _corrupt(f"its header describes more than {MAX_TENSORS} tensors")
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop(_METADATA, None)
        return {name: msgspec.json.decode(value, type=_Described) for name, value in raw.items()}
    except (msgspec.DecodeError, ValueError, RecursionError, MemoryError):
        raise _corrupt("its header is not the JSON that it should be") from None


def _entry(name: str, described: _Described, data: int) -> Entry:
    if len(name) > MAX_NAME_CHARACTERS:
        raise _corrupt("it has a tensor with an endless name")
    item = ITEM_BYTES.get(described.dtype)
    if item is None:
        raise InvalidModel(
            f"The tensor {_shown(name)} has the type {_shown(described.dtype)}; known are {', '.join(ITEM_BYTES)}. "
            "Take a checkpoint in BF16, F16 or F32."
        )
    if len(described.shape) > MAX_DIMENSIONS:
        raise _corrupt(f"{_shown(name)} has {len(described.shape)} dimensions")
    # Python's integers do not wrap around, whatever the extents are; the bound keeps what follows in 64 bits, also
    # where an extent of 0 makes an empty tensor of any shape.
    if min(described.shape, default=0) < 0 or math.prod(max(1, extent) for extent in described.shape) > _MAX_WEIGHTS:
        raise _corrupt(f"{_shown(name)} has an impossible shape")
    weights = math.prod(described.shape)
    begin, end = described.data_offsets
    if begin < 0 or end - begin != weights * item:
        raise _corrupt(f"the shape of {_shown(name)} does not fit the bytes it is given")
    return Entry(name, described.dtype, tuple(described.shape), data + begin, end - begin)


def _shown(name: str) -> str:
    return ascii(name[:80])


def _corrupt(what: str) -> InvalidModel:
    return InvalidModel(f"A safetensors file is corrupt: {what}. Download it again.")
