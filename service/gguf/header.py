"""What a GGUF header holds, once it has been read: key-value pairs, tensors, and where their data lies.

Values alone, with the arithmetic of sizes and the limits that a file is held to; `parsing.py` reads them, `checks.py`
knows what they mean to llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from service.domain.catalog import TensorInfo
from service.domain.quants import GGML_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
TOKENS_KEY = "tokenizer.ggml.tokens"
CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"

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
    `charsmap` is the array of CHARSMAP_KEY, cut behind charsmap.MAX_CHARSMAP_BYTES.
    """

    version: int
    alignment: int
    pairs: Mapping[str, Pair]
    tensors: tuple[TensorInfo, ...]
    offsets: tuple[int, ...]
    data_offset: int  # bytes from the start of the file: the exact size of the metadata section, padding included
    file_size: int
    byte_tokens: int = 0
    charsmap: bytes = b""

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
