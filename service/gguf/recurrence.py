"""How much recurrent state a model keeps for a sequence, and how many layers have a key-value cache. Pure.

Read from the header, as llama.cpp does (llama_hparams::n_embd_r and n_embd_s, and what its models say is recurrent).
Runs in children.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.gguf.header import Header

_TOKEN_SHIFTS = 2  # of RWKV, where the file does not say
_CONVOLUTION = 4  # of Kimi's linear attention, where the file does not say
_MOST_VALUES = 1 << 48  # more is no model; a file may say anything
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # of full attention, where the file does not say


def state_values(header: Header, kv_heads: Sequence[int], feed_forward: Sequence[int]) -> int:
    """Numbers of recurrent state for one sequence, in all layers together; 0 for a model that attends alone.

    `kv_heads` and `feed_forward` are by layer, empty where the file does not say.
    """
    layers = _number(header, "block_count")
    interval = _interval(header)
    if interval:
        recurrent = layers - layers // interval
    elif header.architecture == "falcon-h1" or not any(kv_heads):
        recurrent = layers
    else:
        # Nemotron-H has layers that are feed-forward alone.
        widths = feed_forward if header.architecture.startswith("nemotron") else ()
        recurrent = sum(
            heads == 0 and not (layer < len(widths) and widths[layer]) for layer, heads in enumerate(kv_heads)
        )
    return min(_MOST_VALUES, recurrent * _layer_values(header))


def cache_heads(header: Header, kv_heads: Sequence[int]) -> int:
    """Heads of the key-value cache of all layers together."""
    interval = _interval(header)
    return sum(kv_heads) // interval if interval else sum(kv_heads)


def _layer_values(header: Header) -> int:
    embedding, heads = _number(header, "embedding_length"), _number(header, "attention.head_count")
    wkv, short = _number(header, "wkv.head_size"), _number(header, "shortconv.l_cache")
    kda, convolution = _number(header, "kda.head_dim"), _number(header, "ssm.conv_kernel")
    if wkv:
        return embedding * ((_number(header, "token_shift_count") or _TOKEN_SHIFTS) + wkv)
    if short:
        return embedding * (short - 1)
    if kda:
        return 3 * ((convolution or _CONVOLUTION) - 1) * heads * kda + heads * kda * kda
    inner, state = _number(header, "ssm.inner_size"), _number(header, "ssm.state_size")
    wide = inner + 2 * _number(header, "ssm.group_count") * state
    return max(0, convolution - 1) * wide + inner * state


def _interval(header: Header) -> int:
    """Each how many layers one attends to everything, in the families where the others are recurrent; else 0."""
    default = _INTERVALS.get(header.architecture, 0)
    return (_number(header, "full_attention_interval") or default) if default else 0


def _number(header: Header, name: str) -> int:
    """A number for all layers; 0 where there is none, or one for each."""
    return header.whole(f"{header.architecture}.{name}") or 0
