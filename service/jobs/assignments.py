"""What one job means to the store: the task for its child, and what happens to each file the child has made.

Server process; everything here blocks and is called from a thread. Files come in through the blob store's incoming
folder under names that start with the job's id, are committed as blobs, and then entered in the catalogue in one
transaction: a level that was reported is there for good, whatever becomes of the job.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from service.domain.catalog import Lineage, Variant
from service.domain.errors import BlobNotFound, Conflict, ModelNotFound
from service.domain.jobs import ImportSpec, Job, JobStatus, QuantizeSpec, Step
from service.domain.names import parse_ref
from service.jobs.admission import Level, admit, recipe_of
from service.jobs.messages import ImportTask, LevelTask, Made, QuantizeTask, Task
from service.store.blobs import BlobStore
from service.store.catalog import Catalog

COPY, CHECK, PLAN, LOAD = "copy", "check", "plan", "load"
# What the steps of an import weigh against a byte copied and hashed: only the copy and the load grow with the file.
_CHECK_WEIGHT_BYTES = 4 * 1024**2
_PLAN_WEIGHT_BYTES = 64 * 1024**2
_LOAD_SHARE = 8


class Assignment(Protocol):
    """One run of one job. `task` None: nothing is left to do."""

    task: Task | None
    steps: tuple[Step, ...]
    weights: tuple[int, ...]  # of the steps, in bytes

    def step_of(self, number: int) -> int:
        """The job's step for the child's step `number`."""

    def accept(self, made: Made) -> None:
        """Commit a file and enter it in the catalogue."""

    def result(self) -> tuple[str, ...]:
        """Canonical names of what has been made or found so far."""


class ImportAssignment:
    """One file becomes one variant."""

    def __init__(self, job_id: str, spec: ImportSpec, catalog: Catalog, blobs: BlobStore, niceness: int) -> None:
        """Raises BlobNotFound when the upload is gone, DiskFull when there is no room for the copy."""
        self._spec = spec
        self._catalog = catalog
        self._blobs = blobs
        self._temp = blobs.incoming / f"{job_id}-import"
        self._name: str | None = None
        if spec.digest is not None:
            size_bytes, source = blobs.size(spec.digest), str(blobs.path(spec.digest))
        else:
            assert spec.path is not None
            source = spec.path
            try:
                size_bytes = Path(source).stat().st_size
            except OSError:
                size_bytes = 0  # the child says what is wrong with it
            blobs.check_space(size_bytes)
        self.task: Task | None = ImportTask(source, str(self._temp), spec.name, spec.digest, niceness)
        self.steps = import_steps(spec)
        weights = (size_bytes, _CHECK_WEIGHT_BYTES, _PLAN_WEIGHT_BYTES, _CHECK_WEIGHT_BYTES + size_bytes // _LOAD_SHARE)
        self.weights = weights[-len(self.steps) :]

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, made: Made) -> None:
        """Commit the copy, if one was made, and enter the variant. Raises NameTaken, LabelMismatch."""
        digest = made.file.digest
        if self._spec.digest is None:
            _commit(self._blobs, self._catalog, self._temp, made)
        elif not self._blobs.has(digest):
            raise BlobNotFound("The upload was deleted while it was imported; upload it again.", param="digest")
        lineage = Lineage(origin="imported", duration_seconds=round(made.file.duration_seconds, 3))
        self._name = self._catalog.add_variant(parse_ref(self._spec.name), made.file, lineage).name

    def result(self) -> tuple[str, ...]:
        """The variant's name."""
        return () if self._name is None else (self._name,)


