"""A server killed in the middle of levels with a matrix and cards: the next one goes on, and the result is the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.domain.datasets import DatasetRef
from service.domain.jobs import CalibrateOptions, EvaluateOptions, Job, JobStatus, QuantizeSpec
from service.store.database import to_json

ROOT = Path(__file__).parents[3]
FEW = ("Q4_0", "Q2_K_S")
TEN = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "Q2_K_S", "TQ2_0")
# Works on the job asked for, or on what is queued, until its `step` is under way; then it kills itself, so that on a
# busy machine too nothing more is done.
SERVER = """
import asyncio, os, signal, sys
from pathlib import Path
from service.domain.jobs import JobStatus, QuantizeSpec
from service.jobs.queue import JobQueue
from service.jobs.options import RunnerOptions
from service.jobs.runner import JobRunner
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import from_json, open_database
from service.store.derived import DerivedFiles
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.stores import Stores

async def main(folder, spec, step):
    engine = open_database(f"sqlite:///{folder}/quantry.db")
    blobs = BlobStore(folder / "blobs", reserve_bytes=0)
    blobs.start()
    derived, partials = DerivedFiles(folder / "laboratory", 1 << 30), Partials(folder / "partial", 86400.0)
    partials.start()
    stores = Stores(Catalog(engine), blobs, Laboratory(engine), derived, partials)
    runner = JobRunner(JobQueue(engine, 10), stores, RunnerOptions(niceness=0))
    await runner.start()
    job = await runner.submit_quantize(from_json(spec, QuantizeSpec))
    async for event in runner.subscribe(job.id):
        if event.job.steps[step].status is not JobStatus.QUEUED:
            print(job.id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def specification(home, levels: tuple[str, ...], chunks: int) -> QuantizeSpec:
    source = home.catalog.resolve("gloss:F16")
    texts = {name: DatasetRef(name, home.dataset(name).digest) for name in ("calibration", "evaluation")}
    return QuantizeSpec(
        source.name,
        source.digest,
        levels,
        threads=1,
        calibrate=CalibrateOptions(texts["calibration"], window=128, chunks=chunks),
        evaluate=EvaluateOptions(texts["evaluation"], window=128, chunks=chunks, speed=False),
    )


def killed_at(folder: Path, spec: QuantizeSpec, step: int) -> str:
    """Let a server work on `spec` until that step of it is under way, and kill it; the job's id."""
    argv = [sys.executable, "-c", SERVER, str(folder), to_json(spec), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as server:
        job_id = next(line.strip() for line in server.stdout if line.startswith("job_"))  # log lines come as well
    assert server.returncode == -signal.SIGKILL
    return job_id


def outcome(home) -> tuple[object, ...]:
    """Everything that a job has left in the store, without times."""
    variants = home.catalog.variants()
    cards = home.laboratory.cards([variant.id for variant in variants])
    return (
        [(variant.name, variant.digest, variant.lineage.recipe) for variant in variants],
        [matrix.digest for matrix in home.laboratory.importance_matrices()],
        {variant.name: cards[variant.id].text for variant in variants},
    )


async def finished(home, job_id: str | None, spec: QuantizeSpec) -> tuple[Job, tuple[object, ...]]:
    """Let this home end the job, or do `spec` in one go; the job, and what it has left."""
    await home.runner.start()
    job = home.queue.get(job_id) if job_id else await home.runner.submit_quantize(spec)
    async for _ in home.runner.subscribe(job.id):
        pass
    job = home.queue.get(job.id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert job.result == tuple(f"gloss:{level}" for level in spec.levels)
    assert home.incoming() == []
    assert all(home.blobs.verify(blob.digest) for blob in home.catalog.blobs())
    runs = {len(home.laboratory.evaluations(variant.id)) for variant in home.catalog.variants()}
    assert runs == {1}, "nothing was measured twice"
    left = outcome(home)
    await home.runner.stop()
    home.close()
    return job, left


async def check(
    open_home, stocked: Path, tmp_path: Path, levels: tuple[str, ...], chunks: int, kills: list[int]
) -> None:
    home = open_home()
    spec = specification(home, levels, chunks)
    home.close()
    (job_id,) = {killed_at(home.folder, spec, step) for step in kills}
    job, interrupted = await finished(open_home(threads=1), job_id, spec)
    assert job.attempts == len(kills)
    assert {step.detail for step in job.steps[: kills[-1]]} == {"already there", "already measured"}
    shutil.copytree(stocked, tmp_path / "reference")
    reference = type(home).open(tmp_path / "reference", threads=1)
    _, in_one_go = await finished(reference, None, specification(reference, levels, chunks))
    assert interrupted == in_one_go


async def test_killed_twice_it_goes_on_and_leaves_what_one_go_would_have_left(open_home, stocked, tmp_path):
    await check(open_home, stocked, tmp_path, FEW, chunks=2, kills=[1, 4])


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_ten_levels_killed_three_times_leave_what_one_go_would_have_left(open_home, stocked, tmp_path):
    kills = sorted(random.Random(os.getpid()).sample(range(1, 2 + 2 * len(TEN)), 3))
    print("killed in steps", kills)
    await check(open_home, stocked, tmp_path, TEN, chunks=8, kills=kills)
