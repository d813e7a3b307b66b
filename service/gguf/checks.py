"""What llama.cpp would abort on, or divide by, in a well-formed GGUF header: refused before it gets there.

Runs in child processes. Each rule mirrors an assertion of llama-model.cpp, llama-vocab.cpp or llama-quant.cpp; where
llama.cpp itself answers with a clean error (an unknown architecture, a missing tensor) the answer is left to it.
"""

from __future__ import annotations

import math
import re

from service.domain.errors import InvalidModel
from service.gguf.charsmap import check_charsmap
from service.gguf.header import CHARSMAP_KEY, TOKENS_KEY, Header

_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_MAX_WIDTH = 2**24
_MAX_INT32 = 2**31 - 1
_ROPE_SCALING = frozenset({"none", "linear", "yarn", "longrope"})
_RESETS_SINGLE_EXPERT = frozenset({"hunyuan-dense", "hunyuan_vl"})
_ATTENTION = re.compile(r"blk\.(\d{1,4})\.attn_(q|k)\.weight")
# Types that kernels use inside a computation, or that no matrix product takes.
_NOT_FOR_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
_TABLES = ("tid2eid", "d2t", "t2d")  # tensors of whole numbers by design
# What is added to or multiplied with activations, which are F32: the kernels end the process on another type.
_ALWAYS_F32 = re.compile(
    r"(?!.*\.weight$).+|.*(norm|_scale|attn_sinks|ssm_conv1d|shortconv\.conv)\.weight|rope_\w+\.weight"
)
# Mixtures of experts that llama.cpp has no plain form of.
_ALWAYS_EXPERTS = frozenset({"bailingmoe2", "glm4moe", "grovemoe", "lfm2moe", "llada-moe", "smallthinker"})
# Architectures without attention, which may have no heads; the others divide by their number.
_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
# Architectures whose rotary embedding is always cut into sections, one for each kind of position.
_ALWAYS_SECTIONS = frozenset(
    {"paddleocr", "qwen2vl", "qwen35", "qwen35moe", "qwen3tts", "qwen3vl", "qwen3vlmoe", "qwen4exp"}
)
_MAX_WINDOW = 2**24  # times the sequences of a context it must fit into 32 bits
_POOLINGS = 5  # kinds of pooling, from 0
_RANK = 4
# Kinds of GGUF file that are no language model, by `general.type`.
_OTHER_KINDS = {
    "adapter": "a LoRA adapter; add it to its base model (POST /v1/adapters, quantry adapters add)",
    "mmproj": "the vision or audio part of a model; import the language model's own file",
    "imatrix": "an importance matrix; import the model's own file",
    "vocab": "a vocabulary without weights; import the model's own file",
    "control_vector": "a control vector; import the model's own file",
}
# Tokenizer -> token that it adds -> (the id llama-vocab.cpp presets or None, whether it is added unless forbidden).
_ADDED_TOKENS: dict[str, dict[str, tuple[int | None, bool]]] = {
    "llama": {"bos": (1, True), "eos": (2, False)},
    "bert": {"bos": (101, True), "eos": (None, False), "seperator": (102, True)},
    "gpt2": {"bos": (11, False), "eos": (11, False)},
    "t5": {"bos": (None, False), "eos": (1, True)},
}
_OTHER_ADDED_TOKENS: dict[str, tuple[int | None, bool]] = {"bos": (None, False), "eos": (None, False)}


def check_model(header: Header) -> None:
    """Refuse, with InvalidModel, what would end llama.cpp instead of raising an error there."""
    _check_kind(header)
    _check_types(header)
    _check_hyper_parameters(header)
    _check_experts(header)
    _check_tokenizer(header)
    _check_tensor_types(header)


