"""A server that is killed takes its job children with it, and the next one finishes what it began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.domain.jobs import JobStatus
from service.domain.recipes import Recipe
from service.frames import encode
from service.jobs.messages import LaboratoryTask, LevelStep
from tests.server import has_gone, until

ROOT = Path(__file__).parents[3]
SERVER = """
import asyncio, sys
from pathlib import Path
import psutil
from service.domain.jobs import JobStatus, QuantizeSpec
from service.jobs.queue import JobQueue
from service.jobs.options import RunnerOptions
from service.jobs.runner import JobRunner
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import open_database
from service.store.derived import DerivedFiles
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.stores import Stores

async def main(folder):
    engine = open_database(f"sqlite:///{folder}/quantry.db")
    blobs = BlobStore(folder / "blobs", reserve_bytes=0)
    blobs.start()
    catalog = Catalog(engine)
    derived, partials = DerivedFiles(folder / "laboratory", 1 << 30), Partials(folder / "partial", 86400.0)
    partials.start()
    stores = Stores(catalog, blobs, Laboratory(engine), derived, partials)
    runner = JobRunner(JobQueue(engine, 10), stores, RunnerOptions())
    await runner.start()
    source = catalog.resolve("gloss:F16")
    job = await runner.submit_quantize(QuantizeSpec(source.name, source.digest, ("Q8_0", "IQ3_S", "IQ3_M")))
    async for event in runner.subscribe(job.id):
        if event.job.steps[1].status is JobStatus.RUNNING and event.job.steps[1].progress > 0.05:
            (child,) = psutil.Process().children()
            print(job.id, child.pid, flush=True)
            await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1])))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def interrupted(open_home) -> tuple[str, list[str]]:
    """A home whose server was killed in the middle of a level: (job id, files left half made)."""
    folder = open_home().folder
    argv = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        job_id, pid = server.stdout.readline().split()
        child = psutil.Process(int(pid))
        server.kill()
        server.wait()
        until(lambda: has_gone(child), 20)
    return job_id, os.listdir(folder / "blobs" / "incoming")


async def test_a_killed_server_leaves_no_child_and_the_next_start_finishes_the_job(interrupted, open_home):
    job_id, left = interrupted
    assert left, "it died with a file half made"
    home = open_home()
    assert home.incoming() == []
    assert home.queue.get(job_id).status is JobStatus.RUNNING
    before = home.queue.events_after(job_id)[-1].id
    await home.runner.start()
    events = [event async for event in home.runner.subscribe(job_id, before)]
    assert events[0].id == before + 1, "following resumes across the restart"
    job = events[-1].job
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 1)
    assert job.steps[0].detail == "already there"
    assert home.names() == ["gloss:F16", "gloss:IQ3_M", "gloss:IQ3_S", "gloss:Q8_0"]
    assert all(home.blobs.verify(blob.digest) for blob in home.catalog.blobs())
    await home.runner.stop()


@pytest.mark.parametrize("with_task", [True, False])
def test_a_child_leaves_when_its_input_ends(gloss, tmp_path, with_task):
    # This process lives on, so it is not the kernel's signal that ends the child.
    argv = [sys.executable, "-m", "service.jobs.steps"]
    level = LevelStep(str(tmp_path / "x"), Recipe("IQ3_S"), 10**7, None)
    task = LaboratoryTask(str(gloss), (level,) * 9, 1, 19)
    with subprocess.Popen(
        argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        if with_task:
            child.stdin.write(encode(task))
            child.stdin.flush()
            assert child.stdout.read(4)
        child.stdin.close()
        assert child.wait(30) in ((-9,) if with_task else (2,))
