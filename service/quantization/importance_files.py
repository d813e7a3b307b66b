"""Importance matrices as files: llama-imatrix's GGUF in and out, its older .dat in.

Child processes only. Files come from strangers: every count and length is checked before it is used, and nothing but
InvalidModel escapes. What is written is a function of the values alone, so that equal matrices have equal digests.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.header import MAGIC, MAX_HEADER_BYTES, MAX_TENSOR_NAME_BYTES, Header, padded
from service.gguf.parsing import parse_header
from service.quantization.importance import MAX_CHUNKS, Entry, Importance

_SUMS, _COUNTS = ".in_sum2", ".counts"
MAX_WEIGHT_NAME_BYTES = MAX_TENSOR_NAME_BYTES - len(_SUMS)
"""A longer name of a weight has no room in the format."""

_TYPE_KEY = "general.type"
_DATASETS_KEY = "imatrix.datasets"
_CHUNKS_KEY = "imatrix.chunk_count"
_CHUNK_TOKENS_KEY = "imatrix.chunk_size"

_MAX_BYTES = 8 * 1024**3  # a mixture of 1.6e12 weights needs about 2 GiB
_MAX_ENTRIES = 65_536
_MAX_CHUNK_TOKENS = 2**24
_MAX_DATASETS = 64
_MAX_DATASET_CHARACTERS = 200
_LEGACY_CHUNK_TOKENS = 512  # what llama-imatrix takes them for; the file does not say
_GET_AGAIN = "get it again, or compute one here"

_ALIGNMENT = 32
_GGUF_U32, _GGUF_STRING, _GGUF_ARRAY = 4, 8, 9
_GGML_F32 = 0


# --- reading -----------------------------------------------------------------------------------------------------


def read_importance(path: Path) -> Importance:
    """The importance matrix in a file of either format. Raises InvalidModel for whatever else the file may be."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "no such path"
        raise InvalidModel(f"The importance matrix cannot be opened: {reason}. Check that it is there.") from None
    try:
        return _read(descriptor)
    except (OSError, ValueError) as error:
        raise InvalidModel(f"The importance matrix cannot be read ({type(error).__name__}). Check the disk.") from None
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Importance:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel("That is no regular file; give the path of an importance matrix.")
    size = status.st_size
    if not 0 < size <= _MAX_BYTES:
        raise InvalidModel(
            f"The importance matrix has {size} bytes; 1 to {_MAX_BYTES} are read. {_capital(_GET_AGAIN)}."
        )
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            return _legacy(data)
        header = parse_header(data if size <= MAX_HEADER_BYTES else data[:MAX_HEADER_BYTES], size)
        return _from_gguf(header, data)


