"""What the decoders of this room share: sizes, the fields that all of them have, and names in the checkpoint.

Runs in job children. A family adds to it in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Config
from service.gguf.architectures.rules import Change, Rule
from service.gguf.fields import Field

OUTPUT = "output.weight"
_LEFT_OUT = ("vision_tower.", "vision_model.", "multi_modal_projector.", "audio_tower.", "visual.")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder. `head` is the length of one head; queries and keys are rows of their matrices."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int

    @property
    def queries(self) -> int:
        """Rows of the query matrix."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Rows of the key matrix, and of the value matrix."""
        return self.kv_heads * self.head


def sizes_of(config: Config, **defaults: int) -> Sizes:
    """The sizes in config.json, `defaults` by their names there where it may leave them out. Raises InvalidModel."""

    def whole(name: str, most: int = MAX_WIDTH) -> int:
        return config.whole(name, default=defaults.get(name), most=most)

    hidden, heads = whole("hidden_size"), whole("num_attention_heads")
    head = config.whole("head_dim", default=defaults.get("head_dim") or max(1, hidden // heads), most=MAX_WIDTH)
    kv_heads = config.whole("num_key_value_heads", default=defaults.get("num_key_value_heads", heads), most=MAX_WIDTH)
    if heads % kv_heads or heads * head > MAX_WIDTH or head % 2:
        raise InvalidModel(
            f"config.json gives {heads} heads of {head} for {kv_heads} of keys and values, which cannot be."
        )
    return Sizes(
        whole("vocab_size", MAX_VOCABULARY),
        hidden,
        whole("intermediate_size"),
        whole("num_hidden_layers", MAX_LAYERS),
        heads,
        kv_heads,
        head,
        whole("max_position_embeddings", 2**31 - 1),
    )


def size_fields(architecture: str, sizes: Sizes) -> tuple[Field, ...]:
    """The fields that every decoder has for its sizes."""
    return tuple(
        Field(f"{architecture}.{key}", "u32", value)
        for key, value in (
            ("block_count", sizes.layers),
            ("context_length", sizes.context),
            ("embedding_length", sizes.hidden),
            ("feed_forward_length", sizes.inner),
            ("attention.head_count", sizes.heads),
            ("attention.head_count_kv", sizes.kv_heads),
        )
    )


def head_fields(architecture: str, sizes: Sizes) -> tuple[Field, ...]:
    """The length of a head, where it is not width over heads."""
    return (
        Field(f"{architecture}.attention.key_length", "u32", sizes.head),
        Field(f"{architecture}.attention.value_length", "u32", sizes.head),
    )


def rms_field(architecture: str, config: Config, default: float) -> Field:
    """What is added under the root of RMS norms."""
    return Field(
        f"{architecture}.attention.layer_norm_rms_epsilon", "f32", config.number("rms_norm_eps", default=default)
    )


def renamed(name: str) -> str | None:
    """A tensor's name as the rules spell it: without the wrappings of larger models, with `model.` in front."""
    name = name.replace("language_model.", "")
    bare = name.removeprefix("model.")
    if bare.startswith(_LEFT_OUT) or name.endswith(
        (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
    ):
        return None
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def outer_rules(sizes: Sizes, norm: Change | None = None, *, has_output: bool = True) -> Iterator[Rule]:
    """Embedding, last norm and output; without `has_output` the embedding is the output, whatever the file holds."""
    yield Rule("token_embd.weight", "model.embed_tokens.weight", (sizes.vocabulary, sizes.hidden))
    yield Rule("output_norm.weight", "model.norm.weight", (sizes.hidden,), norm)
    if has_output:
        yield Rule(OUTPUT, "lm_head.weight", (sizes.vocabulary, sizes.hidden), optional=True)


def attention_rules(
    sizes: Sizes, layer: int, *, queries: Change | None = None, keys: Change | None = None
) -> Iterator[Rule]:
    """Queries, keys, values and the way out, with their biases where there are any."""
    start, block = f"model.layers.{layer}.self_attn", f"blk.{layer}"
    for letter, rows, change in (("q", sizes.queries, queries), ("k", sizes.keys, keys), ("v", sizes.keys, None)):
        yield Rule(f"{block}.attn_{letter}.weight", f"{start}.{letter}_proj.weight", (rows, sizes.hidden), change)
        yield Rule(f"{block}.attn_{letter}.bias", f"{start}.{letter}_proj.bias", (rows,), change, optional=True)
    yield Rule(f"{block}.attn_output.weight", f"{start}.o_proj.weight", (sizes.hidden, sizes.queries))
    yield Rule(f"{block}.attn_output.bias", f"{start}.o_proj.bias", (sizes.hidden,), optional=True)


def gated_rules(sizes: Sizes, layer: int) -> Iterator[Rule]:
    """The feed-forward part with a gate, with its biases where there are any."""
    start, block = f"model.layers.{layer}.mlp", f"blk.{layer}"
    for part, shape in (
        ("gate", (sizes.inner, sizes.hidden)),
        ("up", (sizes.inner, sizes.hidden)),
        ("down", (sizes.hidden, sizes.inner)),
    ):
        yield Rule(f"{block}.ffn_{part}.weight", f"{start}.{part}_proj.weight", shape)
        yield Rule(f"{block}.ffn_{part}.bias", f"{start}.{part}_proj.bias", shape[:1], optional=True)


def norm_rule(sizes: Sizes, layer: int, target: str, source: str, change: Change | None = None) -> Rule:
    """A norm over the whole width."""
    return Rule(f"blk.{layer}.{target}.weight", f"model.layers.{layer}.{source}.weight", (sizes.hidden,), change)