class QuantizeAssignment:
    """The levels of one source that are not there yet."""

    def __init__(
        self, job_id: str, spec: QuantizeSpec, catalog: Catalog, blobs: BlobStore, niceness: int, threads: int
    ) -> None:
        """Raises what `admit_quantize` raises: the store may have changed since the request."""
        self._spec = spec
        self._catalog = catalog
        self._blobs = blobs
        self._source, self._levels = admit_quantize(spec, catalog, blobs)
        self._names = [level.found.name if level.found else None for level in self._levels]
        self._todo = [index for index, level in enumerate(self._levels) if level.found is None]
        self._temps = {index: blobs.incoming / f"{job_id}-{self._levels[index].quantization}" for index in self._todo}
        levels = tuple(
            LevelTask(self._levels[index].quantization, str(self._temps[index]), self._levels[index].size_bytes)
            for index in self._todo
        )
        source = str(blobs.path(spec.source_digest))
        self.task: Task | None = None
        if levels:
            self.task = QuantizeTask(source, levels, spec.allow_requantize, spec.threads or threads, niceness)
        self.steps = quantize_steps(self._levels)
        self.weights = tuple(level.size_bytes for level in self._levels)

    def step_of(self, number: int) -> int:
        """The child counts only the levels it is to make."""
        return self._todo[number]

    def accept(self, made: Made) -> None:
        """Commit a level and enter it beside its source."""
        index = self._todo[made.step]
        quantization = self._levels[index].quantization
        recipe = recipe_of(quantization, self._source, allow_requantize=self._spec.allow_requantize)
        lineage = Lineage(
            origin="quantized",
            source_digest=self._source.digest,
            source_name=self._source.name,
            recipe=recipe,
            llama_build=made.llama_build,
            duration_seconds=round(made.file.duration_seconds, 3),
            lossy_source=self._source.lossy,
        )
        # Every tensor has the type that was planned, so the level is the one asked for, however its mix may read.
        file = replace(made.file, facts=replace(made.file.facts, quantization=quantization))
        _commit(self._blobs, self._catalog, self._temps[index], made)
        variant = self._catalog.add_variant((self._source.model, self._source.flavour), file, lineage)
        self._names[index] = variant.name
        with suppress(ModelNotFound):  # deleted at once
            self._catalog.add_measurement(variant.id, "quantize_seconds", file.duration_seconds, "seconds")

    def result(self) -> tuple[str, ...]:
        """One name per level, in the order asked for."""
        return tuple(name for name in self._names if name is not None)


def _commit(blobs: BlobStore, catalog: Catalog, temp: Path, made: Made) -> None:
    """Make the child's file a blob; it takes the place of a damaged one with the same digest."""
    known = catalog.blob(made.file.digest)
    corrupt = known is not None and known.corrupt
    blobs.commit(temp, made.file.digest, made.file.size_bytes, replace=corrupt)
    if corrupt:
        catalog.mark_corrupt(made.file.digest, False)


def prepare(job: Job, catalog: Catalog, blobs: BlobStore, niceness: int, threads: int) -> Assignment:
    """The assignment for a job that is about to run."""
    if isinstance(job.spec, ImportSpec):
        return ImportAssignment(job.id, job.spec, catalog, blobs, niceness)
    return QuantizeAssignment(job.id, job.spec, catalog, blobs, niceness, threads)


def discard_refused_upload(spec: ImportSpec, catalog: Catalog, blobs: BlobStore) -> None:
    """Forget an upload whose content is no model: row first, then the file. One that some variant is made of stays."""
    if spec.digest is None:
        return
    with suppress(Conflict):
        catalog.forget_blob(spec.digest)
        blobs.discard(spec.digest)


def admit_quantize(spec: QuantizeSpec, catalog: Catalog, blobs: BlobStore) -> tuple[Variant, tuple[Level, ...]]:
    """The source and the levels of a request, checked against the store as it is now.

    Raises ModelNotFound, Conflict when the name stands for another file by now, DiskFull, and what `admit` raises.
    """
    source = catalog.resolve(spec.source_name)
    if source.digest != spec.source_digest:
        raise Conflict(f"{source.name} is another file by now; ask again.", param="model")
    levels = admit(spec, source, catalog.plans(source.digest), catalog.variants(source.model.display))
    needed_bytes = sum(level.size_bytes for level in levels if level.found is None)
    if needed_bytes:
        blobs.check_space(needed_bytes)
    return source, levels


def import_steps(spec: ImportSpec) -> tuple[Step, ...]:
    """An upload lies in its place already; a path is copied."""
    return tuple(Step(name) for name in ((CHECK, PLAN, LOAD) if spec.digest is not None else (COPY, CHECK, PLAN, LOAD)))


def quantize_steps(levels: tuple[Level, ...]) -> tuple[Step, ...]:
    """One step per level; those found are done."""
    return tuple(
        Step(level.quantization)
        if level.found is None
        else Step(level.quantization, JobStatus.SUCCEEDED, 1.0, "already there")
        for level in levels
    )
