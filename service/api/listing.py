"""Lists of everything that is stored, as bytes: what each model adds is encoded once, and again when it has changed.

Ten thousand variants are ten megabytes; encoding them takes half a second, joining what is kept a few milliseconds.
Off the event loop: reads the store, changes nothing, and knows no dialect but the native one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from service.api.catalogue import available_shape, best_sources, missing_levels, variant_shape
from service.api.remembered import Part
from service.api.services import Services
from service.store.rows import StoredModel

Make = Callable[[Sequence[StoredModel]], Iterable[Part]]


def parts_of(
    services: Services,
    kind: Hashable,
    models: Sequence[StoredModel],
    make: Make,
    loaded: frozenset[str] = frozenset(),
) -> list[Part]:
    """For each model what `make` gives for it: the part called `kind` that is kept, or a new one if it has changed.

    What `make` reads must be counted by the model's revision, or be whether one of its blobs is `loaded`, or never
    change. It gets all models that have changed at once, and gives their parts in order.
    """
    keys = [((kind, model.id), (model.revision, _loaded_of(model, loaded))) for model in models]
    found = [services.parts.get(*key) for key in keys]
    changed = [index for index, part in enumerate(found) if part is None]
    if changed:
        made = make([models[index] for index in changed])
        for index, part in zip(changed, made, strict=True):
            found[index] = part
            if models[index].revision is not None:
                services.parts.keep(*keys[index], part)
    return [part for part in found if part is not None]


def listed_variants(services: Services, model: str | None, context: int | None, loaded: frozenset[str]) -> bytes:
    """A `VariantListing`: every variant (of one model), and what could be made of the stored sources but is not there.

    `loaded` are the digests in memory.
    """
    models = services.catalog.models(model)
    parts = parts_of(
        services, ("variants", context), models, lambda changed: _variants(services, changed, context), loaded
    )
    stored = b",".join(part[0] for part in parts if part[0])
    available = b",".join(part[1] for part in parts if part[1])
    return b'{"object":"list","data":[%b],"available":[%b]}' % (stored, available)


def _variants(services: Services, models: Sequence[StoredModel], context: int | None) -> Iterable[Part]:
    """Of each model its variants, and what could be made of them."""
    ids = [variant.id for model in models for variant in model.variants]
    measured = services.catalog.measurements_of(ids)
    cards = services.laboratory.cards(ids)
    sources = [best_sources(model.variants) for model in models]
    plans = services.catalog.plans_of([source.digest for some in sources for source in some])
    for model, some in zip(models, sources, strict=True):
        stored = (
            variant_shape(
                services, variant, model.aliases[variant.id], measured[variant.id], cards.get(variant.id), context
            )
            for variant in model.variants
        )
        available = (
            available_shape(services, source, plan, context)
            for source in some
            for plan in missing_levels(source, model.variants, plans[source.digest])
        )
        yield tuple(b",".join(shape.model_dump_json().encode() for shape in shapes) for shapes in (stored, available))


def _loaded_of(model: StoredModel, loaded: frozenset[str]) -> frozenset[str]:
    return frozenset(variant.digest for variant in model.variants if variant.digest in loaded) if loaded else loaded
