"""A real store in a temporary folder, the real model, real children."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine

from service.domain.catalog import Variant
from service.domain.datasets import DatasetRef
from service.domain.jobs import ImportSpec, Job, JobStatus, QuantizeSpec
from service.domain.recipes import Recipe
from service.jobs.options import RunnerOptions
from service.jobs.queue import JobQueue
from service.jobs.runner import JobRunner
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import open_database
from service.store.datasets import enter_built_in
from service.store.derived import DerivedFiles
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.stores import Stores
from tests.server import children

ROOT = Path(__file__).parents[3]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"


@dataclass
class Home:
    """One store with its runner."""

    folder: Path
    engine: Engine
    blobs: BlobStore
    catalog: Catalog
    laboratory: Laboratory
    derived: DerivedFiles
    queue: JobQueue
    runner: JobRunner

    @classmethod
    def open(cls, folder: Path, **options: object) -> Home:
        engine = open_database(f"sqlite:///{folder}/quantry.db")
        blobs = BlobStore(folder / "blobs", reserve_bytes=0)
        blobs.start()
        catalog, queue = Catalog(engine), JobQueue(engine, max_queued=10)
        # In the background a busy machine would make these tests take minutes.
        laboratory = Laboratory(engine)
        derived = DerivedFiles(folder / "laboratory", 1 << 30)
        partials = Partials(folder / "partial", 86400.0)
        partials.start()
        stores = Stores(catalog, blobs, laboratory, derived, partials)
        runner = JobRunner(queue, stores, RunnerOptions(**{"niceness": 0, **options}))
        return cls(folder, engine, blobs, catalog, laboratory, derived, queue, runner)

    async def imported(self, path: Path = GLOSS, name: str = "gloss") -> Variant:
        job = await self.ended(await self.runner.submit_import(ImportSpec(name, path=str(path))))
        assert job.error is None
        return self.catalog.resolve(job.result[0])

    def levels(self, source: Variant, *levels: str, allow: bool = False, **options: object) -> QuantizeSpec:
        recipe = replace(options.pop("recipe", Recipe()), allow_requantize=allow)
        return QuantizeSpec(source.name, source.digest, levels, recipe=recipe, **options)

    def dataset(self, name: str) -> DatasetRef:
        """A built-in dataset; most tests need none, so that none is entered before."""
        enter_built_in(self.blobs, self.laboratory)
        return DatasetRef(name, self.laboratory.dataset(name).digest)

    async def ended(self, job: Job) -> Job:
        job = await self.runner.wait(job.id, 60)
        assert job.finished_at is not None
        return job

    async def under_way(self, job: Job, step: int) -> Job:
        """Wait until that step of the job has begun and is not yet done."""
        async for event in self.runner.subscribe(job.id):
            now = event.job.steps[step]
            if now.status is JobStatus.RUNNING and now.progress > 0.05:
                return event.job
        raise AssertionError("the job ended before that step was seen")

    def incoming(self) -> list[str]:
        return sorted(os.listdir(self.blobs.incoming))

    def names(self) -> list[str]:
        return sorted(variant.name for variant in self.catalog.variants())

    def close(self) -> None:
        self.engine.dispose()


def job_children(pid: int | None = None) -> list[psutil.Process]:
    """The job processes under a process."""
    return children(psutil.Process(pid), "service.jobs.steps")


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds gloss:F16, to be copied: an import takes most of a second."""
    folder = tmp_path_factory.mktemp("stocked")

    async def fill() -> None:
        home = Home.open(folder)
        await home.runner.start()
        await home.imported()
        await home.runner.stop()
        home.close()

    asyncio.run(fill())
    return folder


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home.open(tmp_path)
    await home.runner.start()
    yield home
    await home.runner.stop()
    home.close()
    assert not job_children()


@pytest.fixture
async def home(stocked: Path, tmp_path: Path) -> AsyncIterator[Home]:
    folder = tmp_path / "home"
    shutil.copytree(stocked, folder)
    home = Home.open(folder)
    await home.runner.start()
    yield home
    await home.runner.stop()
    home.close()
    assert not job_children()


@pytest.fixture
def source(home: Home) -> Variant:
    return home.catalog.resolve("gloss:F16")


@pytest.fixture
def open_home(tmp_path: Path, stocked: Path) -> Iterator[object]:
    """Open a home with options of one's own; the runner is not started."""
    opened: list[Home] = []

    def opens(*, copy: bool = True, **options: object) -> Home:
        folder = tmp_path / "home"
        if not folder.exists():
            shutil.copytree(stocked, folder) if copy else folder.mkdir()
        opened.append(Home.open(folder, **options))
        return opened[-1]

    yield opens
    for home in opened:
        home.close()


def script(text: str) -> tuple[str, ...]:
    """The argv of a child that runs `text`, then, at `GO`, the real steps."""
    go = "import runpy; runpy.run_module('service.jobs.steps', run_name='__main__', alter_sys=True)"
    return (sys.executable, "-c", text.replace("GO", go))


@pytest.fixture(name="script")
def _script() -> object:
    return script


@pytest.fixture(name="job_children")
def _job_children() -> object:
    return job_children


@pytest.fixture
def gloss() -> Path:
    return GLOSS