def _check_kind(header: Header) -> None:
    pieces = header.whole("split.count")
    if pieces is not None and pieces > 1:
        raise InvalidModel(
            f"The file is one of {pieces} pieces of a split model, and the others are not with it. Give the path of "
            "one in the folder that has them all, or upload all and name them in `files`."
        )
    if "general.architecture" not in header.pairs:
        raise InvalidModel("The file does not name its architecture (general.architecture); convert the model again.")
    if header.pairs["general.architecture"].type != "str" or not _ARCHITECTURE.fullmatch(header.architecture):
        raise InvalidModel("general.architecture is not a word of letters, digits, _, . and -; the file is corrupt.")
    kind = "mmproj" if header.architecture == "clip" else header.text("general.type")
    if kind in _OTHER_KINDS:
        raise InvalidModel(f"The file is {_OTHER_KINDS[kind]}.")


def _check_types(header: Header) -> None:
    arch = header.architecture
    for key in ("general.file_type", *(f"{arch}.{name}" for name in _WHOLE)):
        pair = header.pairs.get(key)
        if pair is not None and pair.type != "u32":
            raise InvalidModel(f"{key} has the type {pair.type}, not u32; the file is corrupt.")
    layers = header.whole(f"{arch}.block_count") or 0
    for name in _PER_LAYER:
        key = f"{arch}.{name}"
        pair = header.pairs.get(key)
        if pair is None or pair.type == "u32":
            continue
        array = header.array(key)
        if array is None or array.element_type not in ("u32", "i32") or array.values is None or array.count != layers:
            raise InvalidModel(f"{key} is neither one u32 nor one whole number for each of {layers} layers.")
        if min(array.values, default=0) < 0:
            raise InvalidModel(f"{key} holds a negative number; the file is corrupt.")


_WHOLE = (
    "context_length",
    "embedding_length",
    "block_count",
    "nextn_predict_layers",
    "expert_count",
    "expert_group_count",
    "expert_group_used_count",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
)
_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count")


def per_layer(header: Header, name: str) -> tuple[int, ...]:
    """`{arch}.{name}` as one number for each layer; empty when the file does not say."""
    key = f"{header.architecture}.{name}"
    array = header.array(key)
    if array is not None:
        return tuple(int(value) for value in array.values or ())
    value = header.whole(key)
    return () if value is None else (value,) * (header.whole(f"{header.architecture}.block_count") or 0)


def _check_hyper_parameters(header: Header) -> None:
    arch = header.architecture
    for name, most in (("block_count", _MAX_LAYERS), ("embedding_length", _MAX_WIDTH), ("context_length", _MAX_INT32)):
        value = header.whole(f"{arch}.{name}")
        if value is None:
            raise InvalidModel(f"The file does not give {arch}.{name}; convert the model again.")
        if not 1 <= value <= most:
            raise InvalidModel(f"{arch}.{name} is {value}; 1 to {most} are allowed. The file is corrupt.")
    layers = header.whole(f"{arch}.block_count") or 0
    if (header.whole(f"{arch}.nextn_predict_layers") or 0) > layers:
        raise InvalidModel(f"{arch}.nextn_predict_layers is more than the {layers} layers there are.")
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        value = header.whole(f"{arch}.{name}")
        if value is not None and value > _MAX_WIDTH:
            raise InvalidModel(f"{arch}.{name} is {value}; at most {_MAX_WIDTH} is allowed. The file is corrupt.")
    for key, pair in header.pairs.items():
        if not key.startswith(f"{arch}.") or not isinstance(pair.value, float):
            continue
        if math.isnan(pair.value) or (key.endswith("_epsilon") and not 0.0 <= pair.value < math.inf):
            raise InvalidModel(f"{key} is {pair.value}, which no model is trained with; the file is corrupt.")
    window = header.whole(f"{arch}.attention.sliding_window") or 0
    if window > _MAX_WINDOW:
        raise InvalidModel(f"{arch}.attention.sliding_window is {window}; at most {_MAX_WINDOW} is allowed.")
    pooling = header.whole(f"{arch}.pooling_type") or 0
    if not 0 <= pooling < _POOLINGS:
        raise InvalidModel(f"{arch}.pooling_type is {pooling}, which llama.cpp does not know; the file is corrupt.")
    _check_labels(header, pooling)
    scaling = header.pairs.get(f"{arch}.rope.scaling.type")
    if scaling is not None and scaling.value not in _ROPE_SCALING:
        raise InvalidModel(f"{arch}.rope.scaling.type is none of {', '.join(sorted(_ROPE_SCALING))}.")
    _check_sections(header)
    _check_heads(header)


