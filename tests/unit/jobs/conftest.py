"""A job queue on a database of its own, made once: its rows are removed before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete

from service.jobs.queue import JobQueue
from service.store.database import open_database, write
from service.store.tables import job_events, jobs

MAX_QUEUED = 4


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("queue")
    opened = open_database(f"sqlite:///{folder}/quantry.db")
    yield opened
    opened.dispose()


@pytest.fixture
def queue(engine: Engine) -> JobQueue:
    with write(engine) as connection:
        connection.execute(delete(job_events))
        connection.execute(delete(jobs))
    return JobQueue(engine, max_queued=MAX_QUEUED)
