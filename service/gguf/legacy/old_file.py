"""A cursor over an old model file, every length checked before it is used; and what is found in one.

Knows no format. Nothing but InvalidModel escapes.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import GGML_TYPES
from service.gguf.header import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSOR_NAME_BYTES,
    MAX_WEIGHTS,
    tensor_bytes,
    weights,
)
from service.gguf.rewriting import Part

_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class OldModel:
    """What an old file becomes: pairs as bytes of GGUF version 3, tensors where they lie, and a line for people."""

    pairs: Sequence[bytes]
    parts: Sequence[Part]
    alignment: int
    description: str


@contextmanager
def opened(path: Path) -> Iterator[Cursor]:
    """A cursor at the start of the file. What goes wrong with the file itself becomes InvalidModel."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidModel("That is no regular file; give the path of a model file.")
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
                yield Cursor(path, data)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise InvalidModel(f"The file cannot be read ({type(error).__name__}). Check the disk it lies on.") from None


class Cursor:
    """Steps over a mapped file; every method leaves it behind what it read, or raises InvalidModel."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self.size = len(data)
        self._data = data
        self._budget = MAX_HEADER_BYTES

    def take(self, size: int, what: str) -> bytes:
        """The next bytes; all that is taken, metadata that is, has a budget."""
        start = self.skip(size, what)
        self._budget -= size
        if self._budget < 0:
            raise InvalidModel(f"The metadata is larger than {MAX_HEADER_BYTES // 2**20} MiB; the file is corrupt.")
        return self._data[start : start + size]

    def skip(self, size: int, what: str) -> int:
        """Step over bytes, and say where they begin."""
        start = self.position
        if size > self.size - start:
            raise InvalidModel(
                f"The file ends inside {what}: {size} bytes are needed at byte {start}, {self.size - start} are left. "
                "It is truncated or corrupt: download it again."
            )
        self.position = start + size
        return start

    def numbers(self, code: str, count: int, what: str) -> tuple[int, ...]:
        """Whole numbers of one kind, as struct calls it."""
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack(self.take(layout.size, what))

    def number(self, code: str, what: str) -> int:
        """One whole number."""
        return self.numbers(code, 1, what)[0]

    def fraction(self, what: str) -> float:
        """One 32-bit float."""
        value: float = _FLOAT.unpack(self.take(_FLOAT.size, what))[0]
        return value

    def counted(self, what: str, limit: int) -> bytes:
        """Bytes behind their 32-bit length."""
        length = self.number("I", f"the length of {what}")
        if length > limit:
            raise InvalidModel(f"The length of {what} is {length} bytes; {limit} are allowed. The file is corrupt.")
        return self.take(length, what)

    def check_count(self, count: int, limit: int, smallest_bytes: int, what: str) -> None:
        """Refuse counts over a limit, and those that the rest of the file cannot hold."""
        if count > limit or count * smallest_bytes > self.size - self.position:
            raise InvalidModel(f"The file announces {count} {what}, which it cannot hold. It is truncated or corrupt.")


def tensor(raw_name: bytes, shape: tuple[int, ...], kind: int) -> TensorInfo:
    """A tensor as GGUF knows it; `shape` is ggml's, rows last. Raises InvalidModel for what no tensor can be."""
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable() or len(raw_name) > MAX_TENSOR_NAME_BYTES:
        raise InvalidModel("The name of a tensor is empty, too long or no text; the file is corrupt.")
    ggml = GGML_TYPES.get(kind)
    if ggml is None:
        raise InvalidModel(
            f"The type of tensor {name!a} is {kind}, which llama.cpp no longer reads; fetch the model's GGUF instead."
        )
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1 or weights(shape) > MAX_WEIGHTS:
        raise InvalidModel(f"The shape of tensor {name!a} is {list(shape)}, which no tensor can have.")
    if shape[0] % ggml.block_weights:
        raise InvalidModel(
            f"The rows of tensor {name!a} hold {shape[0]} weights, which blocks of {ggml.block_weights} ({ggml.name}) "
            "do not fill; the file is corrupt, or made for blocks of another size. Fetch the model's GGUF instead."
        )
    return TensorInfo(name, shape, ggml.name, tensor_bytes(shape, ggml.name))
