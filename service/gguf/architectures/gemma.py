"""Gemma, Gemma 2 and the language part of Gemma 3: norms that multiply by 1 + w, since the second around each half of
a layer.

Runs in job children. The embedding is always the output, whatever else the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import Config
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
from service.gguf.architectures.rope import rope_fields, rope_of
from service.gguf.architectures.rules import Layout, Rule, plus_one
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field

_USUAL_BASE = 10_000.0
_GLOBAL_EVERY = 6  # llama.cpp's pattern for Gemma 3, where the file does not give another


def gemma(config: Config, files: Files) -> Layout:
    """The first: norms before each half alone. Raises InvalidModel."""
    sizes = sizes_of(config, head_dim=256)
    fields = [*size_fields("gemma", sizes), rms_field("gemma", config, 1e-6), *head_fields("gemma", sizes)]
    fields += _plain_base("gemma", config)
    return Layout("gemma", sizes.vocabulary, tuple(fields), tuple(_first_rules(sizes)), _without_output)


def gemma2(config: Config, files: Files) -> Layout:
    """Every second layer has a sliding window. Raises InvalidModel."""
    sizes = sizes_of(config, head_dim=256, num_key_value_heads=4)
    fields = [
        *size_fields("gemma2", sizes),
        rms_field("gemma2", config, 1e-6),
        *head_fields("gemma2", sizes),
        Field("gemma2.attn_logit_softcapping", "f32", config.number("attn_logit_softcapping", default=50.0)),
        Field("gemma2.final_logit_softcapping", "f32", config.number("final_logit_softcapping", default=30.0)),
        Field("gemma2.attention.sliding_window", "u32", config.whole("sliding_window", default=4096)),
    ]
    fields += _plain_base("gemma2", config)
    rules = tuple(_rules(sizes, head_norms=False))
    return Layout("gemma2", sizes.vocabulary, tuple(fields), rules, _without_output)


def gemma3(config: Config, files: Files) -> Layout:
    """All but every sixth layer have a sliding window and a base of their own. Raises InvalidModel.

    What `text_config` of a model that sees leaves out is as in transformers' Gemma3TextConfig.
    """
    sizes = sizes_of(
        config,
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131_072,
    )
    rope = rope_of(config, 1_000_000.0)
    if rope.kind not in ("", "linear"):
        raise InvalidModel(f"config.json scales positions by {rope.kind}, which Gemma 3 does not have in llama.cpp.")
    if config.has("attn_logit_softcapping"):
        raise InvalidModel("config.json caps the logits of attention, which llama.cpp does not do for Gemma 3.")
    fields = [
        *size_fields("gemma3", sizes),
        rms_field("gemma3", config, 1e-6),
        *head_fields("gemma3", sizes),
        *rope_fields("gemma3", rope, sizes.context),
    ]
    if config.has("final_logit_softcapping"):
        fields.append(Field("gemma3.final_logit_softcapping", "f32", config.number("final_logit_softcapping")))
    every = _global_every(config, sizes.layers)
    if every != 1:
        fields.append(Field("gemma3.attention.sliding_window", "u32", config.whole("sliding_window", default=4096)))
        if every != _GLOBAL_EVERY:
            fields.append(Field("gemma3.attention.sliding_window_pattern", "u32", every))
    return Layout(
        "gemma3",
        sizes.vocabulary,
        tuple(fields),
        tuple(_rules(sizes, head_norms=True)),
        _without_output,
        trims_vocabulary=True,
    )


def _global_every(config: Config, layers: int) -> int:
    """How many layers lie from one that sees everything to the next. Raises InvalidModel when they are irregular."""
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list):
        return config.whole("sliding_window_pattern", "_sliding_window_pattern", default=_GLOBAL_EVERY)
    sees_all = [number for number, kind in enumerate(kinds[:layers], start=1) if kind == "full_attention"]
    # Without one that sees everything, the next would come after the last layer.
    every = sees_all[0] if sees_all else _GLOBAL_EVERY if layers < _GLOBAL_EVERY else layers + 1
    if sees_all != list(range(every, layers + 1, every)):
        raise InvalidModel("config.json gives layer_types without a regular pattern, which llama.cpp cannot follow.")
    return every


def _plain_base(architecture: str, config: Config) -> list[Field]:
    """The base of positions that are not scaled, where it is not the usual one. Raises InvalidModel when they are."""
    rope = rope_of(config)
    if rope.kind:
        raise InvalidModel(
            f"config.json scales positions by {rope.kind}, which llama.cpp does not do for {architecture}."
        )
    return [] if rope.base == _USUAL_BASE else [Field(f"{architecture}.rope.freq_base", "f32", rope.base)]


def _without_output(name: str) -> str | None:
    new = renamed(name)
    return None if new == "lm_head.weight" else new


def _first_rules(sizes: Sizes) -> Iterator[Rule]:
    yield from outer_rules(sizes, plus_one, has_output=False)
    for layer in range(sizes.layers):
        yield norm_rule(sizes, layer, "attn_norm", "input_layernorm", plus_one)
        yield from attention_rules(sizes, layer)
        yield norm_rule(sizes, layer, "ffn_norm", "post_attention_layernorm", plus_one)
        yield from gated_rules(sizes, layer)


def _rules(sizes: Sizes, *, head_norms: bool) -> Iterator[Rule]:
    yield from outer_rules(sizes, plus_one, has_output=False)
    for layer in range(sizes.layers):
        yield norm_rule(sizes, layer, "attn_norm", "input_layernorm", plus_one)
        yield from attention_rules(sizes, layer)
        if head_norms:
            for letter in "qk":
                name = f"model.layers.{layer}.self_attn.{letter}_norm.weight"
                yield Rule(f"blk.{layer}.attn_{letter}_norm.weight", name, (sizes.head,), plus_one)
        yield norm_rule(sizes, layer, "post_attention_norm", "post_attention_layernorm", plus_one)
        yield norm_rule(sizes, layer, "ffn_norm", "pre_feedforward_layernorm", plus_one)
        yield from gated_rules(sizes, layer)
        yield norm_rule(sizes, layer, "post_ffw_norm", "post_feedforward_layernorm", plus_one)
