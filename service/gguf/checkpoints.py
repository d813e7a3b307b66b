"""A checkpoint in the layout of `transformers`: its files by name, and its tensors, read row by row.

Runs in job children, on files that a stranger chose: names are looked up and never joined to a path, sizes are bounded,
pickles are never opened. Nothing is kept open, so that any number of shards will do, and no more is in memory than the
rows asked for. Knows nothing of architectures, and nothing of what is made of the tensors.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.safetensors import ITEM_BYTES, Entry, read_entries

MAX_FILES = 4096
MAX_SHARDS = 1024
MAX_JSON_BYTES = 64 * 1024 * 1024  # Gemma's tokenizer.json has 33 MB
MAX_JSON_DEPTH = 64
MAX_TEXT_BYTES = 16 * 1024 * 1024
_MAX_JSON_CONTAINERS = 4_000_000

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""How the names of files end that only running the code inside them could read."""

PICKLE_REMEDY = (
    "PyTorch's pickled files (.bin, .pt, .pth, .ckpt) run code when they are read, so they never are. Take the "
    "repository's safetensors files, or save the model again with transformers: model.save_pretrained(folder)."
)

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,180}\.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


class Files:
    """The files of a checkpoint by name: "config.json", and one folder further down "1_Pooling/config.json"."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """`paths` is taken as it is; nothing is opened. Raises InvalidModel when there are too many."""
        if len(paths) > MAX_FILES:
            raise InvalidModel(f"A checkpoint has at most {MAX_FILES} files; this one has {len(paths)}.")
        self._paths = dict(sorted(paths.items()))

    @classmethod
    def of_folder(cls, folder: Path, within: tuple[Path, ...] = ()) -> Files:
        """The regular files of `folder`, symlinks followed, and the `config.json` of its folders.

        With `within`, what lies in none of these folders is an error. Raises InvalidModel, OSError.
        """
        paths: dict[str, Path] = {}
        for count, entry in enumerate(sorted(os.scandir(folder), key=lambda entry: entry.name)):
            if count >= MAX_FILES:
                raise InvalidModel(f"A checkpoint has at most {MAX_FILES} files; give the checkpoint's own folder.")
            path = Path(entry.path)
            if entry.is_file():
                paths[entry.name] = path
            elif entry.is_dir() and (path / "config.json").is_file():
                paths[f"{entry.name}/config.json"] = path / "config.json"
        bounds = [bound.resolve() for bound in within]
        if bounds:
            for name, path in paths.items():
                real = path.resolve()
                if not any(real.is_relative_to(bound) for bound in bounds):
                    raise InvalidModel(
                        f"{name[:80]!a} is a link to somewhere outside of the folders that may be imported from; "
                        "put the file itself there."
                    )
                paths[name] = real
        return cls(paths)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._paths)

    def path(self, name: str) -> Path | None:
        """Where a file lies; None when there is none of that name."""
        return self._paths.get(name)

    def size_bytes(self) -> int:
        """Of all files together. Raises OSError."""
        return sum(path.stat().st_size for path in self._paths.values())

    def content(self, name: str, most_bytes: int = MAX_TEXT_BYTES) -> bytes | None:
        """All bytes of a file; None when there is none of that name. Raises InvalidModel when it has too many."""
        path = self.path(name)
        if path is None:
            return None
        try:
            descriptor = _open(path)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise _unreadable(name, error) from None
        if len(data) > most_bytes:
            raise InvalidModel(f"{name[:80]!a} has more than {most_bytes} bytes, which is too much for such a file.")
        return data

    def text(self, name: str) -> str | None:
        """A text; None when there is none of that name. Raises InvalidModel when it is too long or no UTF-8."""
        data = self.content(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidModel(f"{name[:80]!a} is no UTF-8 text; download it again.") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None when there is no file of that name. Raises InvalidModel when it holds anything else."""
        data = self.content(name, MAX_JSON_BYTES)
        if data is None:
            return None
        if data.count(b"[") + data.count(b"{") > _MAX_JSON_CONTAINERS:
            raise InvalidModel(f"{name[:80]!a} holds more than a model's file would; download it again.")
        try:
            value = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError, MemoryError):  # ValueError: no JSON, no UTF-8, a number of 5,000 digits
            raise InvalidModel(f"{name[:80]!a} is no valid JSON; download it again.") from None
        if not isinstance(value, dict):
            raise InvalidModel(f"{name[:80]!a} is no JSON object; download it again.")
        if _depth_exceeds(value, MAX_JSON_DEPTH):
            raise InvalidModel(f"{name[:80]!a} is nested more than {MAX_JSON_DEPTH} deep; download it again.")
        return value


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