def _from_gguf(header: Header, data: mmap.mmap) -> Importance:
    if header.text(_TYPE_KEY) != "imatrix":
        raise InvalidModel(
            f"The file is a GGUF and no importance matrix (general.type is {header.text(_TYPE_KEY) or 'missing'!a}); "
            "give the one that llama-imatrix or quantry made."
        )
    chunks, chunk_tokens = header.whole(_CHUNKS_KEY), header.whole(_CHUNK_TOKENS_KEY)
    if chunks is None or not 0 <= chunks <= MAX_CHUNKS:
        raise InvalidModel(
            f"The importance matrix does not say how many chunks it is of ({_CHUNKS_KEY}); {_GET_AGAIN}."
        )
    if chunk_tokens is None or not 1 <= chunk_tokens <= _MAX_CHUNK_TOKENS:
        raise InvalidModel(f"The importance matrix does not give its chunks' size ({_CHUNK_TOKENS_KEY}); {_GET_AGAIN}.")
    found: dict[str, NDArray[np.float32]] = {}
    for tensor, offset in zip(header.tensors, header.offsets, strict=True):
        if not tensor.name.endswith((_SUMS, _COUNTS)):
            continue  # as llama.cpp: a newer writer may have more to say
        if tensor.type != "F32":
            raise InvalidModel(f"{tensor.name!a} in the importance matrix is {tensor.type}, not F32; {_GET_AGAIN}.")
        found[tensor.name] = _floats(data, header.data_offset + offset, tensor.size_bytes // 4)
    names = dict.fromkeys(name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in found)
    entries = {name: _entry(name, found.get(name + _SUMS), found.get(name + _COUNTS)) for name in names}
    datasets = header.array(_DATASETS_KEY)
    return _checked(entries, chunks, chunk_tokens, datasets.texts if datasets is not None and datasets.texts else ())


def _entry(name: str, sums: NDArray[np.float32] | None, counts: NDArray[np.float32] | None) -> Entry:
    if sums is None or counts is None:
        raise InvalidModel(f"The importance matrix has sums or counts of {name!a} and not both; {_GET_AGAIN}.")
    if len(sums) % len(counts):
        raise InvalidModel(
            f"The importance matrix has {len(sums)} sums of {name!a} for {len(counts)} experts, which do not share "
            f"them evenly; {_GET_AGAIN}."
        )
    return Entry(sums.reshape(len(counts), -1), np.rint(counts))


def _checked(entries: dict[str, Entry], chunks: int, chunk_tokens: int, datasets: tuple[str, ...]) -> Importance:
    if not entries:
        raise InvalidModel(f"The importance matrix holds no tensors; {_GET_AGAIN}.")
    for name, entry in entries.items():
        for values in (entry.sums, entry.counts):
            # One comparison each finds negative numbers, infinities and those that are none.
            if not ((values >= 0) & (values <= np.finfo(np.float32).max)).all():
                raise InvalidModel(
                    f"The importance matrix has values for {name!a} that are no sums of squares or no counts; "
                    f"{_GET_AGAIN}."
                )
    return Importance(entries, chunks, chunk_tokens, tuple(_plain(name) for name in datasets[:_MAX_DATASETS]))


def _floats(data: mmap.mmap, start: int, count: int) -> NDArray[np.float32]:
    """A copy: the file may be replaced while the numbers are in use."""
    return np.frombuffer(data[start : start + 4 * count], dtype="<f4").astype(np.float32, copy=False)


def _plain(name: str) -> str:
    """A dataset's name, often a path, for answers and log lines: its last part, printable and short."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter if letter.isprintable() else " " for letter in last)[:_MAX_DATASET_CHARACTERS]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- reading the older format ------------------------------------------------------------------------------------


class _Cursor:
    """Reads little-endian numbers and bytes, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes that follow."""
        return len(self._data) - self._position

    def take(self, size: int) -> int:
        """Step over `size` bytes and say where they start."""
        if not 0 <= size <= self.left:
            raise InvalidModel(
                f"The file is no importance matrix, or a truncated one: at byte {self._position} it announces {size} "
                f"bytes and {self.left} are left. {_capital(_GET_AGAIN)}."
            )
        self._position += size
        return self._position - size

    def i32(self) -> int:
        """A number."""
        value: int = struct.unpack_from("<i", self._data, self.take(4))[0]
        return value

    def raw(self, size: int) -> bytes:
        """Some bytes."""
        start = self.take(size)
        return self._data[start : start + size]


def _legacy(data: mmap.mmap) -> Importance:
    """The format before GGUF: by name the mean squares times the number of chunks, and that number."""
    cursor = _Cursor(data)
    count = cursor.i32()
    if not 1 <= count <= _MAX_ENTRIES:
        raise InvalidModel(
            "The file is no importance matrix: it is neither a GGUF nor llama-imatrix's older format. Give the one "
            "that llama-imatrix or quantry made."
        )
    entries: dict[str, Entry] = {}
    for _ in range(count):
        name = _legacy_name(cursor.raw(cursor.i32()))
        chunks, values = cursor.i32(), cursor.i32()
        if values < 1 or chunks < 0 or name in entries:
            raise InvalidModel(f"The importance matrix is corrupt at {name!a}; {_GET_AGAIN}.")
        means = _floats(data, cursor.take(4 * values), values)
        if chunks == 0:
            chunks = 1  # llama-quantize then takes the values as they are
        # As llama-imatrix: with the tokens of a chunk, this is what the GGUF holds. Overflow is found by the check.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = means * np.float32(_LEGACY_CHUNK_TOKENS)
        tokens = np.array([chunks * _LEGACY_CHUNK_TOKENS], dtype=np.float32)
        entries[name] = Entry(sums[np.newaxis], tokens)
    chunks = max(round(float(entry.counts[0])) for entry in entries.values()) // _LEGACY_CHUNK_TOKENS
    datasets: tuple[str, ...] = ()
    if cursor.left:  # older still, the file ends here
        chunks = max(0, cursor.i32())
        length = cursor.i32()
        datasets = (cursor.raw(length).decode("utf-8", "replace"),) if length else ()
    return _checked(entries, chunks, _LEGACY_CHUNK_TOKENS, datasets)


def _legacy_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or len(raw) > MAX_TENSOR_NAME_BYTES or not name.isprintable():
        raise InvalidModel(f"The file is no importance matrix, or a corrupt one: a name in it is none. {_GET_AGAIN}.")
    return name


# --- writing -----------------------------------------------------------------------------------------------------


def write_importance(importance: Importance, path: Path) -> None:
    """Write the GGUF that llama-imatrix writes, key by key and tensor by tensor, and fsync it."""
    tensors: list[tuple[str, tuple[int, ...], NDArray[np.float32]]] = []
    for name in sorted(importance.entries):
        entry = importance.entries[name]
        assert len(name.encode()) <= MAX_WEIGHT_NAME_BYTES
        experts, columns = entry.sums.shape
        tensors.append((name + _SUMS, (columns, experts) if experts > 1 else (columns,), entry.sums))
        tensors.append((name + _COUNTS, (1, experts) if experts > 1 else (1,), entry.counts))
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), 4))
    out += _string(_TYPE_KEY) + struct.pack("<I", _GGUF_STRING) + _string("imatrix")
    out += _string(_DATASETS_KEY) + struct.pack("<IIQ", _GGUF_ARRAY, _GGUF_STRING, len(importance.datasets))
    for dataset in importance.datasets:
        out += _string(dataset)
    out += _string(_CHUNKS_KEY) + struct.pack("<II", _GGUF_U32, importance.chunks)
    out += _string(_CHUNK_TOKENS_KEY) + struct.pack("<II", _GGUF_U32, importance.chunk_tokens)
    offset = 0
    for name, shape, values in tensors:
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _GGML_F32, offset)
        offset += padded(4 * values.size, _ALIGNMENT)
    with path.open("wb") as file:
        file.write(_filled(bytes(out)))
        for _, _, values in tensors:
            file.write(_filled(values.astype("<f4").tobytes()))
        file.flush()
        os.fsync(file.fileno())


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw


def _filled(data: bytes) -> bytes:
    return data + bytes(padded(len(data), _ALIGNMENT) - len(data))
