"""The database: connections, pragmas, migrations, values as columns. Server process only.

One writer at a time (`write`), short readers (`read`), on SQLite with a rollback journal: versions before 3.51.3
can corrupt a write-ahead log. Nothing here knows what the rows mean; SQL beyond the pragmas is portable to PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.pool import NullPool

from service.domain.errors import Busy, Conflict, DiskFull, InternalError
from service.store.revisions import COUNT_CHANGES

BUSY_TIMEOUT_SECONDS = 10.0
WRITER_TIMEOUT_SECONDS = 30.0
MIGRATIONS = Path(__file__).parent / "migrations"
NEWEST = "0005"  # the last of them

T = TypeVar("T")


# --- values <-> columns ------------------------------------------------------------------------------------------


def now() -> str:
    """The time of day as RFC 3339, UTC, microseconds: `2026-01-31T09:30:00.000000Z`. Sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_json(value: object) -> str:
    """A frozen value of `service.domain` as the text of one column."""
    return msgspec.json.encode(value).decode()


def from_json(column: str, kind: type[T]) -> T:
    """The value that `to_json` wrote."""
    return msgspec.json.decode(column, type=kind)


# --- connections -------------------------------------------------------------------------------------------------


def open_database(url: str) -> Engine:
    """Open the database at `url` (`sqlite:////path/to/file` or another SQLAlchemy URL) and bring its schema up to date.

    The folder of an SQLite file must exist. Raises Conflict when a newer quantry wrote the schema, DiskFull when
    there is no room for it.
    """
    _migrate(url)
    return _connect(url)


@contextmanager
def write(engine: Engine, *, of_catalogue: bool = True) -> Iterator[Connection]:
    """One write transaction: committed and on disk when the block ends, undone when it raises.

    One that leaves the catalogue alone says so (`of_catalogue`): what was read of it then still holds. One at a time
    in this process, and not nested. Raises DiskFull when the disk is, Busy when the writer before
    does not end within `WRITER_TIMEOUT_SECONDS`.
    """
    if not _WRITER.acquire(timeout=WRITER_TIMEOUT_SECONDS):
        raise Busy("The database is busy with another change; try again shortly.", retry_after_seconds=5)
    try:
        with _database_errors(), engine.connect() as connection:
            connection.execution_options(quantry_writes=True)
            with connection.begin():
                yield connection
    finally:
        if of_catalogue:
            _WRITES.count += 1
        _WRITER.release()


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """One consistent view of the database. Keep it short: a commit waits for the readers before it."""
    with _database_errors(), engine.connect() as connection:
        if engine.dialect.name != "sqlite":  # which knows nothing weaker than one view for a whole transaction
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


class _Writes:
    """How many writes of the catalogue have ended, well or not; changed by the one that writes."""

    count = 0


_WRITER = threading.Lock()
_WRITES = _Writes()


def writes_so_far(engine: Engine) -> int | None:
    """A number that every write of the catalogue changes: what was read since then still holds. Blocks on nothing.

    None where other processes write too.
    """
    return _WRITES.count if engine.dialect.name == "sqlite" else None


def _connect(url: str, *, migrating: bool = False) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    pool: dict[str, Any] = {"poolclass": NullPool}
    if not migrating:
        pool = {"pool_size": 8, "max_overflow": 8, "pool_timeout": 10.0}
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, **pool)

    @event.listens_for(engine, "connect")
    def set_pragmas(raw: Any, _record: Any) -> None:
        # The driver must not begin transactions of its own: it would begin them late and commit around DDL.
        raw.isolation_level = None
        cursor = raw.cursor()
        cursor.execute("PRAGMA journal_mode = DELETE")
        cursor.execute("PRAGMA synchronous = FULL")
        # A migration that rebuilds a table drops the old one; enforced keys would cascade into its children.
        cursor.execute(f"PRAGMA foreign_keys = {'OFF' if migrating else 'ON'}")
        if not migrating:
            cursor.execute("PRAGMA temp_store = MEMORY")
            cursor.executescript(COUNT_CHANGES)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at once: two readers that both want to become writers would deadlock.
        writes = connection.get_execution_options().get("quantry_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _migrate(url: str) -> None:
    engine = _connect(url, migrating=True)
    try:
        with write(engine) as connection:
            if _version(connection) != NEWEST:
                _upgrade(connection)
            if engine.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise InternalError("The database holds rows that refer to nothing; restore it from a backup.")
    finally:
        engine.dispose()


def _version(connection: Connection) -> str | None:
    """The migration that the schema stands at; None before the first."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found


def _upgrade(connection: Connection) -> None:
    # Only here: most starts find nothing to change, and need not wait for these imports.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Conflict("A newer quantry has written this database; start that version, or use another home.") from error


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except NoConnection as error:
        raise Busy("The database is busy; try again shortly.", retry_after_seconds=5) from error
    except DBAPIError as error:
        name = getattr(error.orig, "sqlite_errorname", "") or getattr(error.orig, "sqlstate", "") or ""
        if name in ("SQLITE_FULL", "53100"):
            raise DiskFull("The disk is full; free some space and try again. Nothing was changed.") from error
        if name.startswith("SQLITE_BUSY"):
            raise Busy("The database is busy; try again shortly.", retry_after_seconds=5) from error
        raise
