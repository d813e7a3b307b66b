"""The database keeps its promises: one schema, one writer, full durability, clear errors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from service.domain.errors import Conflict, DiskFull
from service.store import database
from service.store.database import from_json, now, open_database, read, to_json, write
from service.store.tables import METADATA, blobs, job_events, jobs, variants

_JOB = {
    "id": "job_0123456789abcdef",
    "kind": "import",
    "status": "queued",
    "spec_key": "k",
    "spec": "{}",
    "progress": 0.0,
    "steps": "[]",
    "result": "[]",
    "attempts": 0,
    "cancel_requested": False,
    "created_at": "2026-01-01T00:00:00.000000Z",
}
_BLOB = {"digest": "sha256:" + "0" * 64, "size_bytes": 1, "corrupt": False, "created_at": ""}


def _schema(engine: Engine) -> dict[str, str]:
    """Every table and index but alembic's own: name -> SQL, without regard to the order of constraints."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    # SQLite puts the name of a table that was renamed in quotes.
    lines = {name: sorted(line.strip().rstrip(",").replace('"', "") for line in sql.splitlines()) for name, sql in rows}
    return {name: "\n".join(sql) for name, sql in lines.items() if name != "alembic_version"}


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(engine: Engine, tmp_path: Path) -> None:
    direct = create_engine(f"sqlite:///{tmp_path / 'direct.db'}")
    METADATA.create_all(direct)
    try:
        assert _schema(engine) == _schema(direct)
    finally:
        direct.dispose()


def test_opening_twice_changes_nothing(engine: Engine) -> None:
    before = _schema(engine)
    with write(engine) as connection:
        connection.execute(insert(blobs), _BLOB)
    again = open_database(str(engine.url))
    with read(again) as connection:
        assert connection.execute(select(blobs.c.digest)).scalars().all() == [_BLOB["digest"]]
    assert _schema(again) == before
    again.dispose()


def test_what_is_up_to_date_is_opened_without_a_migration(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(_connection: object) -> None:
        raise AssertionError("it was migrated")

    monkeypatch.setattr(database, "_upgrade", unwanted)
    open_database(str(engine.url)).dispose()
    scripts = Config()
    scripts.set_main_option("script_location", str(database.MIGRATIONS))
    assert ScriptDirectory.from_config(scripts).get_heads() == [database.NEWEST]


def test_a_database_of_a_newer_version_is_refused_with_the_remedy(engine: Engine) -> None:
    with write(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Conflict, match="newer quantry"):
        open_database(str(engine.url))


def test_every_connection_has_a_rollback_journal_full_sync_and_enforced_keys(engine: Engine) -> None:
    for _ in range(3):
        with read(engine) as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000


def test_a_block_that_raises_leaves_nothing(engine: Engine) -> None:
    def fail_half_way() -> None:
        with write(engine) as connection:
            connection.execute(insert(blobs), _BLOB)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with read(engine) as connection:
        assert connection.execute(select(blobs)).all() == []


def test_writers_take_turns_and_none_is_lost(engine: Engine) -> None:
    def add(worker: int) -> None:
        for i in range(10):
            with write(engine) as connection:
                connection.execute(insert(blobs), {**_BLOB, "digest": f"{worker}-{i}"})

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    with read(engine) as connection:
        assert len(connection.execute(select(blobs)).all()) == 40


def test_a_reader_keeps_its_view_and_does_not_wait_for_an_open_writer(engine: Engine) -> None:
    with write(engine) as writer:
        writer.execute(insert(blobs), _BLOB)
        with read(engine) as reader:
            assert reader.execute(select(blobs)).all() == []
    with read(engine) as reader:
        assert len(reader.execute(select(blobs)).all()) == 1


def test_a_full_disk_is_disk_full_and_the_database_works_again_afterwards(engine: Engine) -> None:
    def fill() -> None:
        with write(engine) as writer:
            # SQLite's own limit answers as the file system would.
            pages = writer.exec_driver_sql("PRAGMA page_count").scalar()
            writer.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            writer.execute(insert(blobs), [{**_BLOB, "digest": f"{i:0500}"} for i in range(100)])

    with pytest.raises(DiskFull):
        fill()
    with write(engine) as writer:
        writer.exec_driver_sql("PRAGMA max_page_count = 1000000")
        writer.execute(insert(blobs), _BLOB)


@pytest.mark.parametrize(
    "wrong", [{"kind": "dance"}, {"status": "lost"}, {"progress": 1.5}, {"progress": -0.1}, {"attempts": -1}]
)
def test_the_job_table_refuses_what_no_job_can_be(engine: Engine, wrong: dict[str, object]) -> None:
    with pytest.raises(IntegrityError), write(engine) as connection:
        connection.execute(insert(jobs), {**_JOB, **wrong})


def test_equal_work_is_active_once_and_may_be_done_again_later(engine: Engine) -> None:
    with write(engine) as connection:
        connection.execute(insert(jobs), _JOB)
    with pytest.raises(IntegrityError), write(engine) as connection:
        connection.execute(insert(jobs), {**_JOB, "id": "job_2", "status": "running"})
    with write(engine) as connection:
        connection.execute(jobs.update().values(status="succeeded"))
        connection.execute(insert(jobs), {**_JOB, "id": "job_2"})


def test_the_events_of_a_job_go_with_it(engine: Engine) -> None:
    with write(engine) as connection:
        connection.execute(insert(jobs), _JOB)
        event = {"job_id": _JOB["id"], "id": 1, "kind": "level", "job": "{}", "created_at": now()}
        connection.execute(insert(job_events), event)
        connection.execute(jobs.delete())
        assert connection.execute(select(job_events)).all() == []


def test_a_variant_cannot_stand_without_its_blob(engine: Engine) -> None:
    columns = {"model_id": 1, "flavour": "", "flavour_folded": "", "quantization": "F16", "digest": "none"}
    with pytest.raises(IntegrityError), write(engine) as connection:
        connection.execute(insert(variants), {**columns, "facts": "", "lineage": "", "created_at": ""})


def test_the_time_is_utc_with_microseconds_and_sorts_as_text() -> None:
    first, second = now(), now()
    assert len(first) == len("2026-01-31T09:30:00.000000Z")
    assert first.endswith("Z")
    assert first <= second


def test_a_value_survives_its_column() -> None:
    value = (("a", 1.5), ("b", 2.0))
    assert from_json(to_json(value), tuple[tuple[str, float], ...]) == value


def test_every_foreign_key_column_is_indexed(engine: Engine) -> None:
    inspector = inspect(engine)
    for table in METADATA.tables:
        indexed = [index["column_names"] for index in inspector.get_indexes(table)]
        indexed += [key["column_names"] for key in inspector.get_unique_constraints(table)]
        indexed.append(inspector.get_pk_constraint(table)["constrained_columns"])
        for key in inspector.get_foreign_keys(table):
            column = key["constrained_columns"][-1]
            assert any(column in columns for columns in indexed), (table, column)
