"""BERT, RoBERTa and XLM-RoBERTa as encoders of text: every token sees every other, vectors instead of logits.

Runs in job children. What only their training needed (pooler, heads for masked words) is left out. A RoBERTa with a
head that gives one number is a reranker: how well two texts fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Config
from service.gguf.architectures.pooling import RANK, pooling_fields
from service.gguf.architectures.rules import Layout, Rule, without_first_rows
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field

_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # whole numbers that count, or say nothing
_UNUSED = ("pooler.", "cls.predictions.", "cls.seq_relationship.", "lm_head.")


@dataclass(frozen=True, slots=True)
class _Sizes:
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    positions: int
    kinds: int  # of segments


def bert(config: Config, files: Files) -> Layout:
    """Raises InvalidModel."""
    return _layout(config, pooling_fields("bert", files), 0, "bert.")


def roberta(config: Config, files: Files) -> Layout:
    """As BERT, but positions are counted from behind the padding token's id. Raises InvalidModel."""
    return _layout(config, pooling_fields("bert", files), _skipped(config), "roberta.")


def roberta_reranker(config: Config, files: Files) -> Layout:
    """RoBERTa with two layers more on its first token's vector. Raises InvalidModel for more results than one."""
    labels = config.section("id2label")
    if len(labels) != 1:
        raise InvalidModel(
            f"config.json gives {len(labels) or 2} classes (id2label), and of classifiers only rerankers are served, "
            "which have one."
        )
    label = str(next(iter(labels.values())))
    fields = (
        Field("bert.pooling_type", "u32", RANK),
        Field("bert.classifier.output_labels", "arr[str]", [label.encode(errors="replace")]),
    )
    return _layout(config, fields, _skipped(config), "roberta.", ranks=True)


def _skipped(config: Config) -> int:
    return config.whole("pad_token_id", default=1, least=0, most=MAX_WIDTH) + 1


def _layout(config: Config, pooling: tuple[Field, ...], skipped: int, prefix: str, *, ranks: bool = False) -> Layout:
    if config.values.get("position_embedding_type", "absolute") not in ("absolute", None):
        raise InvalidModel("config.json gives positions relative to each other, which llama.cpp's BERT does not have.")
    # llama.cpp's BERT computes GELU, whichever function the file was trained with.
    if config.values.get("hidden_act", "gelu") not in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        raise InvalidModel("config.json gives another hidden_act than gelu, which llama.cpp's BERT does not have.")
    sizes = _Sizes(
        config.whole("vocab_size", most=MAX_VOCABULARY),
        config.whole("hidden_size", most=MAX_WIDTH),
        config.whole("intermediate_size", most=MAX_WIDTH),
        config.whole("num_hidden_layers", most=MAX_LAYERS),
        config.whole("num_attention_heads", most=MAX_WIDTH),
        config.whole("max_position_embeddings", least=skipped + 1, most=MAX_WIDTH),
        config.whole("type_vocab_size", default=1, most=MAX_WIDTH),
    )
    if sizes.hidden % sizes.heads:
        raise InvalidModel(f"config.json gives {sizes.heads} heads, which do not divide {sizes.hidden}.")
    fields = (
        Field("bert.block_count", "u32", sizes.layers),
        Field("bert.context_length", "u32", sizes.positions - skipped),
        Field("bert.embedding_length", "u32", sizes.hidden),
        Field("bert.feed_forward_length", "u32", sizes.inner),
        Field("bert.attention.head_count", "u32", sizes.heads),
        Field("bert.attention.layer_norm_epsilon", "f32", config.number("layer_norm_eps", default=1e-12)),
        Field("bert.attention.causal", "bool", False),
        *pooling,
        Field("tokenizer.ggml.token_type_count", "u32", sizes.kinds),
    )
    rules = [*_rules(sizes, skipped)]
    if ranks:
        rules += _both("cls", "classifier.dense", (sizes.hidden, sizes.hidden))
        rules += _both("cls.output", "classifier.out_proj", (1, sizes.hidden))
    return Layout("bert", sizes.vocabulary, fields, tuple(rules), _renamed(prefix))


def _renamed(prefix: str) -> Callable[[str], str | None]:
    def renamed(name: str) -> str | None:
        bare = name.removeprefix(prefix)
        if bare.startswith(_UNUSED) or bare in _BUFFERS:
            return None
        # Checkpoints from TensorFlow name the parts of a norm by its formula.
        if bare.endswith(".gamma"):
            return bare.removesuffix("gamma") + "weight"
        return bare.removesuffix("beta") + "bias" if bare.endswith(".beta") else bare

    return renamed


def _rules(sizes: _Sizes, skipped: int) -> Iterator[Rule]:
    hidden, inner = sizes.hidden, sizes.inner
    yield Rule("token_embd.weight", "embeddings.word_embeddings.weight", (sizes.vocabulary, hidden))
    yield Rule("token_types.weight", "embeddings.token_type_embeddings.weight", (sizes.kinds, hidden), optional=True)
    yield Rule(
        "position_embd.weight",
        "embeddings.position_embeddings.weight",
        (sizes.positions, hidden),
        without_first_rows(skipped) if skipped else None,
    )
    yield from _both("token_embd_norm", "embeddings.LayerNorm", (hidden,))
    for layer in range(sizes.layers):
        start, block = f"encoder.layer.{layer}", f"blk.{layer}"
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from _both(f"{block}.attn_{letter}", f"{start}.attention.self.{part}", (hidden, hidden))
        yield from _both(f"{block}.attn_output", f"{start}.attention.output.dense", (hidden, hidden))
        yield from _both(f"{block}.attn_output_norm", f"{start}.attention.output.LayerNorm", (hidden,))
        yield from _both(f"{block}.ffn_up", f"{start}.intermediate.dense", (inner, hidden))
        yield from _both(f"{block}.ffn_down", f"{start}.output.dense", (hidden, inner))
        yield from _both(f"{block}.layer_output_norm", f"{start}.output.LayerNorm", (hidden,))


def _both(target: str, source: str, shape: tuple[int, ...]) -> Iterator[Rule]:
    yield Rule(f"{target}.weight", f"{source}.weight", shape)
    yield Rule(f"{target}.bias", f"{source}.bias", shape[:1])