def shard_names(files: Files, stem: str = "model") -> tuple[str, ...]:
    """The safetensors files that make up the checkpoint, by its index or by their names.

    Raises InvalidModel when one is missing, when there is none, and when it is unclear which are meant.
    """
    found = [name for name in files.names if name.endswith(".safetensors") and "/" not in name]
    index = _index_of(files, stem)
    if index is not None:
        return _indexed(files, index)
    if f"{stem}.safetensors" in found:
        return (f"{stem}.safetensors",)
    numbered = [(match, name) for name in found if (match := _NUMBERED.fullmatch(name))]
    stems = {match["stem"] for match, _ in numbered}
    chosen = stem if stem in stems else next(iter(stems)) if len(stems) == 1 else None
    if chosen is not None:
        return _complete([(match, name) for match, name in numbered if match["stem"] == chosen])
    if len(found) == 1 and _SHARD.fullmatch(found[0]):
        return (found[0],)
    if found:
        raise InvalidModel(
            f"The checkpoint has {len(found)} safetensors files and no {stem}.safetensors.index.json that says which "
            "belong together; download it with its index."
        )
    if any(name.endswith(PICKLES) for name in files.names):
        raise InvalidModel(f"The checkpoint has no safetensors files. {PICKLE_REMEDY}")
    raise InvalidModel("The checkpoint has no safetensors files; download it with them.")


def _index_of(files: Files, stem: str) -> str | None:
    ending = ".safetensors.index.json"
    if f"{stem}{ending}" in files.names:
        return f"{stem}{ending}"
    others = [name for name in files.names if name.endswith(ending)]
    return others[0] if len(others) == 1 and f"{stem}.safetensors" not in files.names else None


def _indexed(files: Files, index: str) -> tuple[str, ...]:
    weight_map = (files.json(index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidModel(f"{index[:80]!a} has no weight_map; download it again.")
    named = weight_map.values()
    shards = sorted({name for name in named if isinstance(name, str) and _SHARD.fullmatch(name)})
    if len(shards) > MAX_SHARDS or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in named):
        raise InvalidModel(f"{index[:80]!a} names files that are no shards of a checkpoint; download it again.")
    missing = [name for name in shards if files.path(name) is None]
    if missing:
        raise InvalidModel(
            f"The checkpoint is incomplete: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ". Download the rest."
        )
    return tuple(shards)


def _complete(numbered: list[tuple[re.Match[str], str]]) -> tuple[str, ...]:
    counts = {int(match["count"]) for match, _ in numbered}
    numbers = {int(match["number"]) for match, _ in numbered}
    count = max(counts)
    if len(counts) != 1 or count > MAX_SHARDS:
        raise InvalidModel("The checkpoint's shards do not belong to one set; give the folder of one checkpoint.")
    missing = sorted(set(range(1, count + 1)) - numbers)
    if missing or len(numbers) != count:
        raise InvalidModel(f"The checkpoint is incomplete: shard {(missing or [0])[0]} of {count} is missing.")
    return tuple(sorted(name for _, name in numbered))


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file as it was when its header was checked."""

    name: str
    path: Path
    identity: tuple[int, int, int, int]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            descriptor = _open(self.path)
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
            raise _unreadable(self.name, error) from None


def _tensors_of(name: str, path: Path) -> list[Tensor]:
    try:
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
            entries = read_entries(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(name, error) from None
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
        return _DECODERS[entry.dtype](raw).reshape(shape)

    return read


def _as(dtype: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda raw: raw.view(dtype)


def _float(dtype: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda raw: raw.view(dtype).astype(np.float32)


def _bfloat16(raw: NDArray[np.uint8]) -> NDArray[Any]:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _looked_up(table: NDArray[np.float32]) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda raw: table[raw]


def _e4m3() -> NDArray[np.float32]:
    """OCP 8-bit floating point, E4M3: bias 7, no infinities, NaN where all bits but the sign are set."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    """OCP 8-bit floating point, E5M2: the upper half of an IEEE half."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def _e8m0() -> NDArray[np.float32]:
    """OCP 8-bit scale: a power of two, bias 127, NaN at the top."""
    scales = np.exp2(np.arange(256, dtype=np.float64) - 127)
    scales[255] = np.nan
    return scales.astype(np.float32)


_DECODERS: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "BOOL": _as("u1"),
    "U8": _as("u1"),
    "I8": _as("i1"),
    "U16": _as("<u2"),
    "I16": _as("<i2"),
    "U32": _as("<u4"),
    "I32": _as("<i4"),
    "U64": _as("<u8"),
    "I64": _as("<i8"),
    "F32": _as("<f4"),
    "F16": _float("<f2"),
    "F64": _float("<f8"),
    "BF16": _bfloat16,
    "F8_E4M3": _looked_up(_e4m3()),
    "F8_E5M2": _looked_up(_e5m2()),
    "F8_E8M0": _looked_up(_e8m0()),
}


def _open(path: Path) -> int:
    """Raises OSError, also for what is no regular file; a named pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file")
    return descriptor


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _depth_exceeds(value: object, most: int) -> bool:
    level: list[Any] = [value]
    for _ in range(most):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _unreadable(name: str, error: OSError) -> InvalidModel:
    reason = error.strerror or "it is no regular file"
    return InvalidModel(f"{name[:80]!a} cannot be read: {reason}. Check that it is there and readable.")
