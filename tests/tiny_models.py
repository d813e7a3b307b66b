"""Tiny GGUF models with random weights, one for each kind of memory llama.cpp has, and LoRA adapters for them.

Tests write them into a temporary folder: half a second for all, 1.3 MB each at most, the same bytes for the same seed.
The generating ones have the tokenizer and chat template of gloss, so any text tokenizes; what they write is nonsense,
greedy text depends on the whole prompt, and no token ends it early.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.server import GLOSS

CONTEXT_LENGTH = 2048
BERT_CONTEXT_LENGTH = 256
SLIDING_WINDOW = 16
EXPERTS = 6
EXPERTS_USED = 2

_SIZE = 64  # of the embedding; two heads of 32, which quantized KV caches can hold
_HEADS = 2
_INNER = 128  # of feed-forward layers, and of Mamba's state-space layers, where it must be twice the embedding
_LAYERS = 2
_STATE = 16
_CONVOLUTION = 4
_TIME_STEP_RANK = 4

_gloss: gguf.GGUFReader | None = None


class _File:
    """A GGUF file being written, with random tensors by name."""

    def __init__(
        self, path: Path, architecture: str, seed: int, *, length: int = CONTEXT_LENGTH, **numbers: Any
    ) -> None:
        self.writer = gguf.GGUFWriter(path, architecture)
        self.random = np.random.default_rng(seed)
        self.writer.add_type("model")
        self.writer.add_name(f"tiny-{architecture}")
        self.writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        self.writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.writer.add_context_length(length)
        self.writer.add_embedding_length(_SIZE)
        self.writer.add_block_count(_LAYERS)
        self.writer.add_feed_forward_length(_INNER)
        for key, value in numbers.items():
            name = f"{architecture}.{key.replace('__', '.')}"
            if isinstance(value, bool):
                self.writer.add_bool(name, value)
            elif isinstance(value, list):
                self.writer.add_array(name, value)
            elif isinstance(value, float):
                self.writer.add_float32(name, value)
            else:
                self.writer.add_uint32(name, value)

    def matrix(self, name: str, columns: int, rows: int, *, gain: float = 1.0, only_f32: bool = False) -> None:
        """Outputs of about `gain` times the size of the inputs; `columns` is what a row is multiplied with."""
        values = self.random.standard_normal((rows, columns), dtype=np.float32) * gain / np.sqrt(columns)
        self.tensor(name, values.astype(np.float32 if only_f32 else np.float16))

    def vector(self, name: str, size: int, value: float = 1.0) -> None:
        self.tensor(name, np.full(size, value, dtype=np.float32))

    def tensor(self, name: str, values: NDArray[Any]) -> None:
        self.writer.add_tensor(name, values)

    def embeddings(self, vocabulary_size: int, *, scale: float = 1.0) -> None:
        values = self.random.standard_normal((vocabulary_size, _SIZE), dtype=np.float32) * scale
        self.tensor("token_embd.weight", values.astype(np.float16))

    def output(self, norm: str = "output_norm") -> None:
        """Rows of their own, as tied ones would echo the last token; zeros for control tokens, never likeliest then."""
        self.vector(f"{norm}.weight", _SIZE)
        fields = _gloss_fields()
        kinds = np.array(fields["tokenizer.ggml.token_type"].contents())
        values = self.random.standard_normal((len(kinds), _SIZE), dtype=np.float32) / np.sqrt(_SIZE)
        values[kinds != gguf.TokenType.NORMAL] = 0
        self.tensor("output.weight", values.astype(np.float16))

    def attention(self, layer: int, *, gain: float = 2.0) -> None:
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            self.matrix(f"blk.{layer}.{part}.weight", _SIZE, _SIZE, gain=gain)

    def feed_forward(self, layer: int, *, gated: bool = True) -> None:
        self.matrix(f"blk.{layer}.ffn_up.weight", _SIZE, _INNER, gain=2.0)
        self.matrix(f"blk.{layer}.ffn_down.weight", _INNER, _SIZE)
        if gated:
            self.matrix(f"blk.{layer}.ffn_gate.weight", _SIZE, _INNER, gain=2.0)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write_llama(
    path: Path, *, seed: int = 1, pooling: gguf.PoolingType | None = None, infill_tokens: dict[str, int] | None = None
) -> None:
    """Full attention: a sequence can be cut and shared anywhere. Says nothing of pooling unless told to.

    `infill_tokens`: ids of the tokens `pre`, `suf`, `mid`, `rep` and `sep`, which mark holes in a text.
    """
    file = _File(
        path,
        "llama",
        seed,
        attention__head_count=_HEADS,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__freq_base=10000.0,
    )
    if pooling is not None:
        file.writer.add_pooling_type(pooling)
    _add_gloss_tokenizer(file)
    for kind, token in (infill_tokens or {}).items():
        file.writer.add_uint32(f"tokenizer.ggml.fim_{kind}_token_id", token)
    file.embeddings(_gloss_vocabulary_size())
    file.output()
    for layer in range(_LAYERS):
        file.vector(f"blk.{layer}.attn_norm.weight", _SIZE)
        file.attention(layer)
        file.vector(f"blk.{layer}.ffn_norm.weight", _SIZE)
        file.feed_forward(layer)
    file.close()


def write_sliding_window(path: Path, *, seed: int = 2) -> None:
    """Gemma 3: the first layer sees the last SLIDING_WINDOW tokens only, the second all."""
    file = _File(
        path,
        "gemma3",
        seed,
        attention__head_count=_HEADS,
        attention__key_length=_SIZE // _HEADS,
        attention__value_length=_SIZE // _HEADS,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__sliding_window=SLIDING_WINDOW,
        attention__sliding_window_pattern=2,
        rope__freq_base=10000.0,
    )
    _add_gloss_tokenizer(file)
    file.embeddings(_gloss_vocabulary_size(), scale=1 / np.sqrt(_SIZE))  # Gemma multiplies them by sqrt(size)
    file.output()
    for layer in range(_LAYERS):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            file.vector(f"blk.{layer}.{name}.weight", _SIZE)
        for name in ("attn_q_norm", "attn_k_norm"):
            file.vector(f"blk.{layer}.{name}.weight", _SIZE // _HEADS, 1.5)
        file.attention(layer)
        file.feed_forward(layer)
    file.close()


def write_recurrent(path: Path, *, seed: int = 3) -> None:
    """Mamba: no attention, a state that each token overwrites."""
    file = _File(
        path,
        "mamba",
        seed,
        ssm__conv_kernel=_CONVOLUTION,
        ssm__inner_size=_INNER,
        ssm__state_size=_STATE,
        ssm__time_step_rank=_TIME_STEP_RANK,
        attention__layer_norm_rms_epsilon=1e-5,
    )
    _add_gloss_tokenizer(file)
    file.embeddings(_gloss_vocabulary_size())
    file.output()
    decay = -np.tile(np.arange(1, _STATE + 1, dtype=np.float32), (_INNER, 1))
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        file.vector(f"{block}.attn_norm.weight", _SIZE)
        file.matrix(f"{block}.ssm_in.weight", _SIZE, 2 * _INNER, gain=2.0)
        file.matrix(f"{block}.ssm_conv1d.weight", _CONVOLUTION, _INNER, only_f32=True)
        file.vector(f"{block}.ssm_conv1d.bias", _INNER, 0.0)
        file.matrix(f"{block}.ssm_x.weight", _INNER, _TIME_STEP_RANK + 2 * _STATE, gain=2.0)
        file.matrix(f"{block}.ssm_dt.weight", _TIME_STEP_RANK, _INNER, gain=0.5)
        # softplus(-3) is a time step of 0.05: the slowest of the states remembers about 20 tokens.
        file.vector(f"{block}.ssm_dt.bias", _INNER, -3.0)
        file.tensor(f"{block}.ssm_a", decay)
        file.vector(f"{block}.ssm_d", _INNER, 1.0)
        file.matrix(f"{block}.ssm_out.weight", _INNER, _SIZE, gain=2.0)
    file.close()


def write_hybrid(path: Path, *, seed: int = 4) -> None:
    """LFM2: the first layer is a short convolution with a state, the second attention."""
    file = _File(
        path,
        "lfm2",
        seed,
        attention__head_count=_HEADS,
        attention__head_count_kv=[0, _HEADS],
        attention__layer_norm_rms_epsilon=1e-5,
        shortconv__l_cache=_CONVOLUTION,
        rope__freq_base=10000.0,
        vocab_size=_gloss_vocabulary_size(),
    )
    _add_gloss_tokenizer(file)
    file.embeddings(_gloss_vocabulary_size())
    file.output("token_embd_norm")  # what LFM2's files call the norm before the output
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        file.vector(f"{block}.attn_norm.weight", _SIZE)
        file.vector(f"{block}.ffn_norm.weight", _SIZE)
        file.feed_forward(layer)
    file.matrix("blk.0.shortconv.conv.weight", _CONVOLUTION, _SIZE, only_f32=True)
    file.matrix("blk.0.shortconv.in_proj.weight", _SIZE, 3 * _SIZE, gain=2.0)
    file.matrix("blk.0.shortconv.out_proj.weight", _SIZE, _SIZE)
    file.attention(1)
    for name in ("attn_q_norm", "attn_k_norm"):
        file.vector(f"blk.1.{name}.weight", _SIZE // _HEADS, 1.5)
    file.close()


def write_bert(path: Path, *, seed: int = 5, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> None:
    """BERT, with mean pooling unless told otherwise: embeddings only, no memory, no text."""
    file = _File(
        path,
        "bert",
        seed,
        length=BERT_CONTEXT_LENGTH,
        attention__head_count=_HEADS,
        attention__layer_norm_epsilon=1e-12,
        attention__causal=False,
    )
    file.writer.add_pooling_type(pooling)
    vocabulary_size = _add_wordpiece_tokenizer(file)
    file.embeddings(vocabulary_size)
    positions = file.random.standard_normal((BERT_CONTEXT_LENGTH, _SIZE), dtype=np.float32) * 0.3
    file.tensor("position_embd.weight", positions)
    file.tensor("token_types.weight", np.zeros((2, _SIZE), dtype=np.float32))
    _add_norm(file, "token_embd_norm")
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        file.attention(layer)
        file.feed_forward(layer, gated=False)
        for name, size in (("attn_q", _SIZE), ("attn_k", _SIZE), ("attn_v", _SIZE), ("attn_output", _SIZE)):
            file.vector(f"{block}.{name}.bias", size, 0.0)
        file.vector(f"{block}.ffn_up.bias", _INNER, 0.0)
        file.vector(f"{block}.ffn_down.bias", _SIZE, 0.0)
        _add_norm(file, f"{block}.attn_output_norm")
        _add_norm(file, f"{block}.layer_output_norm")
    if pooling is gguf.PoolingType.RANK:
        file.matrix("cls.output.weight", _SIZE, 1)
        file.vector("cls.output.bias", 1, 0.25)
    file.close()


def write_mixture(path: Path, *, seed: int = 7, experts: int = EXPERTS) -> None:
    """A mixture of experts: each token goes to EXPERTS_USED of them. Not among WRITERS, its memory is that of llama."""
    file = _File(
        path,
        "llama",
        seed,
        attention__head_count=_HEADS,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__freq_base=10000.0,
        expert_count=experts,
        expert_used_count=EXPERTS_USED,
    )
    _add_gloss_tokenizer(file)
    file.embeddings(_gloss_vocabulary_size())
    file.output()
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        file.vector(f"{block}.attn_norm.weight", _SIZE)
        file.attention(layer)
        file.vector(f"{block}.ffn_norm.weight", _SIZE)
        file.matrix(f"{block}.ffn_gate_inp.weight", _SIZE, experts, gain=4.0, only_f32=True)
        for part, columns, rows in (("gate", _SIZE, _INNER), ("up", _SIZE, _INNER), ("down", _INNER, _SIZE)):
            values = file.random.standard_normal((experts, rows, columns), dtype=np.float32) * 2 / np.sqrt(columns)
            file.tensor(f"{block}.ffn_{part}_exps.weight", values.astype(np.float16))
    file.close()


WRITERS: dict[str, Callable[[Path], None]] = {
    "llama": write_llama,
    "sliding-window": write_sliding_window,
    "recurrent": write_recurrent,
    "hybrid": write_hybrid,
    "bert": write_bert,
}
GENERATING = ("llama", "sliding-window", "recurrent", "hybrid")


def write_all(folder: Path) -> dict[str, Path]:
    """Every model, as `tiny-KIND.gguf`; the paths by kind."""
    paths = {kind: folder / f"tiny-{kind}.gguf" for kind in WRITERS}
    for kind, path in paths.items():
        WRITERS[kind](path)
    return paths


def write_adapter(path: Path, base: Path, *, seed: int = 6, rank: int = 4, strength: float = 1.0) -> None:
    """A LoRA adapter for the values and down-projections of `base`; at scale 1 it changes greedy text.

    The added product has `strength` times the spread of the weights it is added to.
    """
    reader = gguf.GGUFReader(base)
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    writer.add_type("adapter")
    writer.add_name(f"tiny-adapter-{seed}")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # alpha / rank is the factor at scale 1
    for tensor in reader.tensors:
        if not tensor.name.endswith(("attn_v.weight", "ffn_down.weight", "ssm_out.weight")):
            continue
        rows, columns = tensor.data.shape
        spread = strength * float(np.std(tensor.data.astype(np.float32))) / np.sqrt(rank)
        a = random.standard_normal((rank, columns), dtype=np.float32)
        b = random.standard_normal((rows, rank), dtype=np.float32) * np.float32(spread)
        writer.add_tensor(f"{tensor.name}.lora_a", a)
        writer.add_tensor(f"{tensor.name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gloss_fields() -> dict[str, gguf.ReaderField]:
    global _gloss
    if _gloss is None:
        _gloss = gguf.GGUFReader(GLOSS)
    return _gloss.fields


def _gloss_vocabulary_size() -> int:
    return len(_gloss_fields()["tokenizer.ggml.tokens"].data)


def _add_gloss_tokenizer(file: _File) -> None:
    for name, field in _gloss_fields().items():
        if name.startswith("tokenizer."):
            item = field.types[-1] if len(field.types) > 1 else None
            file.writer.add_key_value(name, field.contents(), field.types[0], item)


def _add_wordpiece_tokenizer(file: _File) -> int:
    """The words of gloss's vocabulary, then letters, digits and signs, which spell every other word; how many."""
    pieces = _gloss_fields()["tokenizer.ggml.tokens"].contents()
    words = [piece[1:] for piece in pieces if piece.startswith("Ġ") and piece[1:].isalpha() and piece[1:].islower()]
    signs = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # GGUF marks the start of a word where BERT's own lists mark what goes on with ##.
    starts = dict.fromkeys("▁" + word for word in [*words, *signs])
    tokens = [*special, *starts, *signs]
    kinds = [gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (len(tokens) - len(special))
    file.writer.add_tokenizer_model("bert")
    file.writer.add_token_list(tokens)
    file.writer.add_token_types(kinds)
    file.writer.add_token_type_count(2)
    file.writer.add_pad_token_id(0)
    file.writer.add_unk_token_id(1)
    file.writer.add_bos_token_id(2)
    file.writer.add_eos_token_id(3)
    file.writer.add_sep_token_id(3)
    file.writer.add_mask_token_id(4)
    return len(tokens)


def _add_norm(file: _File, name: str) -> None:
    file.vector(f"{name}.weight", _SIZE)
    file.vector(f"{name}.bias", _SIZE, 0.0)
