"""What may go from a store to make room, and why; then its going. Server process only.

`plan` only looks, and `carry_out` removes what a plan names, as far as it may still go. A variant goes only where it is
asked for by age or level, and only one that can be made again here: by its recipe, of a source that stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from service.domain.catalog import Variant
from service.domain.errors import Conflict, ModelNotFound, Pinned
from service.store.blob_table import StoredBlob, seconds_ago
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.partials import Partials

_SETTLED_SECONDS = 60.0  # a file that came or was asked for in the last minute is left to the sweep


class Storage(Protocol):
    """What is pruned."""

    @property
    def catalog(self) -> Catalog:
        """The rows."""

    @property
    def blobs(self) -> BlobStore:
        """The files."""

    @property
    def partials(self) -> Partials:
        """The transfers."""


class Kind(StrEnum):
    """What may go."""

    BLOB = "blob"  # nothing is made of it
    TRANSFER = "transfer"  # an upload or a download that nobody goes on with
    QUARANTINED = "quarantined"  # the damaged file of a blob
    VARIANT = "variant"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked for. Blobs, transfers and quarantined files go from `age_seconds` on.

    Variants that no worker has held for `unused_seconds`, and of the `levels` and `models` given; none of these given:
    no variant goes.
    """

    age_seconds: float
    unused_seconds: float | None = None
    levels: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()  # folded keys

    @property
    def takes_variants(self) -> bool:
        """Whether variants go at all."""
        return self.unused_seconds is not None or bool(self.levels)


@dataclass(frozen=True, slots=True)
class Uses:
    """What the rest of the server needs: digests of waiting and running jobs, digests in memory, and wishes.

    `wished` holds the levels that the owners of models want to have, by folded model.
    """

    by_jobs: frozenset[str] = frozenset()
    in_memory: frozenset[str] = frozenset()
    wished: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leaving:
    """One thing that may go. `size_bytes` is what the disk gets back; `path` is a transfer's folder."""

    kind: Kind
    name: str
    size_bytes: int
    reason: str
    digest: str | None = None
    variant: Variant | None = None
    path: Path | None = None


def plan(stores: Storage, rules: Rules, uses: Uses) -> list[Leaving]:
    """What would go now, largest first within its kind. Blocks on disk and database."""
    known = {blob.digest: blob for blob in stores.catalog.blobs()}
    found = [
        *_unreferenced(stores, known, rules, uses),
        *_transfers(stores, rules),
        *_quarantined(stores, known, rules),
        *_variants(stores, known, rules, uses),
    ]
    order = list(Kind)
    return sorted(found, key=lambda one: (order.index(one.kind), -one.size_bytes, one.name))


def carry_out(stores: Storage, leaving: Sequence[Leaving], rules: Rules) -> list[Leaving]:
    """Remove what the plan names, rows before files; what may no longer go stays. What has gone."""
    return [one for one in leaving if _remove(stores, one, rules)]


def reason_to_stay(
    variant: Variant, sources: Collection[str], known: Mapping[str, StoredBlob], uses: Uses
) -> str | None:
    """Why a variant that nobody uses stays all the same; None: it can be made again, and nothing needs it. Pure.

    `sources` are the digests that stored variants were made from.
    """
    if variant.pinned:
        return "pinned"
    if variant.tags:
        return "a tag points to it"
    if variant.digest in uses.in_memory:
        return "in memory"
    if variant.digest in uses.by_jobs:
        return "a job needs it"
    wished = uses.wished.get(variant.model.folded)
    if wished and (variant.quantization in wished or not variant.facts.quantized_tensors):
        return "its owner wants to have it, or what is made of it"
    if variant.digest in sources:
        return "others were made from it"
    recipe, source_digest = variant.lineage.recipe, variant.lineage.source_digest
    if recipe is None or source_digest is None:
        return "it was not made here"
    needed = [source_digest, *([recipe.importance_matrix] if recipe.importance_matrix else [])]
    for digest in needed:
        blob = known.get(digest)
        if blob is None or blob.corrupt or not blob.in_use:
            return "what it was made from is no longer stored"
    return None


