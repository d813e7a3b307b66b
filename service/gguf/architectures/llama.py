"""Llama and what is built like it: Mistral, SmolLM, SmolLM2, SmolLM3, Mixtral. Runs in job children.

llama.cpp rotates neighbouring rows of a head in these models, so queries and keys change the order of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import MAX_EXPERTS, Config
from service.gguf.architectures.decoder import (
    Sizes,
    attention_rules,
    gated_rules,
    head_fields,
    norm_rule,
    outer_rules,
    renamed,
    rms_field,
    size_fields,
    sizes_of,
)
from service.gguf.architectures.rope import llama3_frequencies, rope_fields, rope_of
from service.gguf.architectures.rules import Layout, Rule, interleaved
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field

_LLAMA = "LlamaForCausalLM"
_ROPELESS_STEP = 4  # SmolLM3: in llama.cpp every fourth layer does not rotate


def llama(config: Config, files: Files) -> Layout:
    """A dense model, or Mixtral's mixture of experts. Raises InvalidModel."""
    return _layout("llama", config)


def smollm3(config: Config, files: Files) -> Layout:
    """Llama with layers that do not rotate. Raises InvalidModel when they are others than llama.cpp takes."""
    layout = _layout("smollm3", config)
    rotates = config.values.get("no_rope_layers")
    if rotates is not None and rotates != [int((layer + 1) % _ROPELESS_STEP != 0) for layer in range(len(rotates))]:
        raise InvalidModel("config.json lists other layers without positions than every fourth, as llama.cpp has them.")
    return layout


def _layout(architecture: str, config: Config) -> Layout:
    sizes = sizes_of(config)
    rope = rope_of(config)
    if rope.kind == "longrope":
        raise InvalidModel("config.json scales positions by longrope, which quantry converts for Phi-3 alone.")
    experts = config.whole("num_local_experts", default=0, least=0, most=MAX_EXPERTS)
    fields = [
        *size_fields(architecture, sizes),
        rms_field(architecture, config, 1e-6),
        # The length that llama.cpp takes without these is the same; its converter writes them for Llama in any case.
        *(head_fields(architecture, sizes) if config.has("head_dim") or config.model_class == _LLAMA else ()),
        *rope_fields(architecture, rope, sizes.context),
        Field(f"{architecture}.rope.dimension_count", "u32", sizes.head),
        Field(f"{architecture}.vocab_size", "u32", sizes.vocabulary),
    ]
    if experts:
        used = config.whole("num_experts_per_tok", default=2, most=experts)
        fields += [
            Field(f"{architecture}.expert_count", "u32", experts),
            Field(f"{architecture}.expert_used_count", "u32", used),
        ]
    return Layout(
        architecture,
        sizes.vocabulary,
        tuple(fields),
        tuple(_rules(sizes, experts)),
        renamed,
        (llama3_frequencies(rope, sizes.head),) if rope.kind == "llama3" else (),
    )


def _rules(sizes: Sizes, experts: int) -> Iterator[Rule]:
    yield from outer_rules(sizes)
    for layer in range(sizes.layers):
        yield norm_rule(sizes, layer, "attn_norm", "input_layernorm")
        yield from attention_rules(sizes, layer, queries=interleaved(sizes.heads), keys=interleaved(sizes.kv_heads))
        yield norm_rule(sizes, layer, "ffn_norm", "post_attention_layernorm")
        yield from _expert_rules(sizes, layer, experts) if experts else gated_rules(sizes, layer)


def _expert_rules(sizes: Sizes, layer: int, experts: int) -> Iterator[Rule]:
    start, block = f"model.layers.{layer}.block_sparse_moe", f"blk.{layer}"
    yield Rule(f"{block}.ffn_gate_inp.weight", f"{start}.gate.weight", (experts, sizes.hidden))
    for part, name, shape in (
        ("gate", "w1", (sizes.inner, sizes.hidden)),
        ("down", "w2", (sizes.hidden, sizes.inner)),
        ("up", "w3", (sizes.inner, sizes.hidden)),
    ):
        sources = tuple(f"{start}.experts.{expert}.{name}.weight" for expert in range(experts))
        yield Rule(f"{block}.ffn_{part}_exps.weight", sources, shape)
