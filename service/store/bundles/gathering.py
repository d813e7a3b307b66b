"""What of the store goes into a bundle: a whole model, or what some of its variants need. Reads rows, and no file.

Importance matrices go with the model that they are of, and with every variant that was made with them: without them it
could not be made again. A preset goes with its name, and the adapters that it uses with the preset.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.domain.catalog import Adapter, Variant
from service.domain.errors import BlobCorrupt, ImportanceMatrixNotFound
from service.domain.importance import ImportanceMatrix
from service.domain.names import ModelRef
from service.domain.presets import Preset
from service.store.bundles.packing import Contents
from service.store.catalog import Catalog
from service.store.laboratory import Laboratory


def gather(
    catalog: Catalog, laboratory: Laboratory, model: ModelRef, variants: Sequence[Variant], *, whole: bool
) -> Contents:
    """What goes with these variants of a model; `whole`: and what it has beside them. Blocks on the database.

    Raises BlobCorrupt for what is known to be damaged.
    """
    ids = [variant.id for variant in variants]
    words = {word.lower() for variant in variants for word in (variant.tag, *variant.tags)}
    presets = {word: preset for word, preset in catalog.presets.of_model(model).items() if word in words}
    adapters = [
        adapter for adapter in catalog.adapters.all(model.key) if whole or adapter.name.lower() in _used(presets)
    ]
    matrices = {matrix.digest: matrix for matrix in laboratory.importance_matrices(model.key)} if whole else {}
    for variant in variants:
        matrix = _matrix_of(variant, laboratory)
        if matrix is not None:
            matrices[matrix.digest] = matrix
    found = Contents(
        variants,
        laboratory.cards(ids),
        catalog.measurements_of(ids),
        presets,
        adapters,
        list(matrices.values()),
    )
    _check_intact(found, catalog)
    return found


def _used(presets: dict[str, Preset]) -> frozenset[str]:
    return frozenset(use.name.lower() for preset in presets.values() for use in preset.adapters)


def _matrix_of(variant: Variant, laboratory: Laboratory) -> ImportanceMatrix | None:
    """The importance matrix that it was made with, while that is stored."""
    recipe = variant.lineage.recipe
    if recipe is None or recipe.importance_matrix is None:
        return None
    try:
        return laboratory.importance_matrix(recipe.importance_matrix)
    except ImportanceMatrixNotFound:
        return None


def _check_intact(found: Contents, catalog: Catalog) -> None:
    files: Sequence[tuple[str, Variant | Adapter | ImportanceMatrix]] = (
        *((variant.name, variant) for variant in found.variants),
        *((f"the adapter {adapter.name}", adapter) for adapter in found.adapters),
        *(("an importance matrix", matrix) for matrix in found.matrices),
    )
    damaged = {blob.digest for blob in catalog.blobs_among([file.digest for _, file in files]) if blob.corrupt}
    for name, file in files:
        if file.digest in damaged:
            raise BlobCorrupt(f"The bytes of {name} no longer match their digest; repair it, or leave it out.")