def _unreferenced(stores: Storage, known: Mapping[str, StoredBlob], rules: Rules, uses: Uses) -> Iterable[Leaving]:
    before = seconds_ago(rules.age_seconds)
    for digest, status in stores.blobs.stored().items():
        blob = known.get(digest)
        if digest in uses.by_jobs or (blob is not None and (blob.in_use or blob.created_at > before)):
            continue
        if not stores.blobs.is_idle(digest, rules.age_seconds):
            continue
        yield Leaving(Kind.BLOB, digest, status.st_size, "nothing is made of it", digest=digest)


def _transfers(stores: Storage, rules: Rules) -> Iterable[Leaving]:
    for path, size_bytes in stores.partials.idle(rules.age_seconds).items():
        yield Leaving(Kind.TRANSFER, path.name, size_bytes, "nobody goes on with it", path=path)


def _quarantined(stores: Storage, known: Mapping[str, StoredBlob], rules: Rules) -> Iterable[Leaving]:
    before = seconds_ago(rules.age_seconds)
    for digest, status in stores.blobs.quarantined().items():
        blob = known.get(digest)
        if blob is None or (blob.verified_at or blob.created_at) <= before:
            yield Leaving(Kind.QUARANTINED, digest, status.st_size, "its bytes are damaged", digest=digest)


def _variants(stores: Storage, known: Mapping[str, StoredBlob], rules: Rules, uses: Uses) -> Iterable[Leaving]:
    if not rules.takes_variants:
        return
    everything = stores.catalog.variants()
    last_used = stores.catalog.last_used() if rules.unused_seconds is not None else {}
    before = None if rules.unused_seconds is None else seconds_ago(rules.unused_seconds)
    sources = {variant.lineage.source_digest for variant in everything if variant.lineage.source_digest is not None}
    going = [
        variant
        for variant in everything
        if (not rules.models or variant.model.folded in rules.models)
        and (not rules.levels or variant.quantization in rules.levels)
        and (before is None or last_used.get(variant.id, variant.created_at) <= before)
        and reason_to_stay(variant, sources, known, uses) is None
    ]
    inside = stores.blobs.stored()
    names_left = Counter(variant.digest for variant in everything)
    for variant in going:
        reason = f"can be made again of {variant.lineage.source_name}"
        if before is not None:
            used_at = last_used.get(variant.id)
            reason += f"; last used {used_at[:10]}" if used_at else f"; never used since {variant.created_at[:10]}"
        names_left[variant.digest] -= 1
        # The last of several names takes the file with it.
        takes_file = names_left[variant.digest] == 0 and variant.digest in inside
        size_bytes = inside[variant.digest].st_size if takes_file else 0
        yield Leaving(Kind.VARIANT, variant.name, size_bytes, reason, digest=variant.digest, variant=variant)


def _remove(stores: Storage, one: Leaving, rules: Rules) -> bool:
    match one.kind:
        case Kind.TRANSFER:
            assert one.path is not None
            return stores.partials.discard_idle(one.path, rules.age_seconds)
        case Kind.QUARANTINED:
            assert one.digest is not None
            return stores.blobs.drop_quarantined(one.digest)
        case Kind.BLOB:
            assert one.digest is not None
            with suppress(Conflict):  # something was made of it meanwhile, or a job is to
                stores.catalog.forget_blob(one.digest, spare_jobs=True)
                return stores.blobs.remove_unused(one.digest, rules.age_seconds)
            return False
        case Kind.VARIANT:
            assert one.variant is not None
            with suppress(ModelNotFound, Pinned):  # someone else was faster
                stores.catalog.delete_variant(one.variant)
                if stores.catalog.blob(one.variant.digest) is None:
                    stores.blobs.remove_unused(one.variant.digest, _SETTLED_SECONDS)
                    stores.blobs.drop_quarantined(one.variant.digest)
                return True
            return False
