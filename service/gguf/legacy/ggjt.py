"""ggjt, the format of llama.cpp from March to August 2023: LLaMA models alone, and little said about them.

Layout, all little-endian: magic, u32 version, seven u32 hyper-parameters, the vocabulary (u32 length, bytes and f32
score of each token), then for each tensor u32 dimensions, u32 length of its name, u32 type, the extents, the name,
padding to 32 bytes, the data. `ggmf`, its forerunner, has no padding. Versions differ in how they quantize: Q4_0, Q4_1
and Q8_0 are as today since version 3, Q5_0 and Q5_1 since version 2, floats ever since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import BY_FILE_TYPE
from service.gguf.header import MAX_TENSORS, MAX_TOKENS
from service.gguf.legacy.old_file import Cursor, OldModel, opened, tensor
from service.gguf.rewriting import Part, pair

_GGML, _GGMF, _GGJT = b"lmgg", b"fmgg", b"tjgg"
MAGICS = (_GGML, _GGMF, _GGJT)

_REMEDY = "fetch the model's GGUF file, or import the checkpoint that it was made from"
_ALIGNMENT = 32
_MAX_TOKEN_BYTES = 4096
_MAX_NAME_BYTES = 4096
_MAX_LAYERS = 512
_MAX_WIDTH = 2**24
_SMALLEST_TOKEN_BYTES = 4 + 4

# Types whose blocks are laid out as today, by version of ggjt; ggmf is 0.
_FLOATS = frozenset({"F32", "F16"})
_VERSION_2 = _FLOATS | {"Q5_0", "Q5_1"}
_VERSION_3 = _VERSION_2 | {"Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
_TYPES = {0: _FLOATS, 1: _FLOATS, 2: _VERSION_2, 3: _VERSION_3}

# What the files leave out. LLaMA 1 was trained with 2048 tokens and an epsilon of 1e-6, Llama 2 with 4096 and 1e-5;
# only the model of 70B shares keys, so it is known, and for the others llama.cpp of the time took the middle.
_CONTEXT, _SHARED_CONTEXT = 2048, 4096
_EPSILON, _SHARED_EPSILON = 5e-6, 1e-5

_NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
_LAYER = re.compile(r"layers\.(\d{1,3})\.([a-z_0-9.]{1,40})\.weight")
_LAYER_NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "ffn_norm": "ffn_norm",
}
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPECIAL = ((b"<unk>", _UNKNOWN), (b"<s>", _CONTROL), (b"</s>", _CONTROL))
_BYTE_IDS = range(3, 259)


@dataclass(frozen=True, slots=True)
class _Sizes:
    vocabulary: int
    embedding: int
    multiple: int
    heads: int
    layers: int
    rotated: int
    file_type: int


def read(path: Path) -> OldModel:
    """The metadata and tensors of such a file, under their names of today. Raises InvalidModel."""
    with opened(path) as cursor:
        name, version = _format(cursor)
        sizes = _Sizes(*cursor.numbers("I", 7, "the hyper-parameters"))
        _check_sizes(sizes)
        tokens, scores, kinds = _vocabulary(cursor, sizes.vocabulary)
        parts: list[Part] = []
        while cursor.position < cursor.size:
            if len(parts) == MAX_TENSORS:
                raise InvalidModel(f"The file holds more than {MAX_TENSORS} tensors; it is corrupt.")
            parts.append(_part(cursor, padding=name == "ggjt"))
        shapes = _shapes(parts)
        _check_types(parts, name, version)
    label = f"{name} version {version}"
    pairs = [
        pair("general.architecture", "str", "llama"),
        pair("general.type", "str", "model"),
        *_hyper_parameters(sizes, shapes),
        *_labels(sizes.file_type, parts),
        pair("tokenizer.ggml.model", "str", "llama"),
        pair("tokenizer.ggml.pre", "str", "default"),
        pair("tokenizer.ggml.tokens", "arr[str]", tokens),
        pair("tokenizer.ggml.scores", "arr[f32]", scores),
        pair("tokenizer.ggml.token_type", "arr[i32]", kinds),
        pair("tokenizer.ggml.unknown_token_id", "u32", 0),
        pair("tokenizer.ggml.bos_token_id", "u32", 1),
        pair("tokenizer.ggml.eos_token_id", "u32", 2),
    ]
    return OldModel(pairs, parts, _ALIGNMENT, label)


def _format(cursor: Cursor) -> tuple[str, int]:
    magic = cursor.take(4, "its first bytes")
    if magic == _GGML:
        raise InvalidModel(f"The file is of the first GGML format, whose vocabulary has no scores; {_REMEDY}.")
    version = cursor.number("I", "the format version")
    if magic == _GGMF and version == 1:
        return "ggmf", version
    if magic == _GGJT and 1 <= version <= 3:
        return "ggjt", version
    raise InvalidModel(f"The file is of version {version} of an old GGML format, which never was; it is corrupt.")


def _check_sizes(sizes: _Sizes) -> None:
    if not 3 <= sizes.vocabulary <= MAX_TOKENS:
        raise InvalidModel(f"The vocabulary has {sizes.vocabulary} tokens; 3 to {MAX_TOKENS} are allowed.")
    if not 1 <= sizes.layers <= _MAX_LAYERS or not 1 <= sizes.embedding <= _MAX_WIDTH:
        raise InvalidModel(
            f"The file announces {sizes.layers} layers, {sizes.embedding} wide, which no model has; it is corrupt."
        )
    if not 1 <= sizes.heads <= sizes.embedding or sizes.embedding % sizes.heads:
        raise InvalidModel(f"{sizes.heads} attention heads cannot share a width of {sizes.embedding}.")


def _vocabulary(cursor: Cursor, count: int) -> tuple[list[bytes], list[float], list[int]]:
    """Texts, scores and types as GGUF has them: bytes were written as themselves, the space as itself."""
    cursor.check_count(count, MAX_TOKENS, _SMALLEST_TOKEN_BYTES, "tokens")
    texts: list[bytes] = []
    scores: list[float] = []
    kinds: list[int] = []
    for index in range(count):
        text = cursor.counted("a token", _MAX_TOKEN_BYTES)
        scores.append(cursor.fraction("the score of a token"))
        kind = _NORMAL
        if index < len(_SPECIAL):
            text, kind = _SPECIAL[index]
        elif not text:
            kind = _CONTROL
        elif index in _BYTE_IDS and len(text) == 1:
            text, kind = b"<0x%02X>" % text[0], _BYTE
        else:
            text = text.replace(b" ", "▁".encode())
        texts.append(text)
        kinds.append(kind)
    return texts, scores, kinds


def _part(cursor: Cursor, *, padding: bool) -> Part:
    dimensions, name_bytes, kind = cursor.numbers("I", 3, "a tensor")
    cursor.check_count(dimensions, 2, 4, "dimensions of a tensor")
    cursor.check_count(name_bytes, _MAX_NAME_BYTES, 1, "bytes of a tensor's name")
    shape = cursor.numbers("I", dimensions, "the shape of a tensor")
    name = _name(cursor.take(name_bytes, "the name of a tensor"))
    if padding:
        cursor.skip(-cursor.position % _ALIGNMENT, "the padding before a tensor")
    info = tensor(name.encode(), shape, kind)
    return Part(info, cursor.path, cursor.skip(info.size_bytes, f"the data of tensor {name!a}"))


def _name(raw: bytes) -> str:
    old = raw.decode("ascii", "replace")
    found = _LAYER.fullmatch(old)
    if old in _NAMES:
        return _NAMES[old]
    if found is not None and found[2] in _LAYER_NAMES:
        return f"blk.{int(found[1])}.{_LAYER_NAMES[found[2]]}.weight"
    raise InvalidModel(f"The file has a tensor {old[:80]!a}, which no LLaMA model has; {_REMEDY}.")


def _shapes(parts: list[Part]) -> dict[str, TensorInfo]:
    found = {part.tensor.name: part.tensor for part in parts}
    if len(found) != len(parts):
        raise InvalidModel("A tensor occurs twice; the file is corrupt.")
    return found


def _check_types(parts: list[Part], name: str, version: int) -> None:
    known = _TYPES[version if name == "ggjt" else 0]
    for part in parts:
        if part.tensor.type not in known:
            raise InvalidModel(
                f"The file is {name} version {version} with weights in {part.tensor.type}, which was laid out "
                f"differently then; {_REMEDY}."
            )


def _hyper_parameters(sizes: _Sizes, shapes: dict[str, TensorInfo]) -> list[bytes]:
    head = sizes.embedding // sizes.heads
    embedding = shapes.get("token_embd.weight")
    if embedding is None or embedding.shape != (sizes.embedding, sizes.vocabulary):
        raise InvalidModel(
            f"The embedding is not {sizes.vocabulary} rows of {sizes.embedding}; the file is corrupt, or one part of a "
            f"model in several files: {_REMEDY}."
        )
    gate, keys = shapes.get("blk.0.ffn_gate.weight"), shapes.get("blk.0.attn_k.weight")
    if gate is None or keys is None or len(gate.shape) != 2 or len(keys.shape) != 2 or keys.shape[1] % head:
        raise InvalidModel("The first layer has no feed-forward or key weights of a LLaMA model; the file is corrupt.")
    kv_heads = keys.shape[1] // head
    shared = kv_heads < sizes.heads
    return [
        pair("llama.context_length", "u32", _SHARED_CONTEXT if shared else _CONTEXT),
        pair("llama.embedding_length", "u32", sizes.embedding),
        pair("llama.block_count", "u32", sizes.layers),
        pair("llama.feed_forward_length", "u32", gate.shape[1]),
        pair("llama.rope.dimension_count", "u32", head),
        pair("llama.attention.head_count", "u32", sizes.heads),
        pair("llama.attention.head_count_kv", "u32", kv_heads),
        pair("llama.attention.layer_norm_rms_epsilon", "f32", _SHARED_EPSILON if shared else _EPSILON),
        pair("llama.vocab_size", "u32", sizes.vocabulary),
    ]


def _labels(file_type: int, parts: list[Part]) -> list[bytes]:
    pairs = []
    if file_type in BY_FILE_TYPE:
        pairs.append(pair("general.file_type", "u32", file_type))
    if any(part.tensor.type not in _FLOATS for part in parts):
        pairs.append(pair("general.quantization_version", "u32", 2))
    return pairs
