"""Rows of the catalogue as `Variant` values, and a memory of those already read. Server process only; decides nothing.

Decoding ten thousand rows takes 150 ms. So what was read of a model is kept for as long as its `revision` stands, which
the database counts (revisions.py); asking for those of a thousand models takes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from service.domain.catalog import FileFacts, Lineage, Variant
from service.domain.names import ModelKey
from service.store.naming import aliases_in
from service.store.tables import blobs, models, tags, variants

_FACTS = msgspec.json.Decoder(FileFacts)
_FEW = 500  # models in one query
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
_REVISIONS = select(models.c.id, models.c.folded, models.c.revision).order_by(models.c.folded)


def fetch(connection: Connection, *where: ColumnElement[bool]) -> list[Variant]:
    """The variants that match, by model and then oldest first, in one query."""
    return [_variant(list(rows)) for _, rows in groupby(connection.execute(_WHOLE.where(*where)), itemgetter(0))]


@dataclass(frozen=True)
class StoredModel:
    """The variants of a model, oldest first, as they were at this revision of it; None: nobody counts.

    Whatever else lists show of it (plans, presets, figures) was written at this revision or before.
    """

    id: int
    revision: int | None
    variants: tuple[Variant, ...]

    @cached_property
    def aliases(self) -> dict[int, list[str]]:
        """For each variant every name but the canonical one that resolves to it, shortest first."""
        return aliases_in(self.variants)


class Memory:
    """All models, with what was read before: the same object for as long as nothing of it was written.

    For readers alone: a writer sees a revision that may be undone, and then comes again. Any thread.
    """

    def __init__(self) -> None:
        self._known: dict[int, StoredModel] = {}

    def fetch_all(self, connection: Connection) -> list[StoredModel]:
        """Every model by name; `connection` must be a reader's."""
        rows = connection.execute(_REVISIONS).all()
        if connection.dialect.name != "sqlite":
            return _stored(connection, [(model_id, folded, None) for model_id, folded, _ in rows])
        known = self._known
        changed = [row for row in rows if (model := known.get(row.id)) is None or model.revision != row.revision]
        if changed:
            known = known | {model.id: model for model in _stored(connection, changed)}
        found = [known[row.id] for row in rows]
        self._known = {model.id: model for model in found}
        return found

    def fetch(self, connection: Connection, folded: str) -> StoredModel | None:
        """One model, by `ModelKey.folded`; as `fetch_all`, and nothing is kept of it."""
        row = connection.execute(_REVISIONS.where(models.c.folded == folded)).one_or_none()
        if row is None:
            return None
        model = self._known.get(row.id)
        if model is not None and connection.dialect.name == "sqlite" and model.revision == row.revision:
            return model
        revision = row.revision if connection.dialect.name == "sqlite" else None
        return _stored(connection, [(row.id, row.folded, revision)])[0]


def _stored(connection: Connection, wanted: Sequence[Any]) -> list[StoredModel]:
    """Models by (id, folded, revision), read now."""
    narrowed = (models.c.id.in_([row[0] for row in wanted]),) if len(wanted) <= _FEW else ()
    found = groupby(fetch(connection, *narrowed), lambda variant: variant.model.folded)
    variants_of = {folded: tuple(group) for folded, group in found}
    return [StoredModel(model_id, revision, variants_of.get(folded, ())) for model_id, folded, revision in wanted]


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
