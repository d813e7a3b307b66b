"""Writers of formats that nobody writes any more: ggjt and ggmf of 2023, GGUF version 1; and of split models.

Each makes an old file of a GGUF file that `write_llama` has made (or llama.cpp has quantized), so that what becomes of
it can be compared with that. Written from the readers of llama.cpp's releases of that time, not from service/gguf.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

EPSILON = 5e-6  # what is assumed of a file that does not say
WIDTH = 256
HEADS = 4

_LAYER_NAMES = {
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "attn_norm": "attention_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_norm": "ffn_norm",
}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def write_llama(path: Path, quantization: str = "F16", *, kv_heads: int = HEADS, layers: int = 2) -> Path:
    """A tiny LLaMA with a SentencePiece vocabulary; matrices in a type that gguf-py can write."""
    random = np.random.default_rng(11)
    tokens, scores, kinds = _vocabulary()
    shared = kv_heads < HEADS
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    writer.add_context_length(4096 if shared else 2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDTH)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5 if shared else EPSILON)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def matrix(name: str, rows: int, gain: float) -> None:
        values = random.standard_normal((rows, WIDTH), dtype=np.float32) * np.float32(gain / np.sqrt(WIDTH))
        kind = gguf.GGMLQuantizationType[quantization]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(name, 1 + random.standard_normal(WIDTH, dtype=np.float32) / 10)

    matrix("token_embd.weight", len(tokens), 16.0)
    vector("output_norm.weight")
    matrix("output.weight", len(tokens), 1.0)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"):
            rows = WIDTH * kv_heads // HEADS if name in ("attn_k", "attn_v") else WIDTH
            matrix(f"blk.{layer}.{name}.weight", rows, 2.0)
        vector(f"blk.{layer}.attn_norm.weight")
        vector(f"blk.{layer}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    pieces = [
        *"etaoinshrdlucmfwypvbgk",
        "▁",
        "▁t",
        "he",
        "▁the",
        "in",
        "er",
        "▁a",
        "on",
        "▁w",
        "▁s",
        "ed",
        "▁of",
        "ing",
    ]
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    tokens += [piece.encode() for piece in pieces]
    kinds += [1] * len(pieces)
    scores = [0.0] * 259 + [-float(place) for place in range(len(pieces))]
    return tokens, scores, kinds


def write_ggjt(source: Path, target: Path, *, version: int = 3, magic: bytes = b"tjgg") -> Path:
    """The model of a GGUF file as llama.cpp's converters wrote it in 2023; `magic` fmgg and lmgg are older ones."""
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    out = bytearray(magic)
    if magic != b"lmgg":
        out += struct.pack("<I", version)
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    sizes = (len(tokens), width, 256, heads, fields["llama.block_count"], width // heads, fields["general.file_type"])
    out += struct.pack("<7I", *sizes)
    for index, (text, score) in enumerate(zip(tokens, fields["tokenizer.ggml.scores"], strict=True)):
        raw = _token_of_then(index, text)
        out += struct.pack("<I", len(raw)) + raw
        if magic != b"lmgg":
            out += struct.pack("<f", score)
    for tensor in reader.tensors:
        name = _name_of_then(tensor.name).encode()
        shape = [int(extent) for extent in tensor.shape]
        out += struct.pack("<3I", len(shape), len(name), int(tensor.tensor_type))
        out += struct.pack(f"<{len(shape)}I", *shape) + name
        if magic == b"tjgg":
            out += bytes(-len(out) % 32)
        out += tensor.data.tobytes()
    target.write_bytes(out)
    return target


def _token_of_then(index: int, text: str) -> bytes:
    if index == 0:
        return " \u2047 ".encode()
    if index <= 2:
        return b""
    if re.fullmatch("<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()


def _name_of_then(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"layers.{layer}.{_LAYER_NAMES[part]}.weight"
    return {
        "token_embd.weight": "tok_embeddings.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "output.weight",
    }[name]


def write_gguf_v1(source: Path, target: Path) -> Path:
    """The same file in version 1: every count and length in 32 bits."""
    data = source.read_bytes()
    out = bytearray(b"GGUF" + struct.pack("<I", 1))
    position = 8

    def take(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize(code)
        return int(value)

    def narrow() -> int:
        value = take("Q")
        out.extend(struct.pack("<I", value))
        return value

    def copy(size: int) -> bytes:
        nonlocal position
        out.extend(data[position : position + size])
        position += size
        return data[position - size : position]

    def string() -> None:
        copy(narrow())

    tensors, pairs = narrow(), narrow()
    for _ in range(pairs):
        string()
        kind, count = struct.unpack("<I", copy(4))[0], 1
        if kind == 9:
            kind = struct.unpack("<I", copy(4))[0]
            count = narrow()
        for _ in range(count):
            if kind == 8:
                string()
            else:
                copy(_SIZES[kind])
    for _ in range(tensors):
        string()
        for _ in range(struct.unpack("<I", copy(4))[0]):
            narrow()
        copy(4 + 8)
    position += -position % 32
    out += bytes(-len(out) % 32)
    out += data[position:]
    target.write_bytes(out)
    return target


def write_split(source: Path, folder: Path, stem: str = "model", *, most_tensors: int = 5, bare: bool = False) -> Any:
    """The pieces of a GGUF file, as paths in order, by gguf-py; with `bare` the first has no tensors."""
    reader = gguf.GGUFReader(source)
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(
        folder / f"{stem}.gguf",
        str(reader.fields["general.architecture"].contents()),
        split_max_tensors=most_tensors,
        small_first_shard=bare,
    )
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        item = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{stem}-*.gguf"))


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """All metadata of a GGUF file, and of each tensor the shape, the type and the bytes."""
    reader = gguf.GGUFReader(path)
    pairs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        tensor.name: (tuple(int(n) for n in tensor.shape), int(tensor.tensor_type), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return pairs, tensors
