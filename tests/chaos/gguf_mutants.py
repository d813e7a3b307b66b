"""Damaged GGUF files for tests: taken apart, changed in one to three places, and laid out again.

Half of them keep lengths, offsets and sizes consistent, so that they get past the container's checks and say something
that no model should; the other half are byte damage. The same seed makes the same file.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf

from service.domain.quants import GGML_TYPES
from service.gguf.parsing import parse_header

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, U32 = 8, 9, 4
BOUNDARY = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 33, 63, 64, 65, 127, 128, 255, 256, 511, 513, 1023, 1025)
HUGE = (0x7FFF, 0xFFFF, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-5, 1e30, -1e30, math.inf, -math.inf, math.nan, 0.5, 2.0, 1e4)
ARCHITECTURES = tuple(sorted(gguf.MODEL_ARCH_NAMES.values()))
KEYS = tuple(
    sorted(
        {
            value
            for group in vars(gguf.Keys).values()
            if isinstance(group, type)
            for name, value in vars(group).items()
            if isinstance(value, str) and not name.startswith("_")
        }
    )
)
TEXTS = (
    *("", "x", "\0", "llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "replit", "default"),
    *("llama-bpe", "qwen2", "deepseek-llm", "tekken", "smollm", "gpt-4o", "bloom", "viking", "superbpe", "grok-2"),
    *("linear", "yarn", "longrope", "mean", "cls", "rank", "model", "%s%n" * 20, "(" * 300, "\u00e9\ud7ff" * 50),
    *("{{ 1 }}", "{% for i in range(10) %}x{% endfor %}", "\x1b[31m", "A" * 70_000),
)


@dataclass
class Pair:
    """One key-value pair; an array's `raw` is its elements alone."""

    key: bytes
    kind: int
    raw: bytes
    element: int = 0
    count: int = 0


@dataclass
class Tensor:
    """One tensor; its offset is laid out anew."""

    name: bytes
    shape: tuple[int, ...]
    kind: int
    shift: int = 0  # added to the right offset


@dataclass
class Tree:
    """A GGUF file taken apart. `data` is its tensors' bytes."""

    version: int
    alignment: int
    pairs: list[Pair]
    tensors: list[Tensor]
    data: bytes = field(repr=False, default=b"")

    def copy(self) -> Tree:
        return replace(self, pairs=[replace(p) for p in self.pairs], tensors=[replace(t) for t in self.tensors])


@dataclass
class Mutant:
    """A damaged file: its first bytes, and its whole size; what lies between is the base's data, then zeros."""

    header: bytes
    size: int
    what: list[str]
    architecture: str = ""

    def write(self, path: Path, data: bytes = b"") -> None:
        with path.open("wb") as file:
            file.write(self.header[: self.size])
            file.write(data[: max(0, self.size - len(self.header))])
            file.truncate(self.size)


def take_apart(path: Path) -> Tree:
    """The parts of a sound file."""
    raw = path.read_bytes()
    header = parse_header(raw, len(raw))
    position = 4
    version, tensor_count, pair_count = struct.unpack_from("<IQQ", raw, position)
    position += 20

    def string() -> bytes:
        nonlocal position
        (length,) = struct.unpack_from("<Q", raw, position)
        position += 8 + length
        return raw[position - length : position]

    pairs, tensors = [], []
    for _ in range(pair_count):
        key = string()
        (kind,) = struct.unpack_from("<I", raw, position)
        position += 4
        start = position
        if kind == STRING:
            pairs.append(Pair(key, kind, string()))
        elif kind == ARRAY:
            element, count = struct.unpack_from("<IQ", raw, position)
            position += 12
            start = position
            for _ in range(count if element == STRING else 0):
                string()
            position += 0 if element == STRING else count * struct.calcsize(SCALARS[element])
            pairs.append(Pair(key, kind, raw[start:position], element, count))
        else:
            position += struct.calcsize(SCALARS[kind])
            pairs.append(Pair(key, kind, raw[start:position]))
    for _ in range(tensor_count):
        name = string()
        (dimensions,) = struct.unpack_from("<I", raw, position)
        shape = struct.unpack_from(f"<{dimensions}Q", raw, position + 4)
        (kind,) = struct.unpack_from("<I", raw, position + 4 + 8 * dimensions)
        position += 4 + 8 * dimensions + 4 + 8
        tensors.append(Tensor(name, shape, kind))
    return Tree(version, header.alignment, pairs, tensors, raw[header.data_offset :])


