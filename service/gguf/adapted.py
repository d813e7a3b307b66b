"""Which weights of a model in GGUF a module of its checkpoint is, and how its rows lie there: for adapters of modules.

Runs in job children. The names are those that checkpoints are converted by (`architectures`); the sizes come from the
GGUF header, for the checkpoint is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.architectures.decoder import Sizes, attention_rules, gated_rules, outer_rules, renamed
from service.gguf.architectures.rules import Rule, interleaved
from service.gguf.checks import per_layer
from service.gguf.header import Header

# Those whose query and key rows are in another order in GGUF, those where they are not, and those where they are fused.
_INTERLEAVED = frozenset({"llama", "smollm3"})
_PLAIN = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3"})
_FUSED = frozenset({"phi3"})


def rules_by_module(base: Header) -> dict[str, Rule]:
    """By the module's name in the checkpoint, e.g. "model.layers.0.mlp.up_proj": the rule for its weights.

    Shapes in the rules are as far as the header gives them. Raises InvalidModel for architectures that are not known.
    """
    arch = base.architecture
    if arch not in _INTERLEAVED | _PLAIN | _FUSED:
        raise InvalidModel(
            f"PEFT adapters of {arch} models are not converted here; convert it with llama.cpp's "
            "convert_lora_to_gguf.py, and add the GGUF file.",
            param="model",
        )
    rules = {source: rule for rule in _rules(base) for source in rule.sources}
    return {
        source.removesuffix(".weight"): rule for source, rule in rules.items() if source.endswith("_proj.weight")
    } | {name: rules[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head")}


def module_name(tensor: str) -> str | None:
    """A module's name as the rules spell it; None for one of a part that is left out of the GGUF file."""
    return renamed(tensor)


def _rules(base: Header) -> Iterator[Rule]:
    arch = base.architecture
    heads = per_layer(base, "attention.head_count")
    kv_heads = per_layer(base, "attention.head_count_kv") or heads
    inner = per_layer(base, "feed_forward_length")
    hidden = base.whole(f"{arch}.embedding_length") or 0
    head = base.whole(f"{arch}.attention.key_length")
    yield from outer_rules(Sizes(0, hidden, 0, len(heads), 0, 0, 0, 0))
    for layer, (count, kv_count) in enumerate(zip(heads, kv_heads, strict=True)):
        length = head if head is not None else hidden // max(1, count)
        sizes = Sizes(0, hidden, inner[layer] if layer < len(inner) else 0, len(heads), count, kv_count, length, 0)
        if arch in _FUSED:
            start, block = f"model.layers.{layer}", f"blk.{layer}"
            fused = sizes.queries + 2 * sizes.keys
            yield Rule(f"{block}.attn_qkv.weight", f"{start}.self_attn.qkv_proj.weight", (fused, hidden))
            yield Rule(f"{block}.attn_output.weight", f"{start}.self_attn.o_proj.weight", (hidden, sizes.queries))
            yield Rule(f"{block}.ffn_up.weight", f"{start}.mlp.gate_up_proj.weight", (2 * sizes.inner, hidden))
            yield Rule(f"{block}.ffn_down.weight", f"{start}.mlp.down_proj.weight", (hidden, sizes.inner))
        elif arch in _INTERLEAVED:
            yield from attention_rules(sizes, layer, queries=interleaved(count), keys=interleaved(kv_count))
            yield from gated_rules(sizes, layer)
        else:
            yield from attention_rules(sizes, layer)
            yield from gated_rules(sizes, layer)
