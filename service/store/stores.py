"""Everything that the store consists of, as one value to hand around. Server process only."""

from __future__ import annotations

from dataclasses import dataclass

from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.derived import DerivedFiles
from service.store.laboratory import Laboratory
from service.store.partials import Partials


@dataclass(frozen=True, slots=True)
class Stores:
    """One home's catalogue, blobs, laboratory, derived files and transfers under way."""

    catalog: Catalog
    blobs: BlobStore
    laboratory: Laboratory
    derived: DerivedFiles
    partials: Partials
