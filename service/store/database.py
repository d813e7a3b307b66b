"""The database: tables, connections, pragmas, migrations. Server process only.

One writer at a time (`write`), short readers (`read`), on SQLite with a rollback journal: versions before 3.51.3
can corrupt a write-ahead log. Nothing here knows what the rows mean; SQL beyond the pragmas is portable to PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.pool import NullPool

from service.domain.errors import Busy, Conflict, DiskFull, InternalError
from service.domain.jobs import JobKind, JobStatus

BUSY_TIMEOUT_SECONDS = 10.0
WRITER_TIMEOUT_SECONDS = 30.0
MIGRATIONS = Path(__file__).parent / "migrations"

T = TypeVar("T")


class EventKind(StrEnum):
    """What a row of `job_events` reports."""

    STATUS = "status"
    PROGRESS = "progress"
    LEVEL = "level"


def _one_of(column: str, words: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- catalogue ---------------------------------------------------------------------------------------------------

models = Table(
    "models",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("folded", Text, nullable=False, unique=True),  # ModelKey.folded
    Column("host", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    sqlite_autoincrement=True,
)

blobs = Table(
    "blobs",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("corrupt", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    CheckConstraint("size_bytes >= 0", name="size_bytes"),
)

# An id is never given twice (AUTOINCREMENT): a worker that still holds a deleted variant can never pass for a new one.
variants = Table(
    "variants",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("model_id", Integer, ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
    Column("flavour", Text, nullable=False),
    Column("flavour_folded", Text, nullable=False),
    Column("quantization", Text, nullable=False),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="RESTRICT"), nullable=False, index=True),
    Column("facts", Text, nullable=False),  # FileFacts
    Column("lineage", Text, nullable=False),  # Lineage
    Column("created_at", Text, nullable=False),
    UniqueConstraint("model_id", "flavour_folded", "quantization"),
    UniqueConstraint("model_id", "id"),
    sqlite_autoincrement=True,
)

# The double key keeps a tag inside its own model.
tags = Table(
    "tags",
    METADATA,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("word_folded", Text, primary_key=True),
    Column("word", Text, nullable=False),
    Column("variant_id", Integer, nullable=False, index=True),
    Column("created_at", Text, nullable=False),
    ForeignKeyConstraint(["model_id", "variant_id"], ["variants.model_id", "variants.id"], ondelete="CASCADE"),
)

plans = Table(
    "plans",
    METADATA,
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("plan", Text, nullable=False),  # LevelPlan
)

measurements = Table(
    "measurements",
    METADATA,
    Column("variant_id", Integer, ForeignKey("variants.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Float, nullable=False),
    Column("unit", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

launch_rungs = Table(
    "launch_rungs",
    METADATA,
    Column("machine", Text, primary_key=True),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("rung", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
)

# --- jobs --------------------------------------------------------------------------------------------------------

# Statuses and their transitions: service.domain.jobs.JobStatus. `seq` orders jobs; wall clocks may jump.
jobs = Table(
    "jobs",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),  # "job_" and 16 hexadecimal digits
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("spec_key", Text, nullable=False),  # hash of kind and spec
    Column("spec", Text, nullable=False),  # ImportSpec or QuantizeSpec, told apart by `kind`
    Column("progress", Float, nullable=False),
    Column("steps", Text, nullable=False),  # list of Step
    Column("eta_seconds", Float),
    Column("result", Text, nullable=False),  # list of names
    Column("error_code", Text),
    Column("error_message", Text),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    CheckConstraint(_one_of("kind", JobKind), name="kind"),
    CheckConstraint(_one_of("status", JobStatus), name="status"),
    CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
    CheckConstraint("attempts >= 0", name="attempts"),
    Index("ix_jobs_status_seq", "status", "seq"),
    sqlite_autoincrement=True,
)

# Two active jobs never do the same work.
Index(
    "uq_jobs_active_spec_key",
    jobs.c.spec_key,
    unique=True,
    sqlite_where=text("status IN ('queued', 'running')"),
    postgresql_where=text("status IN ('queued', 'running')"),
)

job_events = Table(
    "job_events",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),  # counts within the job
    Column("kind", Text, nullable=False),
    Column("job", Text, nullable=False),  # Job, as it was
    Column("created_at", Text, nullable=False),
    CheckConstraint(_one_of("kind", EventKind), name="kind"),
)

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
def write(engine: Engine) -> Iterator[Connection]:
    """One write transaction: committed and on disk when the block ends, undone when it raises.

    One at a time in this process, and not nested. Raises DiskFull when the disk is, Busy when the writer before
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
    """How many writes of this process have ended, well or not; changed by the one that writes."""

    count = 0


_WRITER = threading.Lock()
_WRITES = _Writes()


def writes_so_far(engine: Engine) -> int | None:
    """A number that every write changes: what was read since it last changed still holds. Blocks on nothing.

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
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if engine.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise InternalError("The database holds rows that refer to nothing; restore it from a backup.")
    except CommandError as error:
        raise Conflict("A newer quantry has written this database; start that version, or use another home.") from error
    finally:
        engine.dispose()


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
