"""Datasets, importance matrices and measured cards: what the laboratory keeps in the database. Server process only.

Their bytes are blobs, named here by digest; a blob that a dataset or a matrix is made of stays. Every change is one
transaction. Knows no file and no process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select

from service.domain.datasets import Dataset, DatasetKind
from service.domain.errors import Conflict, DatasetNotFound, ImportanceMatrixNotFound, InvalidName, ModelNotFound
from service.domain.evaluation import Card
from service.domain.importance import ImportanceFacts, ImportanceMatrix
from service.domain.names import ModelKey, closest, parse_digest
from service.store.cards import merged
from service.store.changes import add_blob, needed_by_jobs
from service.store.database import from_json, now, read, to_json, write
from service.store.tables import blobs, datasets, evaluations, importance_matrices, models, variants

_DATASET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_CARDS_KEPT = 50  # evaluations of one variant
_FEW = 500  # ids in one query

_DATASET = (
    select(
        datasets.c.name,
        datasets.c.kind,
        datasets.c.digest,
        blobs.c.size_bytes,
        datasets.c.built_in,
        datasets.c.created_at,
    )
    .join(blobs, blobs.c.digest == datasets.c.digest)
    .order_by(datasets.c.folded)
)
_MATRIX = (
    select(
        importance_matrices.c.digest,
        blobs.c.size_bytes,
        importance_matrices.c.model,
        importance_matrices.c.source_digest,
        importance_matrices.c.dataset_digest,
        importance_matrices.c.facts,
        importance_matrices.c.created_at,
    )
    .join(blobs, blobs.c.digest == importance_matrices.c.digest)
    .order_by(importance_matrices.c.created_at, importance_matrices.c.digest)
)


class Laboratory:
    """What was brought and measured for the laboratory. Methods block on the database; any thread may call them.

    Beside their own errors they raise Busy, and DiskFull when a change finds no room.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- datasets ------------------------------------------------------------------------------------------------

    def add_dataset(
        self, name: str, kind: DatasetKind, digest: str, size_bytes: int, *, built_in: bool = False
    ) -> Dataset:
        """Enter a committed blob as the dataset `name`; it takes the place of another of that name.

        Its content has been checked (`store.datasets.check`). Raises InvalidName, and Conflict for the name of a
        built-in one.
        """
        if not _DATASET_NAME.fullmatch(name):
            raise InvalidName(
                "The name of a dataset is 1 to 80 letters, digits, _, . and -, and starts with none of the last two.",
                param="name",
            )
        folded = name.lower()
        with write(self._engine) as connection:
            known = _dataset(connection, folded)
            if known is not None and known.built_in and not built_in:
                raise Conflict(f"{known.name} comes with quantry; use another name for yours.", param="name")
            if known is not None and (known.name, known.kind, known.digest) == (name, kind, digest):
                return known
            add_blob(connection, parse_digest(digest), size_bytes)
            connection.execute(delete(datasets).where(datasets.c.folded == folded))
            row = {"folded": folded, "name": name, "kind": kind, "digest": digest, "built_in": built_in}
            connection.execute(insert(datasets).values(**row, created_at=now()))
            added = _dataset(connection, folded)
            assert added is not None
            return added

    def datasets(self) -> list[Dataset]:
        """Every dataset, by name."""
        with read(self._engine) as connection:
            return [_to_dataset(row) for row in connection.execute(_DATASET)]

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name, in any case. Raises DatasetNotFound with the closest names."""
        with read(self._engine) as connection:
            found = _dataset(connection, name.lower())
            if found is None:
                _no_dataset(connection, name)
            return found

    def delete_dataset(self, name: str) -> Dataset:
        """Remove the dataset; its blob goes with the next sweep. Raises DatasetNotFound, and Conflict for a
        built-in one."""
        with write(self._engine) as connection:
            found = _dataset(connection, name.lower())
            if found is None:
                _no_dataset(connection, name)
            if found.built_in:
                raise Conflict(f"{found.name} comes with quantry and stays.", param="name")
            connection.execute(delete(datasets).where(datasets.c.folded == name.lower()))
            return found

    # --- importance matrices -------------------------------------------------------------------------------------

    def add_importance_matrix(
        self,
        model: ModelKey,
        digest: str,
        size_bytes: int,
        facts: ImportanceFacts,
        *,
        made_from: str,
        source_digest: str | None = None,
        dataset_digest: str | None = None,
    ) -> ImportanceMatrix:
        """Enter a committed blob as an importance matrix; one with the same bytes stays as it is.

        `made_from` is a hash of everything that its values depend on (`find_importance_matrix`).
        """
        with write(self._engine) as connection:
            known = _matrix(connection, importance_matrices.c.digest == digest)
            if known is not None:
                return known
            add_blob(connection, parse_digest(digest), size_bytes)
            row = {
                "digest": digest,
                "model": model.display,
                "model_folded": model.folded,
                "source_digest": source_digest,
                "dataset_digest": dataset_digest,
                "made_from": made_from,
                "facts": to_json(facts),
                "created_at": now(),
            }
            connection.execute(insert(importance_matrices).values(**row))
            added = _matrix(connection, importance_matrices.c.digest == digest)
            assert added is not None
            return added

    def importance_matrices(self, model: ModelKey | None = None) -> list[ImportanceMatrix]:
        """All importance matrices, or those of one model, oldest first."""
        query = _MATRIX if model is None else _MATRIX.where(importance_matrices.c.model_folded == model.folded)
        with read(self._engine) as connection:
            return [_to_matrix(row) for row in connection.execute(query)]

    def importance_matrix(self, digest: str) -> ImportanceMatrix:
        """The importance matrix with that digest.

        Raises InvalidName for what is no digest, ImportanceMatrixNotFound.
        """
        parse_digest(digest)
        with read(self._engine) as connection:
            found = _matrix(connection, importance_matrices.c.digest == digest)
        if found is None:
            _no_matrix()
        return found

    def find_importance_matrix(self, made_from: str) -> ImportanceMatrix | None:
        """The stored matrix that was made from the same."""
        with read(self._engine) as connection:
            return _matrix(connection, importance_matrices.c.made_from == made_from)

    def delete_importance_matrix(self, digest: str) -> ImportanceMatrix:
        """Remove an importance matrix; its blob goes with the next sweep.

        Raises ImportanceMatrixNotFound, and Conflict while there is a variant made with it, which could not be rebuilt,
        or a job that is to make one.
        """
        parse_digest(digest)
        with write(self._engine) as connection:
            found = _matrix(connection, importance_matrices.c.digest == digest)
            if found is None:
                _no_matrix()
            users = select(models.c.model, variants.c.quantization).join(models, models.c.id == variants.c.model_id)
            used = connection.execute(users.where(variants.c.lineage.contains(f'"importance_matrix":"{digest}"'))).all()
            if used:
                named = ", ".join(f"{model}:{label}" for model, label in used[:5])
                raise Conflict(f"{named} was made with this importance matrix; delete that first.", param="digest")
            if digest in needed_by_jobs(connection):
                raise Conflict("A job needs this importance matrix; wait for its end, or cancel it.", param="digest")
            connection.execute(delete(importance_matrices).where(importance_matrices.c.digest == digest))
            return found

    # --- cards ---------------------------------------------------------------------------------------------------

    def add_card(self, variant_id: int, card: Card, *, job_id: str = "", conditions: str = "") -> Card:
        """Keep what one run measured on a variant; the card with its time. Raises ModelNotFound when it is gone.

        `conditions` is a hash of what was measured against what (`measured_under`).
        """
        created_at = now()
        stored = Card(
            machine=card.machine,
            llama_build=card.llama_build,
            seconds=card.seconds,
            text=card.text,
            speed=card.speed,
            tasks=card.tasks,
            created_at=created_at,
        )
        with write(self._engine) as connection:
            if connection.execute(select(variants.c.id).where(variants.c.id == variant_id)).first() is None:
                raise ModelNotFound("This variant has been deleted; list the variants for what is there.")
            row = {"variant_id": variant_id, "job_id": job_id, "conditions": conditions, "card": to_json(stored)}
            connection.execute(insert(evaluations).values(**row, created_at=created_at))
            mine = select(evaluations.c.id).where(evaluations.c.variant_id == variant_id)
            old = connection.scalars(mine.order_by(evaluations.c.id.desc()).offset(_CARDS_KEPT)).all()
            connection.execute(delete(evaluations).where(evaluations.c.id.in_(old)))
        return stored

    def cards(self, variant_ids: Iterable[int]) -> dict[int, Card]:
        """The newest figures of each variant, put together from all its runs; none for a variant never measured."""
        wanted = set(variant_ids)
        query = select(evaluations.c.variant_id, evaluations.c.card).order_by(evaluations.c.id.desc())
        if len(wanted) <= _FEW:
            query = query.where(evaluations.c.variant_id.in_(wanted))
        runs: dict[int, list[Card]] = {}
        with read(self._engine) as connection:
            for variant_id, card in connection.execute(query):
                if variant_id in wanted:
                    runs.setdefault(variant_id, []).append(from_json(card, Card))
        return {variant_id: merged(cards) for variant_id, cards in runs.items()}

    def evaluations(self, variant_id: int) -> list[Card]:
        """Every run on one variant, newest first."""
        query = select(evaluations.c.card).where(evaluations.c.variant_id == variant_id)
        with read(self._engine) as connection:
            return [from_json(card, Card) for card in connection.scalars(query.order_by(evaluations.c.id.desc()))]

    def card_under(self, variant_id: int, conditions: str) -> Card | None:
        """What the newest run under these conditions measured on the variant."""
        mine = (evaluations.c.variant_id == variant_id, evaluations.c.conditions == conditions)
        query = select(evaluations.c.card).where(*mine).order_by(evaluations.c.id.desc()).limit(1)
        with read(self._engine) as connection:
            card = connection.scalar(query)
        return None if card is None else from_json(card, Card)

    def measured_under(self, conditions: str) -> frozenset[int]:
        """The variants that have been measured under these conditions."""
        query = select(evaluations.c.variant_id).where(evaluations.c.conditions == conditions)
        with read(self._engine) as connection:
            return frozenset(connection.scalars(query))

    def measured_by(self, job_id: str) -> frozenset[int]:
        """The variants that this job has measured."""
        query = select(evaluations.c.variant_id).where(evaluations.c.job_id == job_id)
        with read(self._engine) as connection:
            return frozenset(connection.scalars(query))


def _dataset(connection: Connection, folded: str) -> Dataset | None:
    row = connection.execute(_DATASET.where(datasets.c.folded == folded)).one_or_none()
    return None if row is None else _to_dataset(row)


def _no_dataset(connection: Connection, name: str) -> NoReturn:
    names = list(connection.scalars(select(datasets.c.name).order_by(datasets.c.folded)))
    near = closest(name, names) or names[:5]
    remedy = f"there are {', '.join(near)}" if near else "put one first"
    raise DatasetNotFound(f"No dataset {name[:80]!r}; {remedy}.", param="dataset")


def _to_dataset(row: Sequence[Any]) -> Dataset:
    name, kind, digest, size_bytes, built_in, created_at = row
    return Dataset(name, DatasetKind(kind), digest, size_bytes, built_in, created_at)


def _matrix(connection: Connection, where: ColumnElement[bool]) -> ImportanceMatrix | None:
    row = connection.execute(_MATRIX.where(where).limit(1)).one_or_none()
    return None if row is None else _to_matrix(row)


def _no_matrix() -> NoReturn:
    raise ImportanceMatrixNotFound("No importance matrix with that digest; list them, or compute one.", param="digest")


def _to_matrix(row: Sequence[Any]) -> ImportanceMatrix:
    digest, size_bytes, model, source_digest, dataset_digest, facts, created_at = row
    decoded = from_json(facts, ImportanceFacts)
    return ImportanceMatrix(digest, size_bytes, model, source_digest, dataset_digest, decoded, created_at)
