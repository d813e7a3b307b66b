"""Phi-3, Phi-3.5 and Phi-4: queries, keys and values in one matrix, gate and up in one, positions for long texts.

Runs in job children.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import Config
from service.gguf.architectures.decoder import (
    Sizes,
    norm_rule,
    outer_rules,
    renamed,
    rms_field,
    size_fields,
    sizes_of,
)
from service.gguf.architectures.rope import Rope, longrope_tensors, rope_of
from service.gguf.architectures.rules import Layout, Rule, Weights
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field


def phi3(config: Config, files: Files) -> Layout:
    """Raises InvalidModel."""
    sizes = sizes_of(config)
    if sizes.queries != sizes.hidden:
        raise InvalidModel("config.json gives heads that are not as wide as the model, as llama.cpp's Phi-3 has them.")
    rope = rope_of(config)
    share = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", default=1.0))
    if not 0 < share <= 1:
        raise InvalidModel("config.json gives partial_rotary_factor out of range; download it again.")
    rotated = int(share * sizes.hidden) // sizes.heads
    trained = config.whole("original_max_position_embeddings", default=0, least=0) or rope.whole(
        "original_max_position_embeddings", sizes.context
    )
    fields = [
        *size_fields("phi3", sizes),
        rms_field("phi3", config, 1e-5),
        Field("phi3.rope.dimension_count", "u32", rotated),
        Field("phi3.rope.freq_base", "f32", rope.base),
        Field("phi3.rope.scaling.original_context_length", "u32", trained),
        # 0 is how llama.cpp tells Phi-4, which has no window, from the others.
        Field("phi3.attention.sliding_window", "u32", config.whole("sliding_window", default=0, least=0)),
    ]
    computed: tuple[Weights, ...] = ()
    if rope.parameters.get("long_factor") or rope.kind:
        fields.append(
            Field("phi3.rope.scaling.attn_factor", "f32", _attention_factor(rope, sizes.context / trained, trained))
        )
        computed = longrope_tensors(rope, rotated)
    return Layout("phi3", sizes.vocabulary, tuple(fields), tuple(_rules(sizes)), renamed, computed)


def _attention_factor(rope: Rope, scale: float, trained: int) -> float:
    """How much attention is sharpened for a context `scale` times as long as the one trained with.

    longrope: sqrt(1 + ln s / ln L) (arXiv 2402.13753); yarn: 1 + 0.1 ln s (arXiv 2309.00071).
    """
    if rope.kind not in ("longrope", "yarn"):
        raise InvalidModel(f"config.json scales positions by {rope.kind or 'nothing'}, which Phi-3 does not have.")
    if scale <= 1.0:
        return 1.0
    if rope.kind == "yarn":
        return 0.1 * math.log(scale) + 1.0
    return math.sqrt(1 + math.log(scale) / math.log(max(trained, 2)))


def _rules(sizes: Sizes) -> Iterator[Rule]:
    yield from outer_rules(sizes)
    for layer in range(sizes.layers):
        start, block = f"model.layers.{layer}", f"blk.{layer}"
        fused = sizes.queries + 2 * sizes.keys
        yield norm_rule(sizes, layer, "attn_norm", "input_layernorm")
        yield Rule(f"{block}.attn_qkv.weight", f"{start}.self_attn.qkv_proj.weight", (fused, sizes.hidden))
        yield Rule(f"{block}.attn_output.weight", f"{start}.self_attn.o_proj.weight", (sizes.hidden, sizes.queries))
        yield norm_rule(sizes, layer, "ffn_norm", "post_attention_layernorm")
        yield Rule(f"{block}.ffn_up.weight", f"{start}.mlp.gate_up_proj.weight", (2 * sizes.inner, sizes.hidden))
        yield Rule(f"{block}.ffn_down.weight", f"{start}.mlp.down_proj.weight", (sizes.hidden, sizes.inner))
