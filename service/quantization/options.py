"""What the options of a recipe mean for one file: which tensors are left, which types are asked for, which keys change.

Pure functions in child processes. Refuses what llama.cpp would do without a word or not survive; knows nothing of how
the types of the other tensors come about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel, QuantizationNotApplicable
from service.domain.patterns import exactly
from service.domain.quants import QUANTIZATIONS, Family
from service.domain.recipes import MetadataOverride, MetadataValue, Recipe, TypeOverride
from service.gguf.checks import check_model
from service.gguf.header import ArrayInfo, Header, Pair

_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_BLOCK = re.compile(r"blk\.(\d+)\.")
_SCALAR_BYTES = {"u32": 4, "f32": 4, "bool": 1}
_KINDS = {"u32": "a whole number", "f32": "a number", "bool": "true or false", "str": "text"}
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Applied:
    """A recipe as one file has it.

    `header` is the source's without the blocks that are left out, the rest renamed as llama.cpp does, and with the
    keys set; its tensors still have the source's types. `source_names` are what they are called there. `recipe` names
    the tensors of its overrides one by one, and its metadata values have the types of the keys. `found` has, for each
    override asked for, the tensors that it is the first to find.
    """

    header: Header
    source_names: tuple[str, ...]
    recipe: Recipe
    found: tuple[tuple[TypeOverride, tuple[str, ...]], ...] = ()

    @property
    def chosen(self) -> Mapping[str, str]:
        """The type asked for by override, by tensor."""
        return {name: override.type for override, names in self.found for name in names}


def apply(header: Header, recipe: Recipe) -> Applied:
    """Apply a checked recipe with a level to the file with this header.

    Raises QuantizationNotApplicable, naming the option and why it cannot be.
    """
    metadata = tuple(_typed(header, override) for override in recipe.metadata)
    changed = replace(header, pairs=_pairs(header, metadata))
    if metadata:
        _check_readable(changed, "metadata")
    source_names = tuple(tensor.name for tensor in header.tensors)
    if recipe.prune_layers:
        source_names, changed = _pruned(changed, recipe.prune_layers)
        _check_readable(changed, "prune_layers")
    if recipe.keep_output and _OUTPUT not in source_names:
        raise QuantizationNotApplicable(
            f"The model has no {_OUTPUT} to keep: its output is {_EMBEDDING}. Set token_embedding_type instead.",
            param="recipe.keep_output",
        )
    found = _first_matches(changed, recipe)
    overrides = tuple(TypeOverride(exactly(name), override.type) for override, names in found for name in names)
    return Applied(changed, source_names, replace(recipe, metadata=metadata, overrides=overrides), found)


def unheeded(applied: Applied, types: Mapping[str, str], fallbacks: tuple[str, ...]) -> str | None:
    """Why the options would not do what they say, given what a dry run found; None when they would.

    `fallbacks` are the tensors that got another type for their shape: those were heeded.
    """
    recipe = applied.recipe
    output = _OUTPUT if _OUTPUT in types else _EMBEDDING
    for wanted, name, option in (
        (recipe.token_embedding_type, _EMBEDDING, "token_embedding_type"),
        (recipe.output_type, output, "output_type"),
    ):
        if wanted is None or types.get(name) == wanted or name in fallbacks:
            continue
        if option == "output_type" and output == _EMBEDDING:
            return f"The model's output is {_EMBEDDING}, which another option decides; use token_embedding_type alone."
        return f"{option} has no effect: the model has no {name}, or llama.cpp does not quantize it."
    for override, names in applied.found:
        if not any(types[name] == override.type or name in fallbacks for name in names):
            return (
                f"The pattern {override.pattern!r} has no effect: it finds {listed(names)}, which llama.cpp does not "
                "quantize or another option decides."
            )
    return None


def _typed(header: Header, override: MetadataOverride) -> MetadataOverride:
    """The override with a value of the type that the key has in the file."""
    pair = header.pairs.get(override.key)
    if pair is None:
        return override
    value = override.value
    if pair.type == "f32" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if _written_type(value) == pair.type:
        return replace(override, value=value)
    expected = _KINDS.get(pair.type)
    if expected is None:
        kind = "an array" if isinstance(pair.value, ArrayInfo) else f"of type {pair.type}"
        reason = f"is {kind}, which llama.cpp's quantizer cannot set"
    else:
        reason = f"takes {expected}"
    raise QuantizationNotApplicable(
        f"The metadata key {override.key!r} of this file {reason}.", param="recipe.metadata"
    )


def _written_type(value: MetadataValue) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "u32"
    return "f32" if isinstance(value, float) else "str"


def _pairs(header: Header, metadata: tuple[MetadataOverride, ...]) -> Mapping[str, Pair]:
    pairs = dict(header.pairs)
    for override in metadata:
        value = override.value
        kind = _written_type(value)
        size = 8 + len(value.encode()) if isinstance(value, str) else _SCALAR_BYTES[kind]
        pairs[override.key] = Pair(kind, value, 8 + len(override.key.encode()) + 4 + size)
    return MappingProxyType(pairs)


def _check_readable(header: Header, option: str) -> None:
    try:
        check_model(header)
    except InvalidModel as error:
        raise QuantizationNotApplicable(
            f"With these {option} llama.cpp could not read the result: {error.message}", param=f"recipe.{option}"
        ) from None


def _pruned(header: Header, layers: tuple[int, ...]) -> tuple[tuple[str, ...], Header]:
    """Without those blocks; the ones behind them move up (remap_layer in llama-quant.cpp). The old names as well."""
    key = f"{header.architecture}.block_count"
    count = header.whole(key) or 0
    dropped = frozenset(layers)
    if max(dropped) >= count or len(dropped) >= count:
        raise QuantizationNotApplicable(
            f"The model has blocks 0 to {count - 1}; leave out some of those, and not all.",
            param="recipe.prune_layers",
        )
    left = [layer for layer in range(count) if layer not in dropped]
    numbers = {layer: number for number, layer in enumerate(left)}
    source_names: list[str] = []
    tensors: list[TensorInfo] = []
    offsets: list[int] = []
    seen: set[int] = set()
    for tensor, offset in zip(header.tensors, header.offsets, strict=True):
        kept = tensor
        found = _BLOCK.match(tensor.name)
        if found is None and _BLOCK.search(tensor.name):
            # enc.blk.0 and dec.blk.0 are one block to llama.cpp, and it meets 10 before 2.
            raise QuantizationNotApplicable(
                "The blocks of this model are in two stacks, where llama.cpp leaves out the wrong ones.",
                param="recipe.prune_layers",
            )
        if found is not None:
            layer = int(found[1])
            seen.add(layer)
            if layer in dropped:
                continue
            if layer in numbers:
                kept = replace(tensor, name=f"blk.{numbers[layer]}.{tensor.name[found.end() :]}")
        source_names.append(tensor.name)
        tensors.append(kept)
        offsets.append(offset)
    if not seen.issuperset(range(count)) or len(seen) != count:
        # llama.cpp counts the blocks it meets.
        raise QuantizationNotApplicable(
            f"The model says it has {count} blocks and has tensors for {len(seen)}; none can be left out.",
            param="recipe.prune_layers",
        )
    pairs = {**header.pairs, key: replace(header.pairs[key], value=len(left))}
    changed = replace(header, pairs=MappingProxyType(pairs), tensors=tuple(tensors), offsets=tuple(offsets))
    return tuple(source_names), changed


def _first_matches(header: Header, recipe: Recipe) -> tuple[tuple[TypeOverride, tuple[str, ...]], ...]:
    """Each override with the tensors that it is the first to find."""
    if not recipe.overrides:
        return ()
    level = QUANTIZATIONS[recipe.quantization]
    if level.family is Family.FLOAT:
        raise QuantizationNotApplicable(
            f"llama.cpp passes over type overrides at {level.label}; choose a quantized level, such as Q8_0, and "
            "override the tensors that shall stay as they are.",
            param="recipe.overrides",
        )
    left = {tensor.name: None for tensor in header.tensors}  # in order
    found: list[tuple[TypeOverride, tuple[str, ...]]] = []
    for override in recipe.overrides:
        expression = re.compile(override.pattern)
        names = tuple(name for name in left if expression.search(name))
        if not names:
            examples = listed(tuple(tensor.name for tensor in header.tensors))
            raise QuantizationNotApplicable(
                f"The pattern {override.pattern!r} finds no tensor that one before it has not found; the model has "
                f"{examples}.",
                param="recipe.overrides",
            )
        for name in names:
            del left[name]
        found.append((override, names))
    return tuple(found)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