def _check_labels(header: Header, pooling: int) -> None:
    """A reranker without a last layer gives as many numbers as it is wide, of which there is a label for each."""
    labels = header.array(f"{header.architecture}.classifier.output_labels")
    width = header.whole(f"{header.architecture}.embedding_length") or 0
    if pooling == _RANK and labels is not None and labels.count > width:
        raise InvalidModel(f"The file names {labels.count} classes for {width} numbers; it is corrupt.")


def _check_sections(header: Header) -> None:
    """The sections of a rotary embedding: llama.cpp divides by their sum, and asserts that there are some."""
    key = f"{header.architecture}.rope.dimension_sections"
    array, value = header.array(key), header.whole(key)
    sections = (value,) * 3 if value is not None else () if array is None else array.values or ()
    if any(not 0 <= section <= _MAX_WIDTH for section in sections):
        raise InvalidModel(f"{key} holds a number that no section can have; the file is corrupt.")
    if header.architecture in _ALWAYS_SECTIONS and not any(sections[:3]):
        raise InvalidModel(f"{key} gives no sections, which this architecture needs; convert the model again.")


def _check_heads(header: Header) -> None:
    arch = header.architecture
    layers = header.whole(f"{arch}.block_count") or 0
    heads = per_layer(header, "attention.head_count") or (0,) * layers
    kv_heads = per_layer(header, "attention.head_count_kv") or heads
    for layer, (count, kv_count) in enumerate(zip(heads, kv_heads, strict=True)):
        if count > _MAX_WIDTH or (count and kv_count and count % kv_count):
            raise InvalidModel(
                f"{arch}: {count} attention heads in layer {layer} cannot share {kv_count} key-value heads."
            )
    if arch not in _RECURRENT and not any(heads):
        raise InvalidModel(f"{arch}.attention.head_count is 0 or missing; convert the model again.")
    # Layers without attention (recurrent, skipped) rightly have no heads; layers with query or key weights need them.
    for tensor in header.tensors:
        found = _ATTENTION.fullmatch(tensor.name)
        if found is None:
            continue
        layer, of_keys = int(found[1]), found[2] == "k"
        if layer < len(heads) and (kv_heads if of_keys else heads)[layer] == 0:
            name = "attention.head_count_kv" if of_keys else "attention.head_count"
            raise InvalidModel(f"{arch}.{name} is 0 for layer {layer}, which has attention weights.")
    key_length = header.whole(f"{arch}.attention.key_length")
    if key_length is None and any(heads):
        key_length = (header.whole(f"{arch}.embedding_length") or 0) // max(heads)
    if any(heads) and not key_length:
        raise InvalidModel(f"{arch}: {max(heads)} attention heads and heads of no length; the file is corrupt.")


def _check_experts(header: Header) -> None:
    arch = header.architecture
    experts = header.whole(f"{arch}.expert_count") or 0
    used = max(per_layer(header, "expert_used_count"), default=0)
    if arch in _RESETS_SINGLE_EXPERT and experts <= 1:
        experts = used = 0
    groups = header.whole(f"{arch}.expert_group_count") or 0
    groups_used = header.whole(f"{arch}.expert_group_used_count") or 0
    fault = None
    if experts > _MAX_EXPERTS:
        fault = f"expert_count is {experts}; {_MAX_EXPERTS} are allowed"
    elif used > experts:
        fault = f"expert_used_count is {used} of {experts} experts"
    elif not experts and arch in _ALWAYS_EXPERTS:
        fault = "expert_count is 0, and this architecture has experts"
    elif experts and not used:
        fault = f"expert_used_count is 0 of {experts} experts"
    elif groups and groups >= experts:
        fault = f"expert_group_count is {groups} for {experts} experts"
    elif groups > 1 and (experts % groups or not 0 < groups_used < groups):
        fault = f"{groups_used} of {groups} groups for {experts} experts cannot be"
    if fault is not None:
        raise InvalidModel(f"{arch}.{fault}. The file is corrupt.")


