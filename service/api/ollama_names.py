"""Names in Ollama's dialect: what one reaches, its preset, and how models are listed and described.

A name without a tag is `:latest` here, as Ollama has it. Server process; reads the store, changes nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.errors import ModelNotFound
from service.domain.names import DEFAULT_TAG, ModelRef, parse_ref
from service.domain.presets import Preset

NO_PRESET = Preset()


@dataclass(frozen=True, slots=True)
class Meant:
    """What a name means: a variant, and what the name adds to it."""

    ref: ModelRef
    variant: Variant
    preset: Preset


async def meant(services: Services, name: str, param: str = "model") -> Meant:
    """What `name` means. Raises InvalidName, BlobCorrupt, and ModelNotFound in Ollama's words."""
    try:
        ref = parse_ref(name)
        variant = await services.servable(name)
    except ModelNotFound as error:
        raise not_found(name, error, param) from error
    return Meant(ref, variant, await preset_of(services, ref) or NO_PRESET)


def not_found(name: str, error: ModelNotFound, param: str = "model") -> ModelNotFound:
    """The same error as Ollama's clients know it: they look for `not found`."""
    _, _, hint = error.message.partition("; ")
    return ModelNotFound(f"model '{name}' not found; {hint or 'list the models for what is there.'}", param=param)


async def preset_of(services: Services, ref: ModelRef) -> Preset | None:
    """What a name adds to its variant, if it was made by `create`."""
    try:
        return services.presets.remembered(ref)
    except KeyError:
        return await asyncio.to_thread(services.presets.find, ref)


def tagged(ref: ModelRef) -> ModelRef:
    """The same reference with `latest` for the tag where none is written."""
    return ref if ref.tag is not None else parse_ref(f"{ref.key.display}:{DEFAULT_TAG}")


def names_of(variant: Variant) -> list[str]:
    """The canonical name of a variant, and one for each of its tags."""
    return [variant.name, *(f"{variant.model.display}:{tag}" for tag in variant.tags)]


def entry(name: str, variant: Variant, preset: Preset | None) -> dict[str, Any]:
    """A model as lists have it."""
    return {
        "name": name,
        "model": name,
        "modified_at": variant.created_at,
        "size": variant.size_bytes,
        "digest": bare_digest(variant.digest),
        "details": details(variant, preset),
    }


def details(variant: Variant, preset: Preset | None) -> dict[str, Any]:
    """What kind of model it is."""
    facts = variant.facts
    return {
        "parent_model": (preset.parent or "") if preset else "",
        "format": "gguf",
        "family": facts.shape.architecture,
        "families": [facts.shape.architecture],
        "parameter_size": parameter_size(facts.parameters),
        "quantization_level": variant.quantization,
        "context_length": facts.shape.context_length,
        "embedding_length": facts.shape.embedding,
    }


def parameter_size(parameters: int) -> str:
    """`134.52M`, `7B`, `1.5B`: as Ollama prints them."""
    for unit, letter, places in ((10**12, "T", 1), (10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if parameters >= unit:
            places = 0 if parameters % unit == 0 else places
            return f"{parameters / unit:.{places}f}{letter}"
    return str(parameters)


def bare_digest(digest: str) -> str:
    """The hexadecimal digits alone."""
    return digest.removeprefix("sha256:")
