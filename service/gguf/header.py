"""The layout of a GGUF header, walked with every count and length checked before it is used.

Runs in child processes, on bytes that a stranger chose. Knows the container alone: what the pairs mean to llama.cpp
is `checks.py`, what they tell a reader is `files.py`. Nothing but InvalidModel escapes, and memory stays bounded:
arrays are stepped over, and what is kept has a budget.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import GGML_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
TOKENS_KEY = "tokenizer.ggml.tokens"

MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_PAIRS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_TEXT_BYTES = 32 * 1024 * 1024  # all string values of one file together
MAX_ARRAY_ELEMENTS = 16 * 1024 * 1024
MAX_TOKENS = 1_048_576
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME less the closing NUL
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 64 * 1024
MAX_WEIGHTS = 2**63 - 1

# Arrays this short keep their values (llama.cpp's per-layer arrays hold at most 512), within a budget for the file.
_KEPT_ARRAY_ELEMENTS = 1024
_KEPT_ELEMENTS = 65_536
_KEPT_STRINGS = 256
_KEPT_STRING_BYTES = 64 * 1024
_SMALLEST_PAIR_BYTES = 8 + 1 + 4 + 1  # length, one letter of key, type, one byte
_SMALLEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # empty name, one dimension
_LONG_TOKEN_BYTES = 64

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING = 8
_ARRAY = 9
_BOOL = 7
# id -> (name, format); strings and arrays have no fixed format.
_VALUE_TYPES: dict[int, tuple[str, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    8: ("str", ""),
    9: ("arr", ""),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_SCALARS = {kind: struct.Struct("<" + code) for kind, (_, code) in _VALUE_TYPES.items() if code}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array value. `values` is kept for short arrays of numbers, `texts` for short ones of strings; else None."""

    element_type: str  # "u32", "str", ...
    count: int
    values: tuple[int | float, ...] | None = None
    texts: tuple[str, ...] | None = None


Value = int | float | bool | str | ArrayInfo


@dataclass(frozen=True, slots=True)
class Pair:
    """One key-value pair. `written_bytes` is what it takes when llama.cpp writes it again, key and all.

    llama.cpp copies strings as C strings, so one that holds a NUL comes back shorter than it was.
    """

    type: str  # "u32", "str", "arr", ...
    value: Value
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All of a GGUF file but its tensor data. `offsets` are those of `tensors`, in bytes from `data_offset`.

    `byte_tokens` counts the byte values (of 256) that the vocabulary can spell alone, as `<0x0A>` or as itself.
    """

    version: int
    alignment: int
    pairs: Mapping[str, Pair]
    tensors: tuple[TensorInfo, ...]
    offsets: tuple[int, ...]
    data_offset: int  # bytes from the start of the file: the exact size of the metadata section, padding included
    file_size: int
    byte_tokens: int = 0

    @property
    def metadata(self) -> Mapping[str, Value]:
        """The values alone."""
        return {key: pair.value for key, pair in self.pairs.items()}

    @property
    def architecture(self) -> str:
        """`general.architecture`; "" when the file does not say."""
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """A string value, or None when the key is missing or holds something else."""
        pair = self.pairs.get(key)
        return pair.value if pair is not None and isinstance(pair.value, str) else None

    def whole(self, key: str) -> int | None:
        """A whole number, or None when the key is missing or holds something else."""
        pair = self.pairs.get(key)
        if pair is None or isinstance(pair.value, bool) or not isinstance(pair.value, int):
            return None
        return pair.value

    def array(self, key: str) -> ArrayInfo | None:
        """An array, or None when the key is missing or holds something else."""
        pair = self.pairs.get(key)
        return pair.value if pair is not None and isinstance(pair.value, ArrayInfo) else None


def padded(size_bytes: int, alignment: int) -> int:
    """`size_bytes` rounded up to a multiple of `alignment`."""
    return -(-size_bytes // alignment) * alignment


def weights(shape: tuple[int, ...]) -> int:
    """How many weights a tensor of this shape holds."""
    return math.prod(shape)


def tensor_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of this shape in a ggml type; its row length must fill whole blocks."""
    block_weights, block_bytes = _BLOCKS[type_name]
    return weights(shape) // block_weights * block_bytes


_BLOCKS = {ggml.name: (ggml.block_weights, ggml.block_bytes) for ggml in GGML_TYPES.values()}


def parse_header(data: mmap.mmap | bytes, file_size: int, *, needs_tensors: bool = True) -> Header:
    """Read the header from the first bytes of a file of `file_size` bytes that starts with the GGUF magic.

    `data` holds at least min(file_size, MAX_HEADER_BYTES) bytes. The first piece of a split model `needs_tensors` not:
    it may have none. Raises InvalidModel.
    """
    return _Walker(data, file_size).header(needs_tensors)