def put_together(tree: Tree) -> tuple[bytes, int]:
    """The header, and the size of the whole file."""

    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    out = [b"GGUF", struct.pack("<IQQ", tree.version, len(tree.tensors), len(tree.pairs))]
    for pair in tree.pairs:
        out += [string(pair.key), struct.pack("<I", pair.kind)]
        if pair.kind == ARRAY:
            out += [struct.pack("<IQ", pair.element, pair.count), pair.raw]
        else:
            out.append(string(pair.raw) if pair.kind == STRING else pair.raw)
    offset = 0
    for tensor in tree.tensors:
        shape = [value % 2**64 for value in tensor.shape]
        out += [string(tensor.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        out.append(struct.pack("<IQ", tensor.kind % 2**32, (offset + tensor.shift) % 2**64))
        ggml = GGML_TYPES.get(tensor.kind)
        size = 64 if ggml is None else math.prod(tensor.shape) // ggml.block_weights * ggml.block_bytes
        offset += -(-size // tree.alignment) * tree.alignment
    header = b"".join(out)
    header += b"\0" * (-len(header) % tree.alignment)
    return header, len(header) + min(offset, 2**40)


class Mutator:
    """Makes mutants of some base files; `next` gives another one, the same ones for the same seed."""

    def __init__(self, bases: dict[str, Tree], seed: int) -> None:
        self._bases = bases
        self._random = random.Random(seed)

    def next(self) -> tuple[str, Mutant]:
        """(the base's name, its mutant)."""
        pick = self._random
        name = pick.choice(sorted(self._bases))
        tree = self._bases[name].copy()
        what: list[str] = []
        if pick.random() < 0.6:
            for _ in range(pick.choice((1, 1, 1, 2, 3))):
                what.append(pick.choice(_CHANGES)(self, tree))
            header, size = put_together(tree)
        else:
            header, size = put_together(tree)
            header, size = self._damage(header, size, what)
        return name, Mutant(header, size, what)

    # --- numbers and texts that are likely to hurt

    def _whole(self) -> int:
        pick = self._random
        return pick.choice(
            (pick.choice(BOUNDARY), pick.choice(HUGE), pick.getrandbits(pick.choice((4, 8, 16, 32, 64))))
        )

    def _scalar(self, kind: int) -> bytes:
        code = SCALARS[kind]
        if code in "fd":
            return struct.pack("<" + code, self._random.choice(FLOATS))
        if code == "?":
            return bytes([self._random.choice((0, 1, 1, 2))])
        return (self._whole() % 2**64).to_bytes(8, "little")[: struct.calcsize(code)]

    def _text(self) -> bytes:
        return self._random.choice((*TEXTS, *self._random.sample(ARCHITECTURES, 5))).encode("utf-8", "surrogatepass")

    # --- changes that keep the container sound

    def _set_value(self, tree: Tree) -> str:
        pair = self._random.choice(tree.pairs)
        if pair.kind == STRING:
            pair.raw = self._text()
        elif pair.kind == ARRAY:
            return self._change_array(pair)
        else:
            pair.raw = self._scalar(pair.kind)
        return f"{pair.key!r} = {pair.raw[:40]!r}"

    def _change_array(self, pair: Pair) -> str:
        pick = self._random
        if pair.element == STRING:
            items = _strings(pair.raw, pair.count)
            for _ in range(pick.choice((1, 1, 50))):
                items[pick.randrange(len(items))] = pick.choice((self._text(), pick.randbytes(5), b"<0x0A>", b"a"))
            if pick.random() < 0.3:
                del items[pick.randrange(len(items)) :]
            pair.raw = b"".join(struct.pack("<Q", len(item)) + item for item in items)
            pair.count = len(items)
            return f"{pair.key!r}: texts"
        size = struct.calcsize(SCALARS[pair.element])
        if pick.random() < 0.5 and pair.count:
            index = pick.randrange(pair.count) * size
            pair.raw = pair.raw[:index] + self._scalar(pair.element) + pair.raw[index + size :]
        else:
            pair.count = pick.choice((0, 1, 2, max(0, pair.count - 1), pair.count // 2))
            pair.raw = pair.raw[: pair.count * size]
            pair.count = len(pair.raw) // size
        return f"{pair.key!r}: array of {pair.count}"

    def _set_kind(self, tree: Tree) -> str:
        pair = self._random.choice(tree.pairs)
        pair.kind = self._random.choice((*SCALARS, STRING, ARRAY))
        if pair.kind == ARRAY:
            pair.element = self._random.choice(tuple(SCALARS))
            pair.count = self._random.choice((0, 1, 2, 4, 64))
            pair.raw = b"".join(self._scalar(pair.element) for _ in range(pair.count))
        else:
            pair.raw = self._text() if pair.kind == STRING else self._scalar(pair.kind)
        return f"{pair.key!r} of kind {pair.kind}"

    def _add_pair(self, tree: Tree) -> str:
        pick = self._random
        arch = next((p.raw for p in tree.pairs if p.key == b"general.architecture"), b"llama").decode("latin-1")
        key = pick.choice(KEYS).replace("{arch}", arch).replace("{id}", "0").replace("{name}", "x").encode()
        tree.pairs = [pair for pair in tree.pairs if pair.key != key]
        if pick.random() < 0.3:
            element = pick.choice((4, 5, 6, 7))
            count = pick.choice((0, 1, 2, 3, 4, 8, 64))
            raw = b"".join(self._scalar(element) for _ in range(count))
            tree.pairs.append(Pair(key, ARRAY, raw, element, count))
        else:
            kind = pick.choice((4, 4, 4, 4, 5, 6, 6, 7, 7, STRING, *SCALARS))
            tree.pairs.append(Pair(key, kind, self._text() if kind == STRING else self._scalar(kind)))
        return f"add {key!r} {tree.pairs[-1].kind} {tree.pairs[-1].raw[:40]!r}"

    def _drop_pair(self, tree: Tree) -> str:
        return f"drop {tree.pairs.pop(self._random.randrange(len(tree.pairs))).key!r}" if tree.pairs else "nothing"

    def _double_pair(self, tree: Tree) -> str:
        tree.pairs.append(replace(self._random.choice(tree.pairs)))
        return f"double {tree.pairs[-1].key!r}"

    def _set_architecture(self, tree: Tree) -> str:
        """Another architecture, with its hyper-parameters renamed: as if converted by mistake."""
        new = self._random.choice(ARCHITECTURES).encode()
        old = b""
        for pair in tree.pairs:
            if pair.key == b"general.architecture":
                old, pair.raw, pair.kind = pair.raw, new, STRING
        for pair in tree.pairs:
            if old and pair.key.startswith(old + b"."):
                pair.key = new + pair.key[len(old) :]
        return f"architecture {new!r}"

    def _set_shape(self, tree: Tree) -> str:
        pick, tensor = self._random, self._random.choice(tree.tensors)
        shape = list(tensor.shape)
        match pick.randrange(5):
            case 0:
                shape[pick.randrange(len(shape))] = pick.choice((*BOUNDARY, 96, 4096, *HUGE))
            case 1:
                shape.reverse()
            case 2:
                shape.append(pick.choice((1, 1, 2)))
            case 3:
                shape.insert(0, pick.choice((1, 32, 256)))
            case 4:
                shape = [math.prod(shape)]
        tensor.shape = tuple(shape)
        return f"{tensor.name!r} of shape {shape}"

    def _set_type(self, tree: Tree) -> str:
        tensor = self._random.choice(tree.tensors)
        tensor.kind = self._random.choice((*GGML_TYPES, *GGML_TYPES, 4, 5, 99, 2**32 - 1))
        return f"{tensor.name!r} of type {tensor.kind}"

    def _rename_tensor(self, tree: Tree) -> str:
        pick, tensor = self._random, self._random.choice(tree.tensors)
        other = pick.choice(tree.tensors).name
        new = pick.choice(
            (
                other,
                other.replace(b"blk.0", b"blk.%d" % pick.choice((1, 2, 9, 511, 512, 10**9))),
                tensor.name.replace(b"weight", b"bias"),
                tensor.name + b"x",
                b"",
                b"rope_freqs.weight",
                b"output.weight",
                b"token_types.weight",
                b"blk.0.attn_q.bias",
                b"blk.0.attn_sinks.weight",
                self._text()[:80],
            )
        )
        what = f"{tensor.name!r} called {new!r}"
        tensor.name = new
        return what

    def _drop_tensor(self, tree: Tree) -> str:
        if len(tree.tensors) < 2:
            return "nothing"
        return f"drop {tree.tensors.pop(self._random.randrange(len(tree.tensors))).name!r}"

    def _add_tensor(self, tree: Tree) -> str:
        tensor = replace(self._random.choice(tree.tensors))
        tree.tensors.insert(self._random.randrange(len(tree.tensors) + 1), tensor)
        self._rename_tensor(Tree(3, 32, [], [tensor]))
        return f"add {tensor.name!r}"

    def _shift_tensor(self, tree: Tree) -> str:
        tensor = self._random.choice(tree.tensors)
        tensor.shift = self._random.choice((1, 32, -32, 2**20, 2**32, 2**63, 2**64 - 32, -tree.alignment))
        return f"{tensor.name!r} moved by {tensor.shift}"

    def _set_counts(self, tree: Tree) -> str:
        pair = self._random.choice(tree.pairs)
        pair.count = pair.count + self._random.choice((-1, 1, 2**31, 2**61, 2**63)) if pair.kind == ARRAY else 0
        pair.count %= 2**64
        return f"{pair.key!r} with count {pair.count}"

    # --- damage to bytes

    def _damage(self, header: bytes, size: int, what: list[str]) -> tuple[bytes, int]:
        pick = self._random
        raw = bytearray(header)
        for _ in range(pick.choice((1, 1, 1, 2, 4, 16))):
            # Most of a header is vocabulary; counts and hyper-parameters lie before it, tensors behind.
            place = pick.choice(
                (pick.randrange(1200), max(0, len(raw) - 1 - pick.randrange(3500)), pick.randrange(len(raw)))
            )
            place = min(place, len(raw) - 1)
            match pick.randrange(6):
                case 0:
                    raw[place] ^= 1 << pick.randrange(8)
                case 1:
                    width = pick.choice((1, 2, 4, 8))
                    value = (self._whole() % 2 ** (8 * width)).to_bytes(width, "little")
                    raw[place : place + width] = value
                case 2:
                    raw[place:place] = pick.randbytes(pick.choice((1, 4, 8, 64)))
                case 3:
                    del raw[place : place + pick.choice((1, 4, 8, 64))]
                case 4:
                    other = pick.randrange(len(raw))
                    raw[place : place + 16], raw[other : other + 16] = raw[other : other + 16], raw[place : place + 16]
                case 5:
                    size = pick.choice((place, size - 1, pick.randrange(max(1, size)), size + 1, size + 4096))
            if not raw:
                break
        what.append("bytes")
        return bytes(raw), max(0, size)


_CHANGES = (
    *(Mutator._set_value,) * 4,
    *(Mutator._add_pair,) * 4,
    Mutator._set_kind,
    Mutator._drop_pair,
    Mutator._double_pair,
    *(Mutator._set_architecture,) * 2,
    *(Mutator._set_shape,) * 2,
    *(Mutator._set_type,) * 2,
    *(Mutator._rename_tensor,) * 2,
    Mutator._drop_tensor,
    Mutator._add_tensor,
    Mutator._shift_tensor,
    Mutator._set_counts,
)


def _strings(raw: bytes, count: int) -> list[bytes]:
    position, items = 0, []
    for _ in range(count):
        if position + 8 > len(raw):
            break
        (length,) = struct.unpack_from("<Q", raw, position)
        items.append(raw[position + 8 : position + 8 + length])
        position += 8 + length
    return items or [b""]
