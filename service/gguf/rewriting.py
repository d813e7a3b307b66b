"""A new GGUF header over tensor data that stays as it is: what joining pieces and upgrading old files have in common.

Runs in child processes. Knows the bytes of a header and how to copy data within bounded memory, not what they mean.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import GGML_TYPES
from service.gguf.header import DEFAULT_ALIGNMENT, MAGIC, padded
from service.gguf.parsing import parse_header

_CHUNK_BYTES = 4 * 1024 * 1024
_VERSION = 3
_STRING, _ARRAY = 8, 9
# Kinds of value, as `pair` and struct know them, and their ids.
_KINDS = {"u8": (0, "B"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q")}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TYPE_IDS = {ggml.name: number for number, ggml in GGML_TYPES.items()}

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, and the file and byte where its data begins there."""

    tensor: TensorInfo
    path: Path
    start: int


def pair(key: str, kind: str, value: Any) -> bytes:
    """One key-value pair; `kind` is "u8", "u32", "i32", "f32", "bool", "u64", "str" or "arr[...]" of them.

    Strings may be given as bytes, which need not be UTF-8.
    """
    return _string(key) + _value(kind, value)


def _value(kind: str, value: Any) -> bytes:
    if kind == "str":
        return struct.pack("<I", _STRING) + _string(value)
    if kind in _KINDS:
        number, code = _KINDS[kind]
        return struct.pack(f"<I{code}", number, value)
    item = kind[len("arr[") : -1]
    count = struct.pack("<Q", len(value))
    if item == "str":
        return struct.pack("<II", _ARRAY, _STRING) + count + b"".join(map(_string, value))
    number, code = _KINDS[item]
    return struct.pack("<II", _ARRAY, number) + count + struct.pack(f"<{len(value)}{code}", *value)


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def header_bytes(pairs: Sequence[bytes], tensors: Sequence[TensorInfo], alignment: int = DEFAULT_ALIGNMENT) -> bytes:
    """A header of version 3 with these pairs, and tensors that lie one after the other; padded to `alignment`."""
    out = bytearray(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(pairs)))
    for one in pairs:
        out += one
    offset = 0
    for tensor in tensors:
        dimensions = len(tensor.shape)
        out += _string(tensor.name) + struct.pack(f"<I{dimensions}Q", dimensions, *tensor.shape)
        out += struct.pack("<IQ", _TYPE_IDS[tensor.type], offset)
        offset += padded(tensor.size_bytes, alignment)
    out += bytes(-len(out) % alignment)
    return bytes(out)


def pair_bytes(header: bytes) -> Iterator[tuple[str, bytes]]:
    """The key and the bytes of each pair of a header of version 2 or 3 that has been found to be sound."""
    position = len(MAGIC) + 4 + 8
    (count,) = struct.unpack_from("<Q", header, position)
    position += 8
    for _ in range(count):
        start = position
        (length,) = struct.unpack_from("<Q", header, start)
        position = start + 8 + length
        key = header[start + 8 : position].decode()
        position = _behind_value(header, position)
        yield key, header[start:position]


def _behind_value(header: bytes, position: int) -> int:
    (kind,) = struct.unpack_from("<I", header, position)
    position += 4
    count = 1
    if kind == _ARRAY:
        kind, count = struct.unpack_from("<IQ", header, position)
        position += 12
    if kind != _STRING:
        return int(position + count * _SIZES[kind])
    for _ in range(count):
        position += 8 + struct.unpack_from("<Q", header, position)[0]
    return position


def write_file(target: Path, header: bytes, parts: Sequence[Part], alignment: int, progress: Progress) -> None:
    """A new file at `target`: the header, then the data of each tensor, padded; fsynced.

    Raises InvalidModel when the header is none that may be read again, and when a source has become shorter meanwhile;
    and OSError.
    """
    parse_header(header, len(header) + sum(padded(part.tensor.size_bytes, alignment) for part in parts))
    total = sum(part.tensor.size_bytes for part in parts)
    done = 0
    sources: dict[Path, int] = {}
    try:
        with target.open("xb", buffering=0) as output:
            _write(output.fileno(), header)
            for number, part in enumerate(parts, start=1):
                if part.path not in sources:
                    sources[part.path] = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
                size, copied = part.tensor.size_bytes, 0
                while copied < size:
                    wanted = min(_CHUNK_BYTES, size - copied)
                    chunk = os.pread(sources[part.path], wanted, part.start + copied)
                    if not chunk:
                        raise InvalidModel("The file became shorter while it was read; import it when it is complete.")
                    _write(output.fileno(), chunk)
                    copied += len(chunk)
                    done += len(chunk)
                    progress(done / total, f"tensor {number} of {len(parts)}")
                _write(output.fileno(), bytes(-size % alignment))
            os.fsync(output.fileno())
    finally:
        for descriptor in sources.values():
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
