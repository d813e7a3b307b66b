"""LoRA adapters by the name that they have within their model. Server process only; knows no file.

Their bytes are blobs, named here by digest; a blob that an adapter is made of stays. They go with their model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, delete, insert, select

from service.domain.adapters import check_name
from service.domain.catalog import Adapter, AdapterFacts
from service.domain.errors import AdapterNotFound, ModelNotFound, NameTaken
from service.domain.names import ModelKey, parse_digest
from service.store.changes import add_blob
from service.store.database import from_json, now, read, to_json, write
from service.store.tables import adapters, blobs, models

_WHOLE = (
    select(
        models.c.host,
        models.c.namespace,
        models.c.model,
        adapters.c.name,
        adapters.c.digest,
        blobs.c.size_bytes,
        adapters.c.facts,
        adapters.c.created_at,
        blobs.c.corrupt,
    )
    .join(models, models.c.id == adapters.c.model_id)
    .join(blobs, blobs.c.digest == adapters.c.digest)
    .order_by(models.c.folded, adapters.c.created_at, adapters.c.name_folded)
)


class Adapters:
    """Adapters by model and name, in any case. Methods block on the database; any thread may call them.

    Beside their own errors they raise Busy, and DiskFull when a change finds no room.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, model: ModelKey, name: str, digest: str, size_bytes: int, facts: AdapterFacts) -> Adapter:
        """Enter a committed blob as an adapter of `model`; the same file under the same name is the one that is there.

        Raises InvalidName, ModelNotFound, and NameTaken when the name stands for another file.
        """
        check_name(name)
        with write(self._engine) as connection:
            model_id = connection.scalar(select(models.c.id).where(models.c.folded == model.folded))
            if model_id is None:
                raise ModelNotFound(
                    f"The model {model.display!r} has been deleted; an adapter goes with its model.", param="model"
                )
            known = _find(connection, model, name)
            if known is not None:
                if known.digest == digest:
                    return known
                raise NameTaken(
                    f"{known.name} is another adapter of {model.display}; delete it first, or use another name.",
                    param="name",
                )
            add_blob(connection, parse_digest(digest), size_bytes)
            row = {"model_id": model_id, "name": name, "name_folded": name.lower(), "digest": digest}
            connection.execute(insert(adapters).values(**row, facts=to_json(facts), created_at=now()))
            added = _find(connection, model, name)
            assert added is not None
            return added

    def all(self, model: ModelKey | None = None) -> list[Adapter]:
        """Every adapter by model, or those of one model; oldest first."""
        query = _WHOLE if model is None else _of(model)
        with read(self._engine) as connection:
            return [_adapter(row) for row in connection.execute(query)]

    def get(self, model: ModelKey, name: str) -> Adapter:
        """The adapter of that name. Raises AdapterNotFound with those that are there."""
        return self.find(model, [name])[name]

    def find(self, model: ModelKey, names: Iterable[str]) -> dict[str, Adapter]:
        """The adapters of these names, by the names as given. Raises AdapterNotFound with those that are there."""
        there = self.all(model)
        by_name = {adapter.name.lower(): adapter for adapter in there}
        found = {}
        for name in names:
            adapter = by_name.get(name.lower())
            if adapter is None:
                raise _not_found(model, name, there)
            found[name] = adapter
        return found

    def delete(self, model: ModelKey, name: str) -> Adapter:
        """Remove the adapter; its blob goes with the next sweep. Raises AdapterNotFound."""
        with write(self._engine) as connection:
            found = _find(connection, model, name)
            if found is None:
                raise _not_found(model, name, [_adapter(row) for row in connection.execute(_of(model))])
            mine = select(models.c.id).where(models.c.folded == model.folded).scalar_subquery()
            same = (adapters.c.model_id == mine, adapters.c.name_folded == name.lower())
            connection.execute(delete(adapters).where(*same))
        return found


def _of(model: ModelKey) -> Select[Any]:
    return _WHOLE.where(models.c.folded == model.folded)


def _not_found(model: ModelKey, name: str, there: Sequence[Adapter]) -> AdapterNotFound:
    listed = ", ".join(adapter.name for adapter in there[:20])
    remedy = f"it has {listed}" if there else "it has none; add one first (POST /v1/adapters)"
    return AdapterNotFound(f"{model.display} has no adapter {name[:80]!r}; {remedy}.", param="adapters")


def _find(connection: Connection, model: ModelKey, name: str) -> Adapter | None:
    query = _of(model).where(adapters.c.name_folded == name.lower())
    row = connection.execute(query).one_or_none()
    return None if row is None else _adapter(row)


def _adapter(row: Sequence[Any]) -> Adapter:
    host, namespace, model, name, digest, size_bytes, facts, created_at, corrupt = row
    decoded = from_json(facts, AdapterFacts)
    return Adapter(ModelKey(host, namespace, model), name, digest, size_bytes, decoded, created_at, corrupt)
