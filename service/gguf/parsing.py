"""The header of a GGUF file, walked with every count and length checked before it is used.

Runs in child processes, on bytes that a stranger chose. Knows the container alone: what the pairs mean to llama.cpp
is `checks.py`, what they tell a reader is `files.py`. Nothing but InvalidModel escapes, and memory stays bounded:
arrays are stepped over, and what is kept has a budget.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping
from types import MappingProxyType

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import GGML_TYPES
from service.gguf.charsmap import MAX_CHARSMAP_BYTES
from service.gguf.cursor import Cursor, shown
from service.gguf.header import (
    CHARSMAP_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_ARRAY_ELEMENTS,
    MAX_DIMENSIONS,
    MAX_KEY_BYTES,
    MAX_PAIRS,
    MAX_STRING_BYTES,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    MAX_TOKENS,
    MAX_WEIGHTS,
    TOKENS_KEY,
    VERSIONS,
    ArrayInfo,
    Header,
    Pair,
    padded,
    tensor_bytes,
    weights,
)

# Arrays this short keep their values (llama.cpp's per-layer arrays hold at most 512), within a budget for the file.
_KEPT_ARRAY_ELEMENTS = 1024
_KEPT_ELEMENTS = 65_536
_KEPT_STRINGS = 256
_KEPT_STRING_BYTES = 64 * 1024
_SMALLEST_PAIR_BYTES = 8 + 1 + 4 + 1  # length, one letter of key, type, one byte
_SMALLEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # empty name, one dimension
_LONG_TOKEN_BYTES = 64  # longer ones are compared by their digests

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


def parse_header(data: mmap.mmap | bytes, file_size: int, *, needs_tensors: bool = True) -> Header:
    """Read the header from the first bytes of a file of `file_size` bytes that starts with the GGUF magic.

    `data` holds at least min(file_size, MAX_HEADER_BYTES) bytes. The first piece of a split model `needs_tensors` not:
    it may have none. Raises InvalidModel.
    """
    return _Parser(Cursor(data, file_size, len(MAGIC))).header(needs_tensors)


class _Parser:
    """Takes a header apart from where the cursor stands."""

    def __init__(self, at: Cursor) -> None:
        self._at = at
        self._text_bytes = 0
        self._kept_elements = 0
        self._byte_tokens = 0
        self._charsmap = b""

    def header(self, needs_tensors: bool) -> Header:
        version = self._at.u32("the format version")
        _check_version(version)
        tensor_count = self._at.u64("the number of tensors")
        pair_count = self._at.u64("the number of key-value pairs")
        self._at.check_count("key-value pairs", pair_count, MAX_PAIRS, _SMALLEST_PAIR_BYTES)
        self._at.check_count("tensors", tensor_count, MAX_TENSORS, _SMALLEST_TENSOR_BYTES)
        if tensor_count == 0 and needs_tensors:
            raise InvalidModel("The file holds no tensors, only metadata; give the file that holds the weights.")
        pairs: dict[str, Pair] = {}
        for _ in range(pair_count):
            key = self._key()
            if key in pairs:
                raise InvalidModel(f"The key {shown(key)} occurs twice; the file is corrupt, download it again.")
            pairs[key] = self._pair(key)
        alignment = _alignment(pairs)
        tensors, offsets = self._tensors(tensor_count, alignment)
        data_offset = padded(self._at.position, alignment)
        if tensors:
            self._check_complete(data_offset + offsets[-1] + tensors[-1].size_bytes)
        return Header(
            version=version,
            alignment=alignment,
            pairs=MappingProxyType(pairs),
            tensors=tensors,
            offsets=offsets,
            data_offset=data_offset,
            file_size=self._at.file_size,
            byte_tokens=self._byte_tokens,
            charsmap=self._charsmap,
        )

    # --- key-value pairs

    def _key(self) -> str:
        return self._at.name("a key", MAX_KEY_BYTES)

    def _pair(self, key: str) -> Pair:
        what = f"the value of {shown(key)}"
        kind = self._at.u32(what)
        overhead = 8 + len(key.encode()) + 4
        if kind == _STRING:
            raw = self._at.string(what, MAX_STRING_BYTES)
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
        (value,) = number.unpack_from(self._at.data, self._at.take(number.size, what))
        if kind == _BOOL:
            if value > 1:
                raise InvalidModel(f"A truth value is 0 or 1, and {what} is {value}; the file is corrupt.")
            value = bool(value)
        return Pair(_VALUE_TYPES[kind][0], value, overhead + number.size)

    def _array(self, key: str, what: str) -> tuple[ArrayInfo, int]:
        """An array and the bytes its elements take when llama.cpp writes them again."""
        kind = self._at.u32(what)
        count = self._at.u64(what)
        if kind == _ARRAY:
            raise InvalidModel(f"Arrays of arrays are not read by llama.cpp, and {what} is one.")
        if kind not in _VALUE_TYPES:
            raise InvalidModel(f"The element type of {what} is {kind}, which GGUF does not know; the file is corrupt.")
        if count > MAX_ARRAY_ELEMENTS:
            raise InvalidModel(f"An array of {count} elements is {what}; {MAX_ARRAY_ELEMENTS} are allowed.")
        if kind == _STRING:
            self._at.check_count(f"strings in {what}", count, MAX_ARRAY_ELEMENTS, 8)
            if key == TOKENS_KEY:
                return ArrayInfo("str", count), self._tokens(count)
            start = self._at.position
            written = self._strings(count, what)
            return ArrayInfo("str", count, texts=self._kept_texts(start, count)), written
        size = _SCALARS[kind].size
        start = self._at.take(count * size, what)
        if key == CHARSMAP_KEY and size == 1:
            self._charsmap = bytes(self._at.data[start : start + min(count, MAX_CHARSMAP_BYTES + 1)])
        name, code = _VALUE_TYPES[kind]
        if kind == _BOOL and bytes(self._at.data[start : start + count]).translate(None, b"\0\1"):
            raise InvalidModel(f"A truth value in {what} is neither 0 nor 1; the file is corrupt.")
        values: tuple[int | float, ...] | None = None
        if count <= _KEPT_ARRAY_ELEMENTS and self._kept_elements + count <= _KEPT_ELEMENTS:
            self._kept_elements += count
            values = struct.unpack_from(f"<{count}{code}", self._at.data, start)
        return ArrayInfo(name, count, values), count * size

    def _strings(self, count: int, what: str) -> int:
        # One loop with local names: half a million merges are walked in about a fifth of a second.
        data, end, position = self._at.data, self._at.end, self._at.position
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
            self._at.position = position
            return written
        raise self._bad_string(what)

    def _kept_texts(self, start: int, count: int) -> tuple[str, ...] | None:
        """The strings between byte `start` and here, already walked once, when they are few and short."""
        size = self._at.position - start
        if count > _KEPT_STRINGS or size > _KEPT_STRING_BYTES or self._text_bytes + size > MAX_TEXT_BYTES:
            return None
        self._text_bytes += size
        texts = []
        for _ in range(count):
            length = _U64.unpack_from(self._at.data, start)[0]
            texts.append(bytes(self._at.data[start + 8 : start + 8 + length]).decode("utf-8", "replace"))
            start += 8 + length
        return tuple(texts)

    def _tokens(self, count: int) -> int:
        """As `_strings`, for the vocabulary: llama.cpp aborts when two tokens have the same text."""
        if count > MAX_TOKENS:
            raise InvalidModel(f"The vocabulary has {count} tokens; {MAX_TOKENS} are allowed.")
        data, end, position = self._at.data, self._at.end, self._at.position
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
            self._at.position = position
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
                raise InvalidModel(f"The tensor {shown(info.name)} occurs twice; the file is corrupt.")
            names.add(info.name)
            offset = self._at.u64(f"the offset of tensor {shown(info.name)}")
            if offset != expected:
                raise InvalidModel(
                    f"The data of tensor {shown(info.name)} should start at byte {expected} of the data section and "
                    f"is said to start at {offset}: tensors overlap, leave gaps or are not aligned to {alignment} "
                    "bytes. The file is corrupt: download it again."
                )
            tensors.append(info)
            offsets.append(offset)
            expected += padded(info.size_bytes, alignment)
        return tuple(tensors), tuple(offsets)

    def _tensor(self) -> TensorInfo:
        name = self._at.name("a tensor name", MAX_TENSOR_NAME_BYTES)
        what = f"tensor {shown(name)}"
        dimensions = self._at.u32(f"the shape of {what}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise InvalidModel(f"T{what[1:]} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed.")
        start = self._at.take(8 * dimensions, f"the shape of {what}")
        shape: tuple[int, ...] = struct.unpack_from(f"<{dimensions}q", self._at.data, start)
        if min(shape) < 1 or weights(shape) > MAX_WEIGHTS:
            raise InvalidModel(f"The shape of {what} is {list(shape)}, which no tensor can have; the file is corrupt.")
        kind = self._at.u32(f"the type of {what}")
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
        if size_bytes > self._at.file_size:
            raise InvalidModel(
                f"T{what[1:]} takes {size_bytes} bytes and the whole file has {self._at.file_size}, so at least "
                f"{size_bytes - self._at.file_size} are missing. The file is truncated or corrupt: download it again."
            )
        return TensorInfo(name=name, shape=shape, type=ggml.name, size_bytes=size_bytes)

    def _check_complete(self, expected_bytes: int) -> None:
        missing = expected_bytes - self._at.file_size
        if missing > 0:
            raise InvalidModel(
                f"The file is truncated: {missing} bytes of tensor data are missing ({self._at.file_size} of "
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
    raise InvalidModel(
        f"The file is GGUF version {version}; versions 1, 2 and 3 are read. Fetch the file in version 3."
    )


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
