"""From the types a dry run gives the tensors to the plan of a recipe: exact file size, bits, fallbacks, faults.

Pure functions in child processes; the layout is that of gguf.cpp's writer as llama-quant.cpp uses it. Knows nothing
of how the types were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from service.domain.catalog import LevelPlan, TensorInfo
from service.domain.quants import GGML_TYPES, QUANTIZATIONS, Family, Quantization
from service.domain.recipes import Recipe
from service.gguf.files import dimensions, label_of, ranked
from service.gguf.header import DEFAULT_ALIGNMENT, Header, Pair, padded, tensor_bytes, weights
from service.quantization.log import DryRun
from service.quantization.options import Applied, unheeded

_FILE_TYPE_KEY = "general.file_type"
_VERSION_KEY = "general.quantization_version"
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_BLOCK_WEIGHTS = {ggml.name: ggml.block_weights for ggml in GGML_TYPES.values()}
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"
_SHARED = frozenset({_EMBEDDING, "per_layer_token_embd.weight", _OUTPUT})
# Types that the quantizer refuses without an importance matrix (tensor_requires_imatrix in llama-quant.cpp), and those
# that end the process, where it does not ask (ggml_quantize_requires_imatrix).
_WEIGHTED_TYPES = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
_ALWAYS_WEIGHTED_TYPES = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})


def level_plan(applied: Applied, run: DryRun) -> LevelPlan:
    """The plan of a recipe, applied to a file, from what its dry run said."""
    header, recipe = applied.header, applied.recipe
    level = QUANTIZATIONS[recipe.quantization]
    reason = (
        _misfit(header, run)
        or _not_what_it_says(header, recipe, level, run)
        or unheeded(applied, run.types, run.fallbacks)
    )
    if reason is not None:
        return refused(level.label, reason)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    made = tuple(
        TensorInfo(name, shapes[name], kind, tensor_bytes(shapes[name], kind)) for name, kind in run.types.items()
    )
    size_bytes = file_bytes(header, run.types)
    return LevelPlan(
        quantization=level.label,
        size_bytes=size_bytes,
        bits_per_weight=sum(tensor.size_bytes for tensor in made) * 8 / sum(weights(tensor.shape) for tensor in made),
        needs_imatrix=run.needs_imatrix or any(weighted_tensors(header, run.types, level.label)),
        fallbacks=(*_shared_fallback(applied, level, run), *run.fallbacks),
        types=ranked(Counter(run.types.values())),
        tensors=made,
        notes=_notes(header, run, size_bytes),
    )


def file_bytes(header: Header, types: Mapping[str, str]) -> int:
    """Exact size of the file llama.cpp's quantizer writes from this header with these tensor types.

    It writes version 3 with its own alignment of 32, sets the file type and the quantization version, drops the keys
    of a split, drops trailing dimensions of one, and pads every tensor.
    """
    replaced = (_FILE_TYPE_KEY, _VERSION_KEY, *_SPLIT_KEYS)
    metadata = 4 + 4 + 8 + 8
    metadata += sum(pair.written_bytes for key, pair in header.pairs.items() if key not in replaced)
    metadata += sum(8 + len(key) + 4 + 4 for key in (_FILE_TYPE_KEY, _VERSION_KEY))
    data = 0
    for tensor in header.tensors:
        metadata += 8 + len(tensor.name.encode()) + 4 + 8 * dimensions(tensor.shape) + 4 + 8
        data += padded(tensor_bytes(tensor.shape, types[tensor.name]), DEFAULT_ALIGNMENT)
    return padded(metadata, DEFAULT_ALIGNMENT) + data


def weighted_tensors(header: Header, types: Mapping[str, str], label: str) -> tuple[str, ...]:
    """The tensors that llama.cpp converts only with values of an importance matrix for them."""
    return tuple(
        tensor.name
        for tensor in header.tensors
        if (kind := types[tensor.name]) != tensor.type
        and kind in (_ALWAYS_WEIGHTED_TYPES if tensor.name in _SHARED else _weighted_types(label))
    )


def _weighted_types(label: str) -> frozenset[str]:
    return _WEIGHTED_TYPES | {"Q2_K"} if label == "Q2_K_S" else _WEIGHTED_TYPES


def refused(label: str, reason: str) -> LevelPlan:
    """The plan of a level that cannot be made."""
    return LevelPlan(quantization=label, size_bytes=0, bits_per_weight=0.0, needs_imatrix=False, error=reason)


def _misfit(header: Header, run: DryRun) -> str | None:
    """A tensor whose rows do not fill the blocks of its type: llama.cpp looks only where it chose the type itself."""
    for tensor in header.tensors:
        kind = run.types[tensor.name]
        if tensor.shape[0] % _BLOCK_WEIGHTS[kind]:
            return (
                f"{tensor.name} has rows of {tensor.shape[0]} weights, which the blocks of {_BLOCK_WEIGHTS[kind]} of "
                f"{kind} do not fill; choose another type for it, such as Q8_0 or F16."
            )
    return None


def _not_what_it_says(header: Header, recipe: Recipe, level: Quantization, run: DryRun) -> str | None:
    """Why the result would not deserve the level's name: no tensor gets its type, and no shape explains it."""
    if level.base_type in run.types.values():
        return _other_label(header, recipe, level, run)
    if level.family is Family.MICROSCALING:
        return (
            f"No tensor of this model would become {level.base_type}: {level.label} is for mixture-of-experts models "
            "and makes a Q8_0 file of any other. Choose Q8_0, or a 4-bit level such as Q4_K_M."
        )
    if run.fallbacks:
        return None  # said tensor by tensor in the plan
    return f"No tensor of this model would become {level.base_type}. Choose another level."


