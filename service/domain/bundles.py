"""What a bundle says of a model beyond its files, and how much of that is believed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.domain import recipes
from service.domain.catalog import AdapterFacts, FileFacts, Lineage, Measurement
from service.domain.errors import InvalidName, InvalidParameter, UnknownQuantization
from service.domain.evaluation import Card
from service.domain.names import ModelKey, parse_digest, parse_ref
from service.domain.presets import Preset, check_preset
from service.domain.recipes import Recipe

VERSION = 1
_TEXT_LIMIT = 200  # characters of what is for people


@dataclass(frozen=True, slots=True)
class BundledPreset:
    """What a name of a variant adds to it. `word` is a tag of the variant, its own or a free one, in lower case.

    `owned` are the tags of variants that came with the name, and go with it; the preset has no ids.
    """

    word: str
    preset: Preset
    owned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BundledVariant:
    """A variant as its bundle has it. `facts` are for readers of the bundle; whoever takes it in finds its own."""

    version: int
    model: str  # display name
    flavour: str
    quantization: str
    tags: tuple[str, ...]
    created_at: str
    facts: FileFacts
    lineage: Lineage
    card: Card | None = None
    measurements: tuple[Measurement, ...] = ()
    presets: tuple[BundledPreset, ...] = ()


@dataclass(frozen=True, slots=True)
class BundledAdapter:
    """A LoRA adapter as its bundle has it; `facts` are for readers, as those of a variant."""

    version: int
    model: str
    name: str
    created_at: str
    facts: AdapterFacts


@dataclass(frozen=True, slots=True)
class BundledMatrix:
    """An importance matrix as its bundle has it: what it was computed with, where that is known."""

    version: int
    model: str
    created_at: str
    source_digest: str | None = None
    dataset_digest: str | None = None


def believed(lineage: Lineage, model: str, key: ModelKey) -> Lineage:
    """What is kept of a bundle's lineage for a variant that is now one of `key`, and was one of `model`.

    How it was made is kept where it is well formed: a rebuild compares digests, so that a false recipe comes out.
    Where it was pulled from and by which job is not: nobody here has seen that.
    """
    return Lineage(
        origin="imported",
        source_digest=_digest(lineage.source_digest),
        source_name=_renamed(lineage.source_name, model, key),
        recipe=_checked(lineage.recipe),
        llama_build=_short(lineage.llama_build),
        duration_seconds=lineage.duration_seconds,
        lossy_source=lineage.lossy_source,
        converted_from=_short(lineage.converted_from),
    )


def believed_card(card: Card) -> Card:
    """A bundle's figures without those of its machine: they say nothing of this one."""
    return replace(card, machine=_short(card.machine) or "", llama_build=_short(card.llama_build) or "", speed=None)


def believed_preset(preset: Preset, model: str, key: ModelKey) -> Preset:
    """What is kept of a bundle's preset: all that `create` could have been given. Raises InvalidParameter."""
    return replace(check_preset(preset), parent=_renamed(preset.parent, model, key), owned=())


def believed_digest(digest: str | None) -> str | None:
    """A digest that a bundle names, where it is one."""
    return _digest(digest)


def _checked(recipe: Recipe | None) -> Recipe | None:
    try:
        return None if recipe is None else recipes.check(recipe)
    except (InvalidParameter, UnknownQuantization):
        return None


def _digest(digest: str | None) -> str | None:
    try:
        return None if digest is None else parse_digest(digest)
    except InvalidName:
        return None


def _renamed(name: str | None, model: str, key: ModelKey) -> str | None:
    try:
        if name is None:
            return None
        ref = parse_ref(name)
        return replace(ref, key=key).display if ref.key.folded == parse_ref(model).key.folded else ref.display
    except InvalidName:
        return None


def _short(text: str | None) -> str | None:
    return None if text is None else "".join(c for c in text[:_TEXT_LIMIT] if c.isprintable())
