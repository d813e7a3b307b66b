"""Tiny checkpoints with random weights, in the files that Hugging Face's libraries write: one family each.

`write` makes a folder with config.json, safetensors (in shards if asked for) and the tokenizer's files, the same bytes
for the same seed; 2 to 4 MB in F32. Tokenizers are real ones with small vocabularies, learned from a few sentences
(tests/checkpoint_tokenizers.py). Rows are 256 wide, so that every quantization type applies. Needs numpy alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import checkpoint_tokenizers as tokenizers
from tests import unigram_tokenizers

HIDDEN = 256
INNER = 256
LAYERS = 2
HEADS = 4
KEY_VALUE_HEADS = 2
HEAD = 64
CONTEXT = 512

Tensors = dict[str, NDArray[np.float32]]
Ids = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Family:
    """`tokenizer` writes its files and answers its tokens; `config` takes their ids and the size of the vocabulary."""

    tokenizer: Callable[[Path], list[str]]
    config: Callable[[Ids, int], dict[str, Any]]
    tensors: Callable[[np.random.Generator, Mapping[str, Any]], Tensors]
    padding: int = 0  # rows of the embedding that no token has


def write(folder: Path, family: str, *, dtype: str = "F32", seed: int = 0, shards: int = 1) -> Path:
    """A checkpoint of one of FAMILIES in `folder`, which is made; `dtype` of its tensors is F32, F16 or BF16."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = FAMILIES[family]
    tokens = kind.tokenizer(folder)
    config = kind.config({text: number for number, text in enumerate(tokens)}, len(tokens) + kind.padding)
    config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    write_json(folder / "config.json", config)
    tensors = kind.tensors(np.random.default_rng(seed), config)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {tensor: tensors[tensor] for tensor in names[shard::shards]}
        write_safetensors(folder / name, part, dtype)
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.size for tensor in tensors.values()) * (4 if dtype == "F32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str | None = None) -> None:
    """`dtype` F32, F16 or BF16 for all, which are float32 then; without it, each as numpy has it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks = []
    offset = 0
    for name, values in tensors.items():
        chunk = _encoded(values, dtype)
        kind = dtype or _SAFETENSORS_NAMES[values.dtype.name]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [offset, offset + len(chunk)]}
        offset += len(chunk)
        chunks.append(chunk)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(chunks)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_SAFETENSORS_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}


def _encoded(values: NDArray[Any], dtype: str | None) -> bytes:
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    if dtype == "BF16":  # the upper half of a float32, to nearest, ties to even
        bits = values.astype("<f4").view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values).tobytes()


# ---- tensors ----


class _Weights:
    """Random tensors by name: matrices as torch has them (outputs, inputs)."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.tensors: Tensors = {}

    def matrix(self, name: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        values = self.random.standard_normal((outputs, inputs), dtype=np.float32)
        self.tensors[name] = values * np.float32(gain / np.sqrt(inputs))

    def vector(self, name: str, size: int, around: float = 0.0) -> None:
        values = self.random.standard_normal(size, dtype=np.float32)
        self.tensors[name] = np.float32(around) + values * np.float32(0.1)


def _decoder(
    random: np.random.Generator,
    config: Mapping[str, Any],
    *,
    biases: bool = False,
    head_norms: bool = False,
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
    around: float = 1.0,
    fused: bool = False,
    experts: Callable[[_Weights, str, Mapping[str, Any]], None] | None = None,
) -> Tensors:
    """Llama's tensors and what its relatives add to them; the norms' weights lie around `around`."""
    weights = _Weights(random)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config.get("head_dim", HEAD)
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    weights.matrix("model.embed_tokens.weight", config["vocab_size"], hidden, gain=4.0)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for norm in norms:
            weights.vector(f"{start}.{norm}.weight", hidden, around)
        if fused:
            weights.matrix(f"{start}.self_attn.qkv_proj.weight", queries + 2 * keys, hidden, gain=2.0)
            weights.matrix(f"{start}.mlp.gate_up_proj.weight", 2 * inner, hidden, gain=2.0)
        else:
            for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
                weights.matrix(f"{start}.self_attn.{part}_proj.weight", outputs, hidden, gain=2.0)
                if biases:
                    weights.vector(f"{start}.self_attn.{part}_proj.bias", outputs)
            if experts is None:
                for part in ("gate", "up"):
                    weights.matrix(f"{start}.mlp.{part}_proj.weight", inner, hidden, gain=2.0)
        if head_norms:
            for part in ("q", "k"):
                weights.vector(f"{start}.self_attn.{part}_norm.weight", head, around)
        weights.matrix(f"{start}.self_attn.o_proj.weight", hidden, queries)
        if experts is None:
            weights.matrix(f"{start}.mlp.down_proj.weight", hidden, inner)
        else:
            experts(weights, start, config)
    weights.vector("model.norm.weight", hidden, around)
    if not config.get("tie_word_embeddings", False):
        weights.matrix("lm_head.weight", config["vocab_size"], hidden)
    return weights.tensors


def _llama(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config)


def _qwen2(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, biases=True)


def _qwen3(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, head_norms=True)


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _gemma(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, around=0.0)


def _gemma2(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, norms=_GEMMA_NORMS, around=0.0)


def _gemma3(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, norms=_GEMMA_NORMS, around=0.0, head_norms=True)


def _phi3(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    return _decoder(random, config, fused=True)


def _mixtral(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    def experts(weights: _Weights, start: str, config: Mapping[str, Any]) -> None:
        count, hidden, inner = config["num_local_experts"], config["hidden_size"], config["intermediate_size"]
        weights.matrix(f"{start}.block_sparse_moe.gate.weight", count, hidden)
        for expert in range(count):
            for part, outputs, inputs in (("w1", inner, hidden), ("w2", hidden, inner), ("w3", inner, hidden)):
                weights.matrix(f"{start}.block_sparse_moe.experts.{expert}.{part}.weight", outputs, inputs)

    return _decoder(random, config, experts=experts)


def _qwen3_moe(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    def experts(weights: _Weights, start: str, config: Mapping[str, Any]) -> None:
        count, hidden, inner = config["num_experts"], config["hidden_size"], config["moe_intermediate_size"]
        weights.matrix(f"{start}.mlp.gate.weight", count, hidden)
        for expert in range(count):
            for part, outputs, inputs in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
                weights.matrix(f"{start}.mlp.experts.{expert}.{part}_proj.weight", outputs, inputs)

    return _decoder(random, config, head_norms=True, experts=experts)


def _gemma3_sees(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    """The language model within, and some of the tower that sees, which is left out."""
    own = _gemma3(random, config["text_config"])
    vision = _Weights(random)
    vision.matrix("vision_tower.vision_model.embeddings.position_embedding.weight", 4, 32)
    vision.vector("vision_tower.vision_model.encoder.layers.0.layer_norm1.weight", 32)
    vision.matrix("multi_modal_projector.mm_input_projection_weight", 32, HIDDEN)
    return {f"language_model.{name}": tensor for name, tensor in own.items()} | vision.tensors


def _bert(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    weights = _Weights(random)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    for table, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        weights.matrix(f"embeddings.{table}_embeddings.weight", rows, hidden, gain=4.0)

    def norm(name: str) -> None:
        weights.vector(f"{name}.LayerNorm.weight", hidden, 1.0)
        weights.vector(f"{name}.LayerNorm.bias", hidden)

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights.matrix(f"{name}.weight", outputs, inputs)
        weights.vector(f"{name}.bias", outputs)

    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        start = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{start}.attention.self.{part}", hidden, hidden)
        linear(f"{start}.attention.output.dense", hidden, hidden)
        norm(f"{start}.attention.output")
        linear(f"{start}.intermediate.dense", inner, hidden)
        linear(f"{start}.output.dense", hidden, inner)
        norm(f"{start}.output")
    linear("pooler.dense", hidden, hidden)
    return weights.tensors


def _reranker(random: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    weights = _Weights(random)
    hidden = config["hidden_size"]
    for name, outputs in (("dense", hidden), ("out_proj", 1)):
        weights.matrix(f"classifier.{name}.weight", outputs, hidden)
        weights.vector(f"classifier.{name}.bias", outputs)
    own = {name: tensor for name, tensor in _bert(random, config).items() if not name.startswith("pooler.")}
    return {f"roberta.{name}": tensor for name, tensor in own.items()} | weights.tensors


# ---- config.json ----


def _shape(architecture: str, model_type: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "transformers_version": "4.51.0",
    } | more


def _smollm2_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "LlamaForCausalLM",
        "llama",
        vocabulary,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_theta=100000,
        tie_word_embeddings=True,
        rope_scaling=None,
    )


def _llama2_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape("LlamaForCausalLM", "llama", vocabulary, bos_token_id=1, eos_token_id=2)


def _llama3_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    scaling = {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 128,
        "rope_type": "llama3",
    }
    return _shape(
        "LlamaForCausalLM",
        "llama",
        vocabulary,
        head_dim=HEAD,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=[ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
        rope_theta=500000.0,
        rope_scaling=scaling,
        tie_word_embeddings=True,
    )


def _mistral_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape("MistralForCausalLM", "mistral", vocabulary, bos_token_id=1, eos_token_id=2, sliding_window=None)


def _nemo_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "MistralForCausalLM",
        "mistral",
        vocabulary,
        bos_token_id=1,
        eos_token_id=2,
        head_dim=2 * HEAD,  # not hidden size over heads
        rope_theta=1000000.0,
    )


def _qwen2_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "Qwen2ForCausalLM",
        "qwen2",
        vocabulary,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        sliding_window=CONTEXT,
        max_window_layers=LAYERS,
        use_sliding_window=False,
    )


def _qwen3_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "Qwen3ForCausalLM",
        "qwen3",
        vocabulary,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        rope_theta=1000000,
        attention_bias=False,
        sliding_window=None,
    )


def _gemma_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "GemmaForCausalLM",
        "gemma",
        vocabulary,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        head_dim=2 * HEAD,  # wider than hidden size over heads
        num_key_value_heads=1,
        rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    )


def _gemma2_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "Gemma2ForCausalLM",
        "gemma2",
        vocabulary,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=HEAD,
        sliding_window=128,
        tie_word_embeddings=True,
    )


def _gemma3_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "Gemma3ForCausalLM",
        "gemma3_text",
        vocabulary,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_pre_attn_scalar=HEAD,
        sliding_window=128,
        sliding_window_pattern=6,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        tie_word_embeddings=True,
    )


def _phi3_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "Phi3ForCausalLM",
        "phi3",
        vocabulary,
        bos_token_id=1,
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        original_max_position_embeddings=CONTEXT,
        sliding_window=255,
        rope_scaling=None,
    )


def _phi3_long_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    factors = {
        "type": "longrope",
        "short_factor": [1.0 + 0.01 * step for step in range(HEAD // 2)],
        "long_factor": [1.0 + 0.5 * step for step in range(HEAD // 2)],
    }
    scaled = {"rope_scaling": factors, "max_position_embeddings": 8 * CONTEXT, "sliding_window": 8 * CONTEXT}
    return _phi3_config(ids, vocabulary) | scaled


def _smollm3_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "SmolLM3ForCausalLM",
        "smollm3",
        vocabulary,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|im_end|>"],
        rms_norm_eps=1e-6,
        rope_theta=5000000.0,
        num_hidden_layers=4,  # every fourth has no rotary positions
        no_rope_layers=[1, 1, 1, 0],
        no_rope_layer_interval=4,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )


def _bert_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
    }


def _roberta_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    own = {
        "architectures": ["RobertaModel"],
        "model_type": "roberta",
        "max_position_embeddings": CONTEXT + 2,  # counted from behind the padding token
        "type_vocab_size": 1,
        "bos_token_id": ids["<s>"],
        "pad_token_id": ids["<pad>"],
        "eos_token_id": ids["</s>"],
        "layer_norm_eps": 1e-5,
    }
    return _bert_config(ids, vocabulary) | own


def _xlm_roberta_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    own = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}
    return _roberta_config(ids, vocabulary) | own


def _reranker_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    own = {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return _xlm_roberta_config(ids, vocabulary) | own


def _mixtral_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return _shape(
        "MixtralForCausalLM",
        "mixtral",
        vocabulary,
        bos_token_id=1,
        eos_token_id=2,
        num_hidden_layers=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_theta=1000000.0,
        sliding_window=None,
    )


def _qwen3_moe_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    own = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": INNER,
        "intermediate_size": 3 * INNER,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }
    return _qwen3_config(ids, vocabulary) | own


def _gemma3_sees_config(ids: Ids, vocabulary: int) -> dict[str, Any]:
    text = _gemma3_config(ids, vocabulary)
    for key in ("architectures", "transformers_version"):
        del text[key]
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1},
        "bos_token_id": 2,
        "eos_token_id": [1, ids["<end_of_turn>"]],
        "mm_tokens_per_image": 4,
        "transformers_version": "4.50.0",
    }