def _check_tokenizer(header: Header) -> None:
    model = header.pairs.get("tokenizer.ggml.model")
    tokens = header.pairs.get(TOKENS_KEY)
    if model is not None and model.type != "str":
        raise InvalidModel("tokenizer.ggml.model is not a string; the file is corrupt.")
    if model is not None and model.value == "t5" and CHARSMAP_KEY in header.pairs:
        check_charsmap(header.charsmap)
    if tokens is None:
        return
    array = header.array(TOKENS_KEY)
    if array is None or array.element_type != "str":
        raise InvalidModel(f"{TOKENS_KEY} is not an array of strings; the file is corrupt.")
    if array.count == 0:
        raise InvalidModel("The vocabulary is empty; convert the model again.")
    for key, kinds in (("scores", ("f32", "i32")), ("token_type", ("i32",))):
        name = f"tokenizer.ggml.{key}"
        if name not in header.pairs:
            continue
        other = header.array(name)
        if other is None or other.element_type not in kinds:
            raise InvalidModel(f"{name} is not an array of {' or '.join(kinds)}; the file is corrupt.")
        if other.count != array.count:
            raise InvalidModel(f"{name} has {other.count} entries for {array.count} tokens; the file is corrupt.")
    merges = header.pairs.get("tokenizer.ggml.merges")
    if merges is not None:
        merged = header.array("tokenizer.ggml.merges")
        if merged is None or merged.element_type != "str":
            raise InvalidModel("tokenizer.ggml.merges is not an array of strings; the file is corrupt.")
    if header.text("tokenizer.ggml.model") == "llama" and header.byte_tokens < 256:
        raise InvalidModel(
            f"The vocabulary has no token for {256 - header.byte_tokens} of the 256 bytes, and llama.cpp ends on the "
            "first text that needs one; convert the model again with byte fallback."
        )
    _check_added_tokens(header, array.count)


def _check_added_tokens(header: Header, vocabulary: int) -> None:
    """A vocabulary that begins or ends every text with a token must have that token: llama.cpp asserts it."""
    model = header.text("tokenizer.ggml.model") or ""
    for word, (preset, added) in _ADDED_TOKENS.get(model, _OTHER_ADDED_TOKENS).items():
        # "seperator" is how the key of the id is spelled; the key of the switch says "sep".
        switch = header.pairs.get(f"tokenizer.ggml.add_{word[:3]}_token")
        if switch is not None and model != "bert":  # which adds its tokens whatever the switch says
            added = switch.value is True
        if not added:
            continue
        candidates = (header.whole(f"tokenizer.ggml.{word}_token_id"), preset)
        if not any(candidate is not None and 0 <= candidate < vocabulary for candidate in candidates):
            raise InvalidModel(
                f"The vocabulary adds a token to every text ({word}) and has none for it "
                f"(tokenizer.ggml.{word}_token_id); convert the model again."
            )


def _check_tensor_types(header: Header) -> None:
    for tensor in header.tensors:
        is_table = any(table in tensor.name for table in _TABLES)
        if tensor.type in _NOT_FOR_WEIGHTS and not is_table:
            raise InvalidModel(
                f"The tensor {tensor.name!a} has the type {tensor.type}, which llama.cpp does not compute with; "
                "convert the model again."
            )
        if len(tensor.shape) > 3 and tensor.shape[3] > 1 and "time_mix_" not in tensor.name:
            raise InvalidModel(
                f"The tensor {tensor.name!a} has four dimensions, which llama.cpp does not quantize; the file is "
                "corrupt."
            )
        if tensor.type != "F32" and not is_table and _ALWAYS_F32.fullmatch(tensor.name):
            raise InvalidModel(
                f"The tensor {tensor.name!a} is a bias, a normalization or a scale and has the type {tensor.type}; "
                "llama.cpp computes with F32 there. Convert the model again."
            )
