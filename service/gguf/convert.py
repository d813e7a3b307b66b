"""A checkpoint in safetensors becomes a GGUF file: plan everything from headers, then stream the tensors.

Runs in job children. The work is divided: `checkpoints.py` reads, `architectures/` says what each tensor and
hyper-parameter becomes, `vocabulary/` does the tokenizer, `packed/` undoes GPTQ and the like, `writing.py` writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import InvalidModel, InvalidParameter
from service.gguf.architectures import layout_of
from service.gguf.architectures.config import Config
from service.gguf.architectures.rules import Layout, Weights, apply, first_rows
from service.gguf.card import card_fields
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import open_tensors
from service.gguf.fields import Field
from service.gguf.packed import unpacked, with_quantization
from service.gguf.vocabulary import Vocabulary, read_vocabulary
from service.gguf.writing import Plan

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama_ftype
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_EMBEDDING = "token_embd.weight"
# llama.cpp computes with these in float32 (llama_tensor_get_type, and its converter).
_ALWAYS_F32 = ("position_embd.weight", "token_types.weight")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint ready to be written. `description` says what it was, `packing` how its weights were quantized."""

    plan: Plan
    convert_to: str
    description: str
    packing: str | None


def prepare(files: Files, convert_to: str | None) -> Conversion:
    """Read every header and the tokenizer, and plan the file; no weights are read.

    `convert_to` None: F16, or BF16 where most of the checkpoint is in BF16. Raises InvalidModel, InvalidParameter.
    """
    if convert_to is not None and convert_to not in FILE_TYPES:
        raise InvalidParameter(f"Convert to one of {', '.join(FILE_TYPES)}.", param="convert_to")
    values = files.json("config.json")
    if values is None:
        raise InvalidModel("The checkpoint has no config.json; download it with all of its files.")
    config = Config(values)
    layout = layout_of(config, files)
    tensors, packing = unpacked(open_tensors(files), with_quantization(values, files))
    weights = apply(layout, tensors)
    vocabulary = read_vocabulary(files, layout.architecture, layout.vocabulary)
    weights = _fitted(layout, weights, vocabulary)
    target = convert_to or _usual(weights, packing)
    fields = _fields(layout, vocabulary, target, card_fields(files, config.values), weights)
    plan = Plan(fields, [(each, _type_of(each, target)) for each in weights])
    kind = config.model_class + (f", {packing}" if packing else f", {_main_type(weights)}")
    return Conversion(plan, target, f"safetensors ({kind})", packing)


def convert(
    files: Files, target: Path, convert_to: str | None, progress: Callable[[float, str], None]
) -> tuple[str, int]:
    """Prepare and write: (digest, bytes). Raises InvalidModel, InvalidParameter, OSError."""
    written = prepare(files, convert_to).plan.write(target, progress)
    return written.digest, written.size_bytes


def _fitted(layout: Layout, weights: tuple[Weights, ...], vocabulary: Vocabulary) -> tuple[Weights, ...]:
    """llama.cpp wants one row of the embedding for each token."""
    if vocabulary.size == layout.vocabulary:
        return weights
    if vocabulary.size > layout.vocabulary or not layout.trims_vocabulary:
        raise InvalidModel(
            f"The tokenizer has {vocabulary.size} tokens, the model's embedding {layout.vocabulary}; the files do not "
            "belong together."
        )
    return tuple(first_rows(each, vocabulary.size) if each.name == _EMBEDDING else each for each in weights)


def _usual(weights: Sequence[Weights], packing: str | None) -> str:
    return "BF16" if packing is None and _main_type(weights) == "BF16" else "F16"


def _main_type(weights: Sequence[Weights]) -> str:
    """The type that most of the checkpoint's weights have."""
    counts: Counter[str] = Counter()
    for each in weights:
        counts[each.dtype] += each.weights
    return counts.most_common(1)[0][0]


def _type_of(weights: Weights, target: str) -> str:
    name = weights.name
    if len(weights.shape) == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")) or name in _ALWAYS_F32:
        return "F32"
    return target if name.endswith(".weight") else "F32"


def _fields(
    layout: Layout, vocabulary: Vocabulary, target: str, card: Sequence[Field], weights: Sequence[Weights]
) -> tuple[Field, ...]:
    general = (
        Field("general.architecture", "str", layout.architecture),
        Field("general.type", "str", "model"),
        *card,
        Field("general.size_label", "str", size_label(weights)),
    )
    own = (
        *layout.fields,
        Field("general.file_type", "u32", FILE_TYPES[target]),
        Field("general.quantization_version", "u32", _QUANTIZATION_VERSION),
    )
    # A vocabulary that gives a field as well knows better.
    fields = {field.key: field for field in (*general, *own, *vocabulary.fields)}
    return tuple(fields.values())


def size_label(weights: Sequence[Weights]) -> str:
    """Parameters in two digits: "135M", "8.0B"; with experts their number and the size of a model with one: "8x7B"."""
    experts = max((each.shape[0] for each in weights if "_exps." in each.name), default=0)
    total = sum(each.weights for each in weights)
    if not experts:
        return _rounded(total)
    of_experts = sum(each.weights for each in weights if "_exps." in each.name)
    return f"{experts}x{_rounded(total - of_experts + of_experts // experts)}"


def _rounded(count: int) -> str:
    units = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
    unit, letter = next((each for each in units if count >= each[0]), units[-1])
    size = count / unit
    return f"{size:.1f}{letter}" if size < 9.95 else f"{size:.0f}{letter}"
