"""A store with a source in it, and what a child would leave there: for assignments without a child."""

from __future__ import annotations

import hashlib
from pathlib import Path

from service.domain.catalog import FileFacts, LevelPlan, Lineage, ModelShape, Variant
from service.domain.datasets import DatasetRef
from service.domain.jobs import CalibrateOptions, EvaluateOptions, MadeFile, QuantizeSpec
from service.domain.names import parse_ref
from service.jobs.assignments.bench import Bench
from service.jobs.messages import LevelStep, Made
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.datasets import enter_built_in
from service.store.derived import DerivedFiles
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.stores import Stores
from tests.databases import new_database

PLANS = (
    LevelPlan("Q8_0", 30, 8.5, needs_imatrix=False),
    LevelPlan("Q6_K", 25, 6.5, needs_imatrix=False),
    LevelPlan("Q4_0", 20, 4.5, needs_imatrix=False),
)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Home:
    """A store with a source in it."""

    def __init__(self, folder: Path) -> None:
        self.engine = new_database(folder / "quantry.db")
        blobs = BlobStore(folder / "blobs", reserve_bytes=0)
        blobs.start()
        derived = DerivedFiles(folder / "laboratory", 1 << 30)
        derived.start()
        partials = Partials(folder / "partial", 86400.0)
        partials.start()
        self.stores = Stores(Catalog(self.engine), blobs, Laboratory(self.engine), derived, partials)
        enter_built_in(blobs, self.stores.laboratory)
        self.source = self.add(b"the source in full precision", "F16", Lineage("imported"), PLANS)

    def add(self, content: bytes, quantization: str, lineage: Lineage, plans=(), flavour: str = "") -> Variant:
        file = self.write("add", content, quantization, plans)
        self.stores.blobs.commit(Path(file.path), file.digest, file.size_bytes)
        return self.stores.catalog.add_variant((parse_ref("gloss").key, flavour), file, lineage)

    def put(self, content: bytes) -> str:
        """A blob that nothing is made of yet."""
        file = self.write("put", content)
        self.stores.blobs.commit(Path(file.path), file.digest, file.size_bytes)
        return file.digest

    def write(self, temp: str, content: bytes, quantization: str = "F16", plans=()) -> MadeFile:
        """As a child leaves a file."""
        path = self.stores.blobs.incoming / temp
        path.write_bytes(content)
        shape = ModelShape("llama", vocabulary=100)
        facts = FileFacts(quantization, 1000, 8.0, 10, shape, quantized_tensors=quantization != "F16")
        return MadeFile(str(path), digest_of(content), len(content), facts, plans, 1.5)

    def dataset(self, name: str) -> DatasetRef:
        return DatasetRef(name, self.stores.laboratory.dataset(name).digest)

    def bench(self, job_id: str = "job_1", done: tuple[str, ...] = (), **more: object) -> Bench:
        return Bench(self.stores, job_id=job_id, done=done, threads=2, **more)

    def levels(self, *levels: str, **options: object) -> QuantizeSpec:
        return QuantizeSpec(self.source.name, self.source.digest, levels, **options)

    @property
    def calibrate(self) -> CalibrateOptions:
        return CalibrateOptions(self.dataset("calibration"))

    @property
    def evaluate(self) -> EvaluateOptions:
        return EvaluateOptions(self.dataset("evaluation"), tasks=(self.dataset("words"),))


def made(home: Home, assignment, step: int, content: bytes, **found: object) -> None:
    """Let a level or a mix of an assignment land."""
    task = assignment.task.steps[step]
    target = task.target if isinstance(task, LevelStep) else task.made
    file = home.write(Path(target).name, content, task.recipe.quantization or "Q4_K_M")
    assignment.accept(Made(step, file, "llama.cpp 1", **found))


def names(assignment) -> list[str]:
    return [step.name for step in assignment.steps]
