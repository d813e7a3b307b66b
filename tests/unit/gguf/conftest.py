"""A hand-made GGUF file, so that every byte of it can be set wrong on purpose."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

CODES = {
    name: (number, code)
    for number, name, code in zip(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12),
        ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "u64", "i64", "f64"),
        ("B", "b", "H", "h", "I", "i", "f", "B", "", "Q", "q", "d"),
        strict=True,
    )
}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 14: (256, 210), 26: (1, 4), 39: (32, 17)}


@dataclass(frozen=True)
class GgufFile:
    """The parts of a file; `build` lays them out, and notes where each number of the header lies."""

    pairs: tuple[tuple[str, str, Any], ...]
    tensors: tuple[tuple[str, tuple[int, ...], int], ...]
    version: int = 3
    magic: bytes = b"GGUF"
    alignment: int = 32
    offsets: tuple[int, ...] | None = None  # instead of the right ones
    missing_bytes: int = 0  # cut from the end of the tensor data
    numbers: list[tuple[int, int]] = field(default_factory=list, compare=False)  # (position, size)

    def with_pair(self, key: str, kind: str, value: Any) -> GgufFile:
        """The same file with one pair set, in place when it is there."""
        pair = (key, kind, value)
        if any(name == key for name, _, _ in self.pairs):
            return replace(self, pairs=tuple(pair if name == key else (name, k, v) for name, k, v in self.pairs))
        return replace(self, pairs=(*self.pairs, pair))

    def without(self, key: str) -> GgufFile:
        """The same file with one pair left out."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair[0] != key))

    def with_(self, **changes: Any) -> GgufFile:
        """The same file with other parts."""
        return replace(self, **changes)

    def build(self) -> bytes:
        """The bytes of the file; `numbers` is filled on the way."""
        self.numbers.clear()
        out = bytearray(self.magic)

        def number(code: str, value: Any) -> None:
            self.numbers.append((len(out), struct.calcsize("<" + code)))
            out.extend(struct.pack("<" + code, value))

        def string(text: str | bytes) -> None:
            raw = text.encode() if isinstance(text, str) else text
            number("Q", len(raw))
            out.extend(raw)

        def value(kind: str, item: Any) -> None:
            if kind == "str":
                string(item)
            else:
                number(CODES[kind][1], item)

        number("I", self.version)
        number("Q", len(self.tensors))
        number("Q", len(self.pairs))
        for key, kind, item in self.pairs:
            string(key)
            if kind.startswith("["):
                number("I", 9)
                number("I", CODES[kind[1:]][0])
                number("Q", len(item))
                for element in item:
                    value(kind[1:], element)
            else:
                number("I", CODES[kind][0])
                value(kind, item)
        offset, sizes = 0, []
        for index, (name, shape, kind) in enumerate(self.tensors):
            string(name)
            number("I", len(shape))
            for length in shape:
                number("q", length)
            number("I", kind)
            number("Q", offset if self.offsets is None else self.offsets[index])
            block_weights, block_bytes = BLOCKS.get(kind, (1, 1))
            count = 1
            for length in shape:
                count *= length
            sizes.append(count // block_weights * block_bytes)
            offset += -(-sizes[-1] // self.alignment) * self.alignment
        out.extend(bytes(-len(out) % self.alignment))
        data_bytes = offset if offset < 2**24 else 0
        out.extend(bytes(data_bytes - min(self.missing_bytes, data_bytes)))
        return bytes(out)


@pytest.fixture
def tiny() -> GgufFile:
    """A valid file of a model with one layer, 32 wide, 8 tokens."""
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", " ", "\n"]
    return GgufFile(
        pairs=(
            ("general.architecture", "str", "llama"),
            ("general.name", "str", "Tiny  model\n"),
            ("general.license", "str", "apache-2.0"),
            ("general.file_type", "u32", 1),
            ("llama.context_length", "u32", 64),
            ("llama.embedding_length", "u32", 32),
            ("llama.block_count", "u32", 1),
            ("llama.feed_forward_length", "u32", 64),
            ("llama.attention.head_count", "u32", 4),
            ("llama.attention.head_count_kv", "u32", 2),
            ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
            ("tokenizer.ggml.model", "str", "gpt2"),
            ("tokenizer.ggml.tokens", "[str", tokens),
            ("tokenizer.ggml.scores", "[f32", [0.0] * 8),
            ("tokenizer.ggml.token_type", "[i32", [1] * 8),
            ("tokenizer.ggml.merges", "[str", ["a b", "b c"]),
            ("tokenizer.ggml.bos_token_id", "u32", 1),
            ("tokenizer.ggml.add_bos_token", "bool", 1),
            ("tokenizer.chat_template", "str", "{{ messages }}"),
        ),
        tensors=(
            ("token_embd.weight", (32, 8), 1),
            ("blk.0.attn_q.weight", (32, 32), 1),
            ("blk.0.attn_k.weight", (32, 16), 1),
            ("output_norm.weight", (32,), 0),
        ),
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[GgufFile | bytes], Path]:
    """Write a file, or raw bytes, to disk and say where."""

    def write_file(content: GgufFile | bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content.build() if isinstance(content, GgufFile) else content)
        return path

    return write_file
