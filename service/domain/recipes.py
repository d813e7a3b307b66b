"""How a level is made from its source: every option of llama.cpp's quantizer as one value, enough to make it again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.domain.errors import InvalidParameter
from service.domain.patterns import MAX_COST, PatternError, pattern_cost
from service.domain.quants import GGML_TYPES, parse_label

MetadataValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TypeOverride:
    """Tensors whose name the regular expression `pattern` finds get `type`; the first match counts."""

    pattern: str
    type: str  # ggml type name, e.g. "Q6_K"


@dataclass(frozen=True, slots=True)
class MetadataOverride:
    """A metadata key of the result set to a value."""

    key: str
    value: MetadataValue


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant was made from its source.

    `quantization` is a canonical label, empty in the options of a request that names several. The types of output
    and token embedding are ggml type names; None leaves them to the level. `importance_matrix` is the digest of the
    object used. `prune_layers` lists the blocks that are left out.
    """

    quantization: str = ""
    allow_requantize: bool = False
    pure: bool = False  # every matrix gets the level's base type
    output_type: str | None = None
    token_embedding_type: str | None = None
    keep_output: bool = False  # output.weight is copied as it is
    overrides: tuple[TypeOverride, ...] = ()
    metadata: tuple[MetadataOverride, ...] = ()
    prune_layers: tuple[int, ...] = ()
    importance_matrix: str | None = None

    def at(self, quantization: str) -> Recipe:
        """These options for that level."""
        return replace(self, quantization=quantization)

    @property
    def is_stock(self) -> bool:
        """Whether this is the level as llama.cpp makes it from the source alone."""
        return self == Recipe(quantization=self.quantization, allow_requantize=self.allow_requantize)


STOCK = Recipe()
"""No options: each level as llama.cpp makes it."""


# Q8_1 and Q8_K are for kernels alone, and the rest no quantizer makes (ggml_quantize_chunk).
WRITABLE_TYPES = frozenset(
    {ggml.name for ggml in GGML_TYPES.values()} - {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
)
"""The ggml types that llama.cpp's quantizer can write."""

MAX_OVERRIDES = 10_000  # a mix names every tensor
MAX_METADATA = 64
MAX_METADATA_BYTES = 127  # llama_model_kv_override has 128 for a key or a text, with the NUL at its end
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,127}")
# Key, or beginning or end of one, and what to do instead.
_FIXED_KEYS = {
    "general.architecture": "it says what the tensors are",
    "general.alignment": "the quantizer writes with its own",
    "general.file_type": "the level sets it",
    "general.quantization_version": "the quantizer sets it",
}
_FIXED_PREFIXES = {"split.": "a variant is one file"}
_FIXED_SUFFIXES = {".block_count": "leave out blocks with prune_layers"}


def check(recipe: Recipe) -> Recipe:
    """The recipe in its canonical form, when it could be one for some model.

    Labels and types in their own spelling, the blocks to leave out in order. What it means for a certain file is in
    that file's plan. Raises InvalidParameter or UnknownQuantization with the field at fault.
    """
    if recipe.keep_output and recipe.output_type is not None:
        raise InvalidParameter(
            "keep_output copies output.weight and output_type converts it; leave one of them out.",
            param="recipe.keep_output",
        )
    return replace(
        recipe,
        quantization=parse_label(recipe.quantization) if recipe.quantization else "",
        output_type=_optional_type(recipe.output_type, "recipe.output_type"),
        token_embedding_type=_optional_type(recipe.token_embedding_type, "recipe.token_embedding_type"),
        overrides=_checked_overrides(recipe.overrides),
        metadata=_checked_metadata(recipe.metadata),
        prune_layers=_checked_layers(recipe.prune_layers),
    )


def _optional_type(name: str | None, param: str) -> str | None:
    return None if name is None else _writable_type(name, param)


def _writable_type(name: str, param: str) -> str:
    if name.isascii() and name.upper() in WRITABLE_TYPES:
        return name.upper()
    raise InvalidParameter(
        f"{name[:40]!r} is no tensor type that llama.cpp writes; those are {', '.join(sorted(WRITABLE_TYPES))}.",
        param=param,
    )


def _checked_overrides(overrides: tuple[TypeOverride, ...]) -> tuple[TypeOverride, ...]:
    _limit(overrides, MAX_OVERRIDES, "overrides")
    cost = 0
    for index, override in enumerate(overrides):
        param = f"recipe.overrides.{index}.pattern"
        try:
            cost += pattern_cost(override.pattern)
        except PatternError as error:
            raise InvalidParameter(f"The pattern {override.pattern[:60]!r} {error}.", param=param) from None
        if cost > MAX_COST:
            raise InvalidParameter(
                f"The pattern {override.pattern[:60]!r} can match in too many ways, by itself or with those before "
                "it; use fewer of * and +, or name the tensors.",
                param=param,
            )
    return tuple(
        replace(override, type=_writable_type(override.type, f"recipe.overrides.{index}.type"))
        for index, override in enumerate(overrides)
    )


def _checked_metadata(metadata: tuple[MetadataOverride, ...]) -> tuple[MetadataOverride, ...]:
    _limit(metadata, MAX_METADATA, "metadata")
    seen: set[str] = set()
    for override in metadata:
        fault = _key_fault(override.key) or _value_fault(override.value)
        if fault is None and override.key in seen:
            fault = "is named twice; name it once"
        if fault is not None:
            raise InvalidParameter(f"The metadata key {override.key[:60]!r} {fault}.", param="recipe.metadata")
        seen.add(override.key)
    return metadata


def _key_fault(key: str) -> str | None:
    if not _KEY.fullmatch(key):
        return f"is not 1 to {MAX_METADATA_BYTES} letters, digits, _, . and -"
    for fixed, reason in _FIXED_KEYS.items():
        if key == fixed:
            return f"cannot be set: {reason}"
    for prefix, reason in _FIXED_PREFIXES.items():
        if key.startswith(prefix):
            return f"cannot be set: {reason}"
    for suffix, reason in _FIXED_SUFFIXES.items():
        if key.endswith(suffix):
            return f"cannot be set: {reason}"
    return None


def _value_fault(value: MetadataValue) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if 0 <= value < 2**32 else "must be from 0 to 4294967295: llama.cpp writes whole numbers as u32"
    if isinstance(value, float):
        # Beyond what an f32 holds is infinite in the file.
        return None if math.isfinite(value) and abs(value) < 3.4e38 else "must be a finite number within an f32"
    if len(value.encode("utf-8", "replace")) > MAX_METADATA_BYTES:
        return f"must be at most {MAX_METADATA_BYTES} bytes of text: llama.cpp has room for no more"
    # Lines would reach llama.cpp's log, which is read; half a surrogate pair is no UTF-8.
    return None if value.isprintable() else "must be printable text on one line"


def _checked_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    ordered = tuple(sorted(set(layers)))
    if any(not 0 <= layer < MAX_LAYERS for layer in ordered):
        raise InvalidParameter(
            f"A block to leave out is a number from 0 to {MAX_LAYERS - 1}; correct prune_layers.",
            param="recipe.prune_layers",
        )
    return ordered


def _limit(items: Iterable[object], most: int, name: str) -> None:
    count = len(tuple(items))
    if count > most:
        raise InvalidParameter(f"There are {count} {name}; {most} are allowed.", param=f"recipe.{name}")
