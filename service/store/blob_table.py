"""The catalogue's blobs: which there are, what is made of them, whether their bytes match. Server process only.

Rows by digest; their files are `BlobStore`'s, and `care` brings the two together. Every change is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, select, update

from service.domain.catalog import Outside
from service.domain.errors import BlobNotFound, Conflict
from service.domain.names import parse_digest
from service.store import changes
from service.store.database import from_json, now, read, to_json, write
from service.store.tables import blobs

_BLOB = select(
    blobs.c.digest,
    blobs.c.size_bytes,
    blobs.c.corrupt,
    changes.IN_USE.label("in_use"),
    blobs.c.created_at,
    blobs.c.verified_at,
    blobs.c.outside,
).order_by(blobs.c.created_at, blobs.c.digest)
# Its bytes were hashed when it came in.
_HASHED_AT = func.coalesce(blobs.c.verified_at, blobs.c.created_at)
_FEW = 500  # digests in one statement


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A row of the blob table. `in_use`: a variant, an adapter, a dataset or an importance matrix is made of it.

    `verified_at`: when its bytes were last read and compared, None: not since they came. `outside`: the file that it
    is, where that was adopted in its place.
    """

    digest: str
    size_bytes: int
    corrupt: bool
    in_use: bool
    created_at: str
    verified_at: str | None = None
    outside: Outside | None = None


class BlobTable:
    """The part of the catalogue that knows blobs by digest. Methods block on the database; any thread may call them."""

    _engine: Engine

    def add_blob(self, digest: str, size_bytes: int) -> None:
        """Enter a committed upload. Does nothing when it is known."""
        with write(self._engine) as connection:
            changes.add_blob(connection, parse_digest(digest), size_bytes)

    def forget_blob(self, digest: str, *, spare_jobs: bool = False) -> bool:
        """Remove a blob's row, before its file goes. False when there is none.

        Raises Conflict while a variant, an adapter, a dataset or an importance matrix is made of it; with `spare_jobs`
        while a waiting or running job names it as well.
        """
        with write(self._engine) as connection:
            if spare_jobs and digest in changes.needed_by_jobs(connection):
                raise Conflict("A job needs this blob; wait for its end, or cancel it.", param="digest")
            if (
                connection.execute(select(blobs.c.digest).where(blobs.c.digest == digest, changes.IN_USE)).first()
                is not None
            ):
                raise Conflict(
                    "This blob is in use; delete the model, the adapter, the dataset or the importance matrix made of "
                    "it instead.",
                    param="digest",
                )
            return connection.execute(delete(blobs).where(blobs.c.digest == digest)).rowcount > 0

    def forget_unused(self, keep: frozenset[str], grace_seconds: float) -> list[str]:
        """Remove the rows of blobs that nothing is made of, `grace_seconds` after they came; their digests.

        Those in `keep` stay, and those that a job names which waits or runs by then.
        """
        before = seconds_ago(grace_seconds)
        with write(self._engine) as connection:
            keep |= changes.needed_by_jobs(connection)
            unused = connection.execute(select(blobs.c.digest).where(~changes.IN_USE, blobs.c.created_at <= before))
            gone = [digest for digest in unused.scalars() if digest not in keep]
            for start in range(0, len(gone), _FEW):
                connection.execute(delete(blobs).where(blobs.c.digest.in_(gone[start : start + _FEW])))
        return gone

    def blobs(self) -> list[StoredBlob]:
        """Every blob with a row, oldest first."""
        with read(self._engine) as connection:
            return [_stored(row) for row in connection.execute(_BLOB)]

    def blob(self, digest: str) -> StoredBlob | None:
        """The blob with that digest, if it has a row."""
        with read(self._engine) as connection:
            row = connection.execute(_BLOB.where(blobs.c.digest == digest)).one_or_none()
        return None if row is None else _stored(row)

    def blobs_among(self, digests: Collection[str]) -> list[StoredBlob]:
        """Those of these digests that have a row, oldest first."""
        listed = list(digests)
        with read(self._engine) as connection:
            return [
                _stored(row)
                for start in range(0, len(listed), _FEW)
                for row in connection.execute(_BLOB.where(blobs.c.digest.in_(listed[start : start + _FEW])))
            ]

    def blobs_to_verify(self, seconds: float, limit: int) -> list[StoredBlob]:
        """At most `limit` blobs whose bytes have not been read and compared for that long, the longest first."""
        due = _BLOB.where(seconds_ago(seconds) >= _HASHED_AT).order_by(None).order_by(_HASHED_AT, blobs.c.digest)
        with read(self._engine) as connection:
            return [_stored(row) for row in connection.execute(due.limit(limit))]

    def referenced_digests(self) -> frozenset[str]:
        """What the sweep must keep: every blob with a row."""
        with read(self._engine) as connection:
            return frozenset(connection.execute(select(blobs.c.digest)).scalars())

    def mark_corrupt(self, digest: str, corrupt: bool) -> None:
        """Note that a blob's bytes were found not to match, or to match again. Raises BlobNotFound."""
        with write(self._engine) as connection:
            found = {"corrupt": corrupt, "verified_at": now()}
            changed = connection.execute(update(blobs).where(blobs.c.digest == digest).values(**found))
            if changed.rowcount == 0:
                raise BlobNotFound(f"No blob {digest}; upload or import it again.")

    def mark_intact(self, digests: Collection[str]) -> None:
        """Note that the bytes of these blobs were found to match; those that are gone meanwhile are left out."""
        listed = list(digests)
        with write(self._engine) as connection:
            for start in range(0, len(listed), _FEW):
                some = blobs.c.digest.in_(listed[start : start + _FEW])
                connection.execute(update(blobs).where(some).values(corrupt=False, verified_at=now()))

    def set_outside(self, digest: str, file: Outside | None) -> None:
        """Note where the bytes of a blob lie, or that they lie in the store. Does nothing for one that is gone."""
        column = None if file is None else to_json(file)
        with write(self._engine) as connection:
            connection.execute(update(blobs).where(blobs.c.digest == digest).values(outside=column))

    def outside(self) -> dict[str, Outside]:
        """The blobs that are files elsewhere."""
        query = select(blobs.c.digest, blobs.c.outside).where(blobs.c.outside.is_not(None))
        with read(self._engine) as connection:
            return {digest: from_json(column, Outside) for digest, column in connection.execute(query)}


def seconds_ago(seconds: float) -> str:
    """That moment as the tables have it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _stored(row: Any) -> StoredBlob:
    outside = None if row.outside is None else from_json(row.outside, Outside)
    return StoredBlob(row.digest, row.size_bytes, row.corrupt, row.in_use, row.created_at, row.verified_at, outside)
