"""How a damaged blob can be mended: made again from its recipe, or fetched again from where it came. Server process.

Decides and starts nothing; blocks on the database.
"""

from __future__ import annotations

from service.domain.addresses import pinned_address
from service.domain.catalog import Variant
from service.domain.jobs import PullSpec, RebuildSpec, StoredFile
from service.store.stores import Stores

_FLOATS = frozenset({"F32", "F16", "BF16"})

Remedy = RebuildSpec | PullSpec | str
"""A job that mends the blob, or why there is none and what its owner can do instead."""


def remedy_for(digest: str, stores: Stores) -> Remedy:
    """What mends the blob; the first of its variants that knows how decides."""
    variants = [variant for variant in stores.catalog.variants() if variant.digest == digest]
    reasons = []
    for variant in variants:
        remedy = _remedy(variant, stores)
        if not isinstance(remedy, str):
            return remedy
        reasons.append(remedy)
    if reasons:
        return reasons[0]
    return "no model is made of it; send the same bytes again (PUT /v1/blobs/{digest})"


def _remedy(variant: Variant, stores: Stores) -> Remedy:
    lineage = variant.lineage
    if lineage.remote is not None:
        source = pinned_address(lineage.remote.address, lineage.remote.revision)
        convert_to = variant.quantization if lineage.converted_from and variant.quantization in _FLOATS else None
        return PullSpec(name=variant.name, source=source, convert_to=convert_to)
    if lineage.recipe is None or lineage.source_digest is None:
        return "it was imported and cannot be made here; import the same file again, or upload it (PUT /v1/blobs)"
    made_from = stores.catalog.blob(lineage.source_digest)
    if made_from is None:
        return f"its source {lineage.source_name} is no longer stored; import that again, then repair"
    if made_from.corrupt or not stores.blobs.has(lineage.source_digest):
        return f"its source {lineage.source_name} is damaged as well; mend that first, then repair"
    matrix = lineage.recipe.importance_matrix
    if matrix is not None and not stores.blobs.has(matrix):
        return "the importance matrix that it was made with is gone; bring that again, then repair"
    return RebuildSpec(StoredFile(variant.name, variant.digest))