class _Walker:
    """A cursor over the header; every method leaves it behind what it read, or raises InvalidModel."""

    def __init__(self, data: mmap.mmap | bytes, file_size: int) -> None:
        self._data = data
        self._file_size = file_size
        self._end = min(file_size, len(data), MAX_HEADER_BYTES)
        self._position = len(MAGIC)
        self._text_bytes = 0
        self._kept_elements = 0
        self._byte_tokens = 0

    def header(self, needs_tensors: bool) -> Header:
        version = self._u32("the format version")
        _check_version(version)
        tensor_count = self._u64("the number of tensors")
        pair_count = self._u64("the number of key-value pairs")
        self._check_count("key-value pairs", pair_count, MAX_PAIRS, _SMALLEST_PAIR_BYTES)
        self._check_count("tensors", tensor_count, MAX_TENSORS, _SMALLEST_TENSOR_BYTES)
        if tensor_count == 0 and needs_tensors:
            raise InvalidModel("The file holds no tensors, only metadata; give the file that holds the weights.")
        pairs: dict[str, Pair] = {}
        for _ in range(pair_count):
            key = self._key()
            if key in pairs:
                raise InvalidModel(f"The key {_shown(key)} occurs twice; the file is corrupt, download it again.")
            pairs[key] = self._pair(key)
        alignment = _alignment(pairs)
        tensors, offsets = self._tensors(tensor_count, alignment)
        data_offset = padded(self._position, alignment)
        if tensors:
            self._check_complete(data_offset + offsets[-1] + tensors[-1].size_bytes)
        return Header(
            version=version,
            alignment=alignment,
            pairs=MappingProxyType(pairs),
            tensors=tensors,
            offsets=offsets,
            data_offset=data_offset,
            file_size=self._file_size,
            byte_tokens=self._byte_tokens,
        )

    # --- numbers and strings

    def _take(self, size: int, what: str) -> int:
        """Step over `size` bytes and say where they start."""
        start = self._position
        if size > self._end - start:
            if self._end < self._file_size:
                raise InvalidModel(
                    f"The header is larger than {MAX_HEADER_BYTES // 2**20} MiB at {what}; the file is corrupt or "
                    "hostile, get it from its publisher again."
                )
            raise InvalidModel(
                f"The file ends inside its header: {what} needs {size} bytes at byte {start} and "
                f"{self._end - start} are left, so at least {size - (self._end - start)} are missing. It is truncated "
                "or corrupt: download it again."
            )
        self._position = start + size
        return start

    def _u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self._data, self._take(4, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self._data, self._take(8, what))[0]
        return value

    def _check_count(self, what: str, count: int, limit: int, smallest_bytes: int) -> None:
        if count > limit:
            raise InvalidModel(f"The header announces {count} {what}; {limit} are allowed. The file is corrupt.")
        if count * smallest_bytes > self._end - self._position:
            raise InvalidModel(
                f"The header announces {count} {what}, more than the rest of the file can hold. It is truncated or "
                "corrupt: download it again."
            )

    def _string(self, what: str, limit: int) -> bytes:
        length = self._u64(f"the length of {what}")
        if length > limit:
            raise InvalidModel(f"The length of {what} is {length} bytes; {limit} are allowed. The file is corrupt.")
        start = self._take(length, what)
        return bytes(self._data[start : start + length])

    def _name(self, what: str, limit: int) -> str:
        """A string that becomes a name: valid UTF-8 without control characters, as it ends up in llama.cpp's log."""
        raw = self._string(what, limit)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidModel(f"The bytes of {what} are no valid UTF-8; the file is corrupt.") from None
        if not text or not text.isprintable():
            raise InvalidModel(f"The text of {what} is empty or holds control characters; the file is corrupt.")
        return text

    # --- key-value pairs

    def _key(self) -> str:
        return self._name("a key", MAX_KEY_BYTES)

    def _pair(self, key: str) -> Pair:
        what = f"the value of {_shown(key)}"
        kind = self._u32(what)
        overhead = 8 + len(key.encode()) + 4
        if kind == _STRING:
            raw = self._string(what, MAX_STRING_BYTES)
            self._text_bytes += len(raw)
            if self._text_bytes > MAX_TEXT_BYTES:
                raise InvalidModel(f"The metadata holds more than {MAX_TEXT_BYTES // 2**20} MiB of text.")
            written = 8 + len(_until_nul(raw))
            return Pair("str", raw.decode("utf-8", "replace"), overhead + written)
        if kind == _ARRAY:
            info, written = self._array(key, what)
            return Pair("arr", info, overhead + 4 + 8 + written)
        if kind not in _SCALARS:
            raise InvalidModel(f"The type of {what} is {kind}, which GGUF does not know; the file is corrupt.")
        number = _SCALARS[kind]
        (value,) = number.unpack_from(self._data, self._take(number.size, what))
        if kind == _BOOL:
            if value > 1:
                raise InvalidModel(f"A truth value is 0 or 1, and {what} is {value}; the file is corrupt.")
            value = bool(value)
        return Pair(_VALUE_TYPES[kind][0], value, overhead + number.size)

    def _array(self, key: str, what: str) -> tuple[ArrayInfo, int]:
        """An array and the bytes its elements take when llama.cpp writes them again."""
        kind = self._u32(what)
        count = self._u64(what)
        if kind == _ARRAY:
            raise InvalidModel(f"Arrays of arrays are not read by llama.cpp, and {what} is one.")
        if kind not in _VALUE_TYPES:
            raise InvalidModel(f"The element type of {what} is {kind}, which GGUF does not know; the file is corrupt.")
        if count > MAX_ARRAY_ELEMENTS:
            raise InvalidModel(f"An array of {count} elements is {what}; {MAX_ARRAY_ELEMENTS} are allowed.")
        if kind == _STRING:
            self._check_count(f"strings in {what}", count, MAX_ARRAY_ELEMENTS, 8)
            if key == TOKENS_KEY:
                return ArrayInfo("str", count), self._tokens(count)
            start = self._position
            written = self._strings(count, what)
            return ArrayInfo("str", count, texts=self._kept_texts(start, count)), written
        size = _SCALARS[kind].size
        start = self._take(count * size, what)
        name, code = _VALUE_TYPES[kind]
        if kind == _BOOL and bytes(self._data[start : start + count]).translate(None, b"\0\1"):
            raise InvalidModel(f"A truth value in {what} is neither 0 nor 1; the file is corrupt.")
        values: tuple[int | float, ...] | None = None
        if count <= _KEPT_ARRAY_ELEMENTS and self._kept_elements + count <= _KEPT_ELEMENTS:
            self._kept_elements += count
            values = struct.unpack_from(f"<{count}{code}", self._data, start)
        return ArrayInfo(name, count, values), count * size

    def _strings(self, count: int, what: str) -> int:
        # One loop with local names: half a million merges are walked in about a fifth of a second.
        data, end, position = self._data, self._end, self._position
        unpack, find = _U64.unpack_from, data.find
        written = 8 * count
        for _ in range(count):
            start = position + 8
            if start > end:
                break
            length = unpack(data, position)[0]
            position = start + length
            if position > end or length > MAX_STRING_BYTES:
                break
            nul = find(b"\0", start, position)
            written += length if nul < 0 else nul - start
        else:
            self._position = position
            return written
        raise self._bad_string(what)

    def _kept_texts(self, start: int, count: int) -> tuple[str, ...] | None:
        """The strings between byte `start` and here, already walked once, when they are few and short."""
        size = self._position - start
        if count > _KEPT_STRINGS or size > _KEPT_STRING_BYTES or self._text_bytes + size > MAX_TEXT_BYTES:
            return None
        self._text_bytes += size
        texts = []
        for _ in range(count):
            length = _U64.unpack_from(self._data, start)[0]
            texts.append(bytes(self._data[start + 8 : start + 8 + length]).decode("utf-8", "replace"))
            start += 8 + length
        return tuple(texts)

    def _tokens(self, count: int) -> int:
        """As `_strings`, for the vocabulary: llama.cpp aborts when two tokens have the same text."""
        if count > MAX_TOKENS:
            raise InvalidModel(f"The vocabulary has {count} tokens; {MAX_TOKENS} are allowed.")
        data, end, position = self._data, self._end, self._position
        unpack = _U64.unpack_from
        written = 8 * count
        seen: set[bytes] = set()
        for index in range(count):
            start = position + 8
            if start > end:
                break
            length = unpack(data, position)[0]
            position = start + length
            if position > end or length > MAX_STRING_BYTES:
                break
            text = bytes(data[start:position])
            if b"\0" in text:
                text = _until_nul(text)
            written += len(text)
            if not text:
                text = b"[EMPTY_%d]" % index  # llama.cpp's own name for it
            elif len(text) > _LONG_TOKEN_BYTES:
                text = hashlib.blake2b(text, digest_size=16).digest()
            seen.add(text)
        else:
            self._position = position
            if len(seen) != count:
                raise InvalidModel(
                    f"{count - len(seen)} tokens of the vocabulary have the text of another one, which llama.cpp "
                    "does not survive; convert the model again with a current convert_hf_to_gguf.py."
                )
            self._byte_tokens = sum(
                b"<0x%02X>" % byte in seen or (byte > 0 and bytes([byte]) in seen) for byte in range(256)
            )
            return written
        raise self._bad_string("the vocabulary")

    def _bad_string(self, what: str) -> InvalidModel:
        return InvalidModel(
            f"A string in {what} is longer than the rest of the file or than {MAX_STRING_BYTES} bytes. The file is "
            "truncated or corrupt: download it again."
        )

    # --- tensors

    def _tensors(self, count: int, alignment: int) -> tuple[tuple[TensorInfo, ...], tuple[int, ...]]:
        tensors: list[TensorInfo] = []
        offsets: list[int] = []
        names: set[str] = set()
        expected = 0
        for _ in range(count):
            info = self._tensor()
            if info.name in names:
                raise InvalidModel(f"The tensor {_shown(info.name)} occurs twice; the file is corrupt.")
            names.add(info.name)
            offset = self._u64(f"the offset of tensor {_shown(info.name)}")
            if offset != expected:
                raise InvalidModel(
                    f"The data of tensor {_shown(info.name)} should start at byte {expected} of the data section and "
                    f"is said to start at {offset}: tensors overlap, leave gaps or are not aligned to {alignment} "
                    "bytes. The file is corrupt: download it again."
                )
            tensors.append(info)
            offsets.append(offset)
            expected += padded(info.size_bytes, alignment)
        return tuple(tensors), tuple(offsets)

    def _tensor(self) -> TensorInfo:
        name = self._name("a tensor name", MAX_TENSOR_NAME_BYTES)
        what = f"tensor {_shown(name)}"
        dimensions = self._u32(f"the shape of {what}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise InvalidModel(f"T{what[1:]} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed.")
        start = self._take(8 * dimensions, f"the shape of {what}")
        shape: tuple[int, ...] = struct.unpack_from(f"<{dimensions}q", self._data, start)
        if min(shape) < 1 or weights(shape) > MAX_WEIGHTS:
            raise InvalidModel(f"The shape of {what} is {list(shape)}, which no tensor can have; the file is corrupt.")
        kind = self._u32(f"the type of {what}")
        ggml = GGML_TYPES.get(kind)
        if ggml is None:
            raise InvalidModel(
                f"The type of {what} is {kind}, which this llama.cpp does not know or no longer reads; fetch a "
                "current GGUF of the model, or convert it again."
            )
        if shape[0] % ggml.block_weights:
            raise InvalidModel(
                f"The rows of {what} hold {shape[0]} weights, which blocks of {ggml.block_weights} ({ggml.name}) do "
                "not fill; the file is corrupt."
            )
        size_bytes = tensor_bytes(shape, ggml.name)
        if size_bytes > self._file_size:
            raise InvalidModel(
                f"T{what[1:]} takes {size_bytes} bytes and the whole file has {self._file_size}, so at least "
                f"{size_bytes - self._file_size} are missing. The file is truncated or corrupt: download it again."
            )
        return TensorInfo(name=name, shape=shape, type=ggml.name, size_bytes=size_bytes)

    def _check_complete(self, expected_bytes: int) -> None:
        missing = expected_bytes - self._file_size
        if missing > 0:
            raise InvalidModel(
                f"The file is truncated: {missing} bytes of tensor data are missing ({self._file_size} of "
                f"{expected_bytes} are there). Download or upload it again."
            )


def _check_version(version: int) -> None:
    if version in VERSIONS:
        return
    if version and version & 0xFFFF == 0:
        raise InvalidModel(
            "The file is a big-endian GGUF and this machine is little-endian; fetch the little-endian file, or convert "
            "it with gguf-py's gguf_convert_endian.py."
        )
    if version == 1:
        raise InvalidModel(
            "The file is GGUF version 1, which llama.cpp no longer reads; convert the model again with a current "
            "convert_hf_to_gguf.py."
        )
    raise InvalidModel(f"The file is GGUF version {version}; versions 2 and 3 are read. Fetch the file in version 3.")


def _alignment(pairs: Mapping[str, Pair]) -> int:
    pair = pairs.get("general.alignment")
    if pair is None:
        return DEFAULT_ALIGNMENT
    value = pair.value
    if pair.type != "u32" or not isinstance(value, int):
        raise InvalidModel(f"general.alignment has the type {pair.type}, not u32; the file is corrupt.")
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise InvalidModel(
            f"general.alignment is {value}; a power of two up to {MAX_ALIGNMENT} is allowed. The file is corrupt."
        )
    return value


def _until_nul(text: bytes) -> bytes:
    return text.split(b"\0", 1)[0]


def _shown(name: str) -> str:
    """A name from the file for an error message: short, quoted, escaped."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
