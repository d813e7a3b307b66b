"""A home of an older version: what it held is there after the upgrade."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, insert, select

from service.domain.jobs import JobKind, QuantizeSpec
from service.domain.recipes import Recipe
from service.jobs.queue import JobQueue
from service.store.database import MIGRATIONS, open_database, read
from service.store.tables import job_events, jobs

JOB = {
    "seq": 7,
    "kind": "quantize",
    "status": "queued",
    "spec_key": "k",
    "progress": 0.0,
    "steps": "[]",
    "result": "[]",
    "attempts": 0,
    "cancel_requested": False,
    "created_at": "2026-01-01T00:00:00.000000Z",
}
SPEC = '{"source_name":"gloss:F16","source_digest":"sha256:%s","levels":["Q4_0"],"allow_requantize":%s,"threads":null}'


def first_version(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for seq, allow in ((7, "true"), (8, "false")):
            row = {"seq": seq, "id": f"job_{seq}", "spec_key": f"k{seq}", "spec": SPEC % ("a" * 64, allow)}
            connection.execute(insert(jobs), {**JOB, **row})
        event = {"job_id": "job_7", "id": 1, "kind": "status", "job": "{}", "created_at": ""}
        connection.execute(insert(job_events), event)
    engine.dispose()


def test_waiting_jobs_and_their_events_survive_the_upgrade_with_their_permission(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    first_version(url)
    engine = open_database(url)
    queue = JobQueue(engine, 10)
    lossy, plain = queue.get("job_7"), queue.get("job_8")
    assert lossy.kind is JobKind.QUANTIZE
    assert lossy.spec == QuantizeSpec(
        "gloss:F16", "sha256:" + "a" * 64, ("Q4_0",), recipe=Recipe(allow_requantize=True)
    )
    assert plain.spec == QuantizeSpec("gloss:F16", "sha256:" + "a" * 64, ("Q4_0",))
    assert [job.id for job in queue.list()] == ["job_8", "job_7"]
    with read(engine) as connection:
        assert connection.execute(select(job_events.c.job_id)).scalars().all() == ["job_7"]
    engine.dispose()
