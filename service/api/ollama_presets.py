"""Names that Ollama's `create` and `copy` make, with what they add; and taking them away again.

Blocks on the database: to be called off the event loop.
"""

from __future__ import annotations

from dataclasses import replace

from service.api.ollama_adapters import drop_adapters, give_adapters
from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.errors import NameTaken
from service.domain.names import ModelRef, parse_ref
from service.domain.presets import Preset, preset_word


def give_name(
    services: Services, variant: Variant, ref: ModelRef, preset: Preset, brought: frozenset[int] = frozenset()
) -> Variant:
    """Let `ref`, which has a tag, be a name of `variant` with this preset; what it named before it names no more.

    `brought` are the ids of variants that were made for the name. Raises as `Catalog.copy`.
    """
    catalog, presets = services.catalog, services.presets
    before = presets.find(ref)
    known = _ids(services, ref)
    try:
        named = catalog.copy(variant, ref)
    except NameTaken:
        # The same name once more, from another file: what it brought the last time makes room.
        old = [other for other in catalog.variants(ref.key.display) if before is not None and other.id in before.owned]
        if not old:
            raise
        for other in old:
            catalog.delete(parse_ref(other.name))
        named = catalog.copy(variant, ref)
    there = _ids(services, ref)
    owned = (there - known) | (brought & there) | (frozenset(before.owned if before else ()) & there)
    give_adapters(services, variant.model, named.model, preset.adapters)
    presets.put(ref, named, replace(preset, owned=tuple(sorted(owned))))
    drop_adapters(services, ref.key, before, presets.of_model(ref).values())
    return named


def delete_made(services: Services, ref: ModelRef) -> list[str]:
    """Take away a name that has a preset; the names of variants that came with it and that nothing needs any more.

    Those are still there: whoever calls deletes them. Raises ModelNotFound.
    """
    catalog, presets = services.catalog, services.presets
    preset = presets.find(ref)
    word = preset_word(ref)
    others = presets.of_model(ref)
    others.pop(word, None)
    needed = {variant_id for other in others.values() for variant_id in other.owned}
    variants = catalog.variants(ref.key.display)
    tagged = any(tag.lower() == word for variant in variants for tag in variant.tags)
    if tagged:
        catalog.delete(ref)
        variants = catalog.variants(ref.key.display)
    drop_adapters(services, ref.key, preset, others.values())
    owned = () if preset is None else preset.owned
    gone = [
        variant.name
        for variant in variants
        if variant.id in owned and variant.id not in needed and not variant.tags and variant.tag.lower() not in others
    ]
    if not tagged:
        # The name is the variant's own.
        named = catalog.resolve(ref).name
        gone = [named, *(name for name in gone if name != named)]
    return gone


def _ids(services: Services, ref: ModelRef) -> frozenset[int]:
    return frozenset(variant.id for variant in services.catalog.variants(ref.key.display))
