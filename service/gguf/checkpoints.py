"""The tensors of a checkpoint, read row by row.

Runs in job children, on files that a stranger chose. Nothing is kept open, so that any number of shards will do, and no
more is in memory than the rows asked for. Knows nothing of architectures, and nothing of what is made of the tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files, open_regular, unreadable
from service.gguf.decoding import decoded
from service.gguf.safetensors import ITEM_BYTES, Entry, read_entries
from service.gguf.shards import shard_names


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint, not read yet.

    `shape` is row-major, as in the checkpoint. `read(start, stop)` gives rows of the first axis, [0, 1) where there is
    none: floats as float32 (exact but for F64), whole numbers as they are. It raises InvalidModel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], NDArray[Any]]

    @property
    def rows(self) -> int:
        """Rows of the first axis; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.shape[1:]

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def all(self) -> NDArray[Any]:
        """The whole of a small tensor, in its shape."""
        return self.read(0, self.rows).reshape(self.shape)


def open_tensors(files: Files, stem: str = "model") -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name, in the order of shards and data. Only headers are read.

    `stem` is what the names of its files begin with, where there are several sets of them. Raises InvalidModel.
    """
    tensors: dict[str, Tensor] = {}
    shards = shard_names(files, stem)
    for shard in shards:
        path = files.path(shard)
        assert path is not None
        for tensor in _tensors_of(shard, path):
            if tensor.name in tensors:
                raise InvalidModel(f"The tensor {tensor.name[:80]!a} is in two of the checkpoint's files.")
            tensors[tensor.name] = tensor
    return tensors


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file as it was when its header was checked."""

    name: str
    path: Path
    identity: tuple[int, int, int, int]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            descriptor = open_regular(self.path)
            try:
                if _identity(os.fstat(descriptor)) != self.identity:
                    raise InvalidModel(f"{self.name[:80]!a} was changed while it was read; start again.")
                done = 0
                while done < len(buffer):
                    count = os.preadv(descriptor, [buffer[done:]], offset + done)
                    if not count:
                        raise InvalidModel(f"{self.name[:80]!a} was cut short while it was read; start again.")
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(self.name, error) from None


def _tensors_of(name: str, path: Path) -> list[Tensor]:
    try:
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            entries = read_entries(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(name, error) from None
    opened = _Opened(name, path, _identity(status))
    return [Tensor(entry.name, entry.shape, entry.dtype, _reader(opened, entry)) for entry in entries]


def _reader(file: _Opened, entry: Entry) -> Callable[[int, int], NDArray[Any]]:
    rows = entry.shape[0] if entry.shape else 1
    row_shape = entry.shape[1:]
    row_bytes = math.prod(row_shape) * ITEM_BYTES[entry.dtype]

    def read(start: int, stop: int) -> NDArray[Any]:
        assert 0 <= start <= stop <= rows
        raw = np.empty((stop - start) * row_bytes, np.uint8)
        if raw.size:
            file.read_into(raw.data, entry.offset + start * row_bytes)
        shape = (stop - start, *row_shape) if entry.shape else (1,)
        return decoded(raw, entry.dtype).reshape(shape)

    return read


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
