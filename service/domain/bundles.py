"""What a bundle says of a variant beyond its file, and how much of that is believed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.domain import recipes
from service.domain.catalog import FileFacts, Lineage, Measurement
from service.domain.errors import InvalidName, InvalidParameter, UnknownQuantization
from service.domain.evaluation import Card
from service.domain.names import ModelKey, parse_digest, parse_ref
from service.domain.recipes import Recipe

VERSION = 1
_TEXT_LIMIT = 200  # characters of what is for people


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
