"""The names that a bundle gives its variants, and what they add: tags, then presets. Server process.

What a name means here already, or adds here already, stays; it is told instead.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from service.domain.bundles import BundledPreset, BundledVariant, believed_preset
from service.domain.catalog import Lineage, Variant
from service.domain.errors import AdapterNotFound, InvalidName, NameTaken
from service.domain.names import check_not_reserved, parse_ref
from service.store import naming
from service.store.bundles.reading import MAX_PRESETS
from service.store.catalog import Catalog

_MAX_TAGS = 100


def give_tags(catalog: Catalog, variant: Variant, about: BundledVariant) -> list[str]:
    """Give the variant its tags; those that mean another variant here, and so stay."""
    return [word for word in about.tags[:_MAX_TAGS] if not _give_tag(catalog, variant, word)]


def _give_tag(catalog: Catalog, variant: Variant, word: str) -> bool:
    """Give the variant its tag, unless that would take it from another one; False when it would."""
    try:
        ref = parse_ref(f"{variant.model.display}:{word}")
        check_not_reserved(word)
    except InvalidName:
        return True
    if ref.label is not None:
        return True
    holder = naming.tagged_variant(word.lower(), catalog.variants(variant.model.display))
    if holder is not None:
        return holder.id == variant.id
    with suppress(NameTaken, InvalidName):
        catalog.copy(variant, ref)
    return True


def give_presets(
    catalog: Catalog, variant: Variant, about: BundledVariant, came: dict[str, tuple[int, Lineage]]
) -> list[str]:
    """Give the variant's names what they add; why that could not be, for those that it could not be for.

    `came` has the variants that the bundle has brought, by their tags in lower case: ids, and lineages as they came.
    """
    told = (_give_preset(catalog, variant, about, bundled, came) for bundled in about.presets[:MAX_PRESETS])
    return [problem for problem in told if problem is not None]


def _give_preset(
    catalog: Catalog,
    variant: Variant,
    about: BundledVariant,
    bundled: BundledPreset,
    came: dict[str, tuple[int, Lineage]],
) -> str | None:
    """What there is to say of it; a name that is not the variant's here has been told of with the tags."""
    variant = catalog.variant(variant.id)
    if bundled.word not in {word.lower() for word in (variant.tag, *variant.tags)}:
        return None
    ref = parse_ref(f"{variant.model.display}:{bundled.word}")
    preset = believed_preset(bundled.preset, about.model, variant.model)
    known = catalog.presets.find(ref)
    if known is not None:
        is_same = replace(known, owned=()) == preset
        return None if is_same else f"what {bundled.word} adds here is something else and stays"
    try:
        catalog.adapters.find(variant.model, [use.name for use in preset.adapters])
    except AdapterNotFound:
        return f"what {bundled.word} adds is left out: it uses an adapter that is not there"
    catalog.presets.put(ref, variant, replace(preset, owned=_owned(catalog, bundled, came)))
    return None


def _owned(catalog: Catalog, bundled: BundledPreset, came: dict[str, tuple[int, Lineage]]) -> tuple[int, ...]:
    """The ids of the variants that go with a name, if they came with the bundle: what was here before is left alone."""
    found = (came.get(tag.lower()) for tag in bundled.owned)
    return tuple(
        sorted({number for number, lineage in filter(None, found) if catalog.variant(number).lineage == lineage})
    )