# ---- the families ----

FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(tokenizers.write_smollm2, _smollm2_config, _llama),
    "llama2": _Family(tokenizers.write_llama2, _llama2_config, _llama),
    "llama2-fast": _Family(tokenizers.write_llama2_fast, _llama2_config, _llama),
    "llama3": _Family(tokenizers.write_llama3, _llama3_config, _llama),
    "mistral": _Family(tokenizers.write_mistral, _mistral_config, _llama),
    "mistral-nemo": _Family(tokenizers.write_tekken, _nemo_config, _llama),
    "mistral-tekken": _Family(tokenizers.write_tekken_alone, _nemo_config, _llama),
    "qwen2": _Family(tokenizers.write_qwen, _qwen2_config, _qwen2, padding=16),
    "qwen3": _Family(tokenizers.write_qwen3, _qwen3_config, _qwen3, padding=16),
    "gemma": _Family(tokenizers.write_gemma, _gemma_config, _gemma),
    "gemma2": _Family(tokenizers.write_gemma, _gemma2_config, _gemma2),
    "gemma3": _Family(tokenizers.write_gemma3, _gemma3_config, _gemma3, padding=64),
    "phi3": _Family(tokenizers.write_phi3, _phi3_config, _phi3, padding=8),
    "phi3-long": _Family(tokenizers.write_phi3, _phi3_long_config, _phi3, padding=8),
    "smollm3": _Family(tokenizers.write_smollm3, _smollm3_config, _llama),
    "mixtral": _Family(tokenizers.write_llama2, _mixtral_config, _mixtral),
    "qwen3-moe": _Family(tokenizers.write_qwen3, _qwen3_moe_config, _qwen3_moe, padding=16),
    "gemma3-vision": _Family(tokenizers.write_gemma3, _gemma3_sees_config, _gemma3_sees, padding=64),
    "bert": _Family(tokenizers.write_bert, _bert_config, _bert),
    "roberta": _Family(tokenizers.write_roberta, _roberta_config, _bert),
    "xlm-roberta": _Family(unigram_tokenizers.write_unigram, _xlm_roberta_config, _bert, padding=8),
    "xlm-roberta-slow": _Family(unigram_tokenizers.write_unigram_model, _xlm_roberta_config, _bert, padding=8),
    "reranker": _Family(unigram_tokenizers.write_unigram, _reranker_config, _reranker),
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "xlm-roberta-slow")
RERANKERS = ("reranker",)
GENERATING = tuple(family for family in FAMILIES if family not in (*ENCODERS, *RERANKERS))
