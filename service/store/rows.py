"""Rows of the catalogue as `Variant` values, and a memory of those already read. Server process only; decides nothing.

A variant's id is never given again and its row does not change but for its pin, so a value read once stays true but
for that, the blob's `corrupt` and the tags. Decoding ten thousand rows takes 150 ms, asking for those three 10 ms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from service.domain.catalog import FileFacts, Lineage, Variant
from service.domain.names import ModelKey
from service.store.tables import blobs, models, tags, variants

_FACTS = msgspec.json.Decoder(FileFacts)
_FEW = 500  # ids in one query
_LINEAGE = msgspec.json.Decoder(Lineage)

# One row for each tag of a variant, one for a variant without tags.
_WHOLE = (
    select(
        variants.c.id,
        models.c.host,
        models.c.namespace,
        models.c.model,
        variants.c.flavour,
        variants.c.quantization,
        variants.c.digest,
        blobs.c.size_bytes,
        variants.c.facts,
        variants.c.lineage,
        variants.c.created_at,
        blobs.c.corrupt,
        variants.c.pinned,
        tags.c.word,
    )
    .select_from(variants)
    .join(models, models.c.id == variants.c.model_id)
    .join(blobs, blobs.c.digest == variants.c.digest)
    .outerjoin(tags, tags.c.variant_id == variants.c.id)
    .order_by(models.c.folded, variants.c.id, tags.c.word_folded)
)
# Each is answered from an index alone.
_IDS = select(variants.c.id).join(models, models.c.id == variants.c.model_id).order_by(models.c.folded, variants.c.id)
_TAGS = select(tags.c.variant_id, tags.c.word).order_by(tags.c.variant_id, tags.c.word_folded)
_CORRUPT = select(variants.c.id).join(blobs, blobs.c.digest == variants.c.digest).where(blobs.c.corrupt)
_PINNED = select(variants.c.id).where(variants.c.pinned)


def fetch(connection: Connection, *where: ColumnElement[bool]) -> list[Variant]:
    """The variants that match, by model and then oldest first, in one query."""
    return [_variant(list(rows)) for _, rows in groupby(connection.execute(_WHOLE.where(*where)), itemgetter(0))]


class Memory:
    """All variants, for readers, with what was read before. Not for writers: the id of an undone insert comes again."""

    def __init__(self) -> None:
        self._known: dict[int, Variant] = {}

    def fetch_all(self, connection: Connection) -> list[Variant]:
        """As `rows.fetch` without conditions, in four small queries; `connection` must be a reader's."""
        ids = connection.execute(_IDS).scalars().all()
        corrupt = set(connection.execute(_CORRUPT).scalars())
        pinned = set(connection.execute(_PINNED).scalars())
        words: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)
        for variant_id, word in connection.execute(_TAGS).all():
            words[variant_id] += (word,)
        known = self._known
        missing = [variant_id for variant_id in ids if variant_id not in known]
        if missing:
            narrowed = (variants.c.id.in_(missing),) if len(missing) <= _FEW else ()
            known = known | {variant.id: variant for variant in fetch(connection, *narrowed)}
        found = []
        for variant_id in ids:
            variant = known[variant_id]
            is_corrupt, is_pinned, tagged = variant_id in corrupt, variant_id in pinned, words.get(variant_id, ())
            if variant.corrupt != is_corrupt or variant.pinned != is_pinned or variant.tags != tagged:
                variant = replace(variant, corrupt=is_corrupt, pinned=is_pinned, tags=tagged)
            found.append(variant)
        self._known = dict(zip(ids, found, strict=True))
        return found


def _variant(rows: Sequence[Any]) -> Variant:
    first = rows[0]
    return Variant(
        id=first.id,
        model=ModelKey(first.host, first.namespace, first.model),
        flavour=first.flavour,
        quantization=first.quantization,
        digest=first.digest,
        size_bytes=first.size_bytes,
        facts=_FACTS.decode(first.facts),
        lineage=_LINEAGE.decode(first.lineage),
        created_at=first.created_at,
        corrupt=first.corrupt,
        pinned=first.pinned,
        tags=tuple(row.word for row in rows if row.word is not None),
    )
