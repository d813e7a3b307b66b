"""Qwen2 (and Qwen2.5), with biases on queries, keys and values; Qwen3, with a norm on each head; Qwen3's experts.

Runs in job children.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import MAX_EXPERTS, MAX_WIDTH, Config
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
from service.gguf.architectures.pooling import pooling_fields
from service.gguf.architectures.rope import llama3_frequencies, rope_fields, rope_of
from service.gguf.architectures.rules import Layout, Rule
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field


def qwen2(config: Config, files: Files) -> Layout:
    """Raises InvalidModel."""
    return _layout("qwen2", config, files, sizes_of(config), head_norms=False)


def qwen3(config: Config, files: Files) -> Layout:
    """Raises InvalidModel."""
    return _layout("qwen3", config, files, sizes_of(config, head_dim=128), head_norms=True)


def qwen3moe(config: Config, files: Files) -> Layout:
    """A mixture of experts in every layer. Raises InvalidModel."""
    experts = config.whole("num_experts", "num_local_experts", most=MAX_EXPERTS)
    if config.values.get("mlp_only_layers") or config.whole("decoder_sparse_step", default=1) != 1:
        raise InvalidModel("config.json gives layers without experts, which llama.cpp's qwen3moe does not have.")
    inner = config.whole("moe_intermediate_size", most=MAX_WIDTH)
    layout = _layout(
        "qwen3moe", config, files, sizes_of(config, head_dim=128), head_norms=True, experts=experts, expert_inner=inner
    )
    more = (
        Field("qwen3moe.expert_count", "u32", experts),
        Field("qwen3moe.expert_used_count", "u32", config.whole("num_experts_per_tok", most=experts)),
        Field("qwen3moe.expert_feed_forward_length", "u32", inner),
    )
    return Layout(
        layout.architecture,
        layout.vocabulary,
        (*layout.fields, *more),
        layout.rules,
        layout.renamed,
        layout.computed,
    )


def _layout(
    architecture: str,
    config: Config,
    files: Files,
    sizes: Sizes,
    *,
    head_norms: bool,
    experts: int = 0,
    expert_inner: int = 0,
) -> Layout:
    rope = rope_of(config)
    if rope.kind == "longrope":
        raise InvalidModel("config.json scales positions by longrope, which quantry converts for Phi-3 alone.")
    fields = [
        *size_fields(architecture, sizes),
        rms_field(architecture, config, 1e-6),
        *rope_fields(architecture, rope, sizes.context),
        *pooling_fields(architecture, files),
    ]
    if head_norms or config.has("head_dim"):
        fields += head_fields(architecture, sizes)
    return Layout(
        architecture,
        sizes.vocabulary,
        tuple(fields),
        tuple(_rules(sizes, head_norms=head_norms, experts=experts, expert_inner=expert_inner)),
        renamed,
        (llama3_frequencies(rope, sizes.head),) if rope.kind == "llama3" else (),
    )


def _rules(sizes: Sizes, *, head_norms: bool, experts: int, expert_inner: int) -> Iterator[Rule]:
    yield from outer_rules(sizes)
    for layer in range(sizes.layers):
        yield norm_rule(sizes, layer, "attn_norm", "input_layernorm")
        yield from attention_rules(sizes, layer)
        if head_norms:
            for letter in "qk":
                name = f"model.layers.{layer}.self_attn.{letter}_norm.weight"
                yield Rule(f"blk.{layer}.attn_{letter}_norm.weight", name, (sizes.head,))
        yield norm_rule(sizes, layer, "ffn_norm", "post_attention_layernorm")
        if experts:
            yield from _expert_rules(sizes, layer, experts, expert_inner)
        else:
            yield from gated_rules(sizes, layer)


def _expert_rules(sizes: Sizes, layer: int, experts: int, inner: int) -> Iterator[Rule]:
    start, block = f"model.layers.{layer}.mlp", f"blk.{layer}"
    yield Rule(f"{block}.ffn_gate_inp.weight", f"{start}.gate.weight", (experts, sizes.hidden))
    for part in ("gate", "down", "up"):
        shape = (sizes.hidden, inner) if part == "down" else (inner, sizes.hidden)
        sources = tuple(f"{start}.experts.{expert}.{part}_proj.weight" for expert in range(experts))
        yield Rule(f"{block}.ffn_{part}_exps.weight", sources, shape)