def _other_label(header: Header, recipe: Recipe, level: Quantization, run: DryRun) -> str | None:
    """With overrides most weights may be of a type that the name of the level does not speak of."""
    if not recipe.overrides or run.fallbacks:
        return None
    kind = Pair("u32", level.file_type, 0)
    tensors: tuple[TensorInfo, ...] = tuple(replace(tensor, type=run.types[tensor.name]) for tensor in header.tensors)
    label = label_of(replace(header, pairs={**header.pairs, _FILE_TYPE_KEY: kind}, tensors=tensors))
    if label == level.label:
        return None
    return f"By its tensors the result would be {label} and not {level.label}. Choose {label} as the level."


def _shared_fallback(applied: Applied, level: Quantization, run: DryRun) -> tuple[str, ...]:
    """The tensor of the output, where llama.cpp falls back to Q8_0 for its shape without a word in the log."""
    name = _OUTPUT if _OUTPUT in run.types else _EMBEDDING
    shared = next((tensor for tensor in applied.header.tensors if tensor.name == name), None)
    if shared is None or level.base_type == "Q8_0" or run.types[name] != "Q8_0" or name in run.fallbacks:
        return ()
    asked_for = (applied.recipe.output_type, applied.recipe.token_embedding_type, applied.chosen.get(name))
    if "Q8_0" in asked_for or (applied.recipe.keep_output and shared.type == "Q8_0"):
        return ()
    return (name,) if shared.shape[0] % _BLOCK_WEIGHTS[level.base_type] else ()


def _notes(header: Header, run: DryRun, size_bytes: int) -> tuple[str, ...]:
    """What speaks against making this at all."""
    notes = []
    if all(run.types[tensor.name] == tensor.type for tensor in header.tensors):
        notes.append("Every tensor stays as it is in the source.")
    if size_bytes >= header.file_size:
        than = "as large as" if size_bytes == header.file_size else "larger than"
        notes.append(f"The file would be {than} its source: {size_bytes} bytes to {header.file_size}.")
    return tuple(notes)
