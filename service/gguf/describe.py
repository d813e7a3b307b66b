"""A GGUF file's metadata and tensors as one JSON value on standard output; a short-lived child of the server.

    python -m service.gguf.describe FILE [--arrays]

The header is validated as at an import; only then, and with `--arrays`, are long arrays read whole.
"""

from __future__ import annotations

import argparse
import mmap
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from service.children import bind_to_parent
from service.domain.catalog import TensorInfo
from service.domain.errors import QuantryError
from service.gguf.files import read_header
from service.gguf.header import MAX_HEADER_BYTES, ArrayInfo


class FileDescription(msgspec.Struct, frozen=True):
    """Keys and values in the file's order; arrays are None unless asked for. `error` is set instead for bad files."""

    metadata: dict[str, Any] = {}
    tensors: list[TensorInfo] = []
    error: str | None = None


# GGUF's ids of value types, as struct knows them; 8 is a string, 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def describe(path: Path, *, arrays: bool) -> FileDescription:
    """What the file says of itself. Raises InvalidModel."""
    header = read_header(path)
    metadata = {key: None if isinstance(value, ArrayInfo) else value for key, value in header.metadata.items()}
    if arrays:
        metadata = dict(_everything(path))
    return FileDescription(metadata, list(header.tensors))


def _everything(path: Path) -> Mapping[str, Any]:
    """All pairs of a file whose header has been found to be sound."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        with mmap.mmap(descriptor, min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ) as data:
            return _Reader(data).pairs()
    finally:
        os.close(descriptor)


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 16  # magic, version and the number of tensors

    def pairs(self) -> dict[str, Any]:
        return {self._string(): self._value(self._number("I")) for _ in range(self._number("Q"))}

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element = self._number("I")
            count = self._number("Q")
            if element in _FORMATS:
                return self._numbers(_FORMATS[element], count)
            return [self._value(element) for _ in range(count)]
        return self._number(_FORMATS[kind])

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> list[Any]:
        layout = f"<{count}{code}"
        found = struct.unpack_from(layout, self._data, self._position)
        self._position += struct.calcsize(layout)
        return list(found)

    def _string(self) -> str:
        length = self._number("Q")
        end = self._position + length
        text = self._data[self._position : end].decode("utf-8", "replace")
        self._position = end
        return text


def main() -> int:
    """Entry point of the child."""
    bind_to_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--arrays", action="store_true")
    arguments = parser.parse_args()
    try:
        found = describe(arguments.path, arrays=arguments.arrays)
    except QuantryError as error:
        found = FileDescription(error=error.message)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
