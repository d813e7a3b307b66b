"""An import: one file becomes one variant. Server process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from service.domain.catalog import Lineage
from service.domain.errors import BlobNotFound, Conflict
from service.domain.jobs import ImportSpec, Step
from service.domain.names import parse_ref
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import ImportTask, Made, Outcome, Task
from service.store.stores import Stores

COPY, CHECK, PLAN, LOAD = "copy", "check", "plan", "load"
# What the steps of an import weigh against a byte copied and hashed: only the copy and the load grow with the file.
_CHECK_WEIGHT_BYTES = 4 * 1024**2
_PLAN_WEIGHT_BYTES = 64 * 1024**2
_LOAD_SHARE = 8


class ImportAssignment:
    """One file becomes one variant."""

    def __init__(self, spec: ImportSpec, bench: Bench) -> None:
        """Raises BlobNotFound when the upload is gone, DiskFull when there is no room for the copy."""
        self._spec = spec
        self._bench = bench
        blobs = bench.stores.blobs
        self._temp = bench.temp("import")
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
        self.task: Task | None = ImportTask(source, str(self._temp), spec.name, spec.digest, bench.niceness)
        self.steps = _steps(spec)
        weights = (size_bytes, _CHECK_WEIGHT_BYTES, _PLAN_WEIGHT_BYTES, _CHECK_WEIGHT_BYTES + size_bytes // _LOAD_SHARE)
        self.weights = weights[-len(self.steps) :]

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> None:
        """Commit the copy, if one was made, and enter the variant. Raises NameTaken, LabelMismatch."""
        assert isinstance(outcome, Made)
        file, catalog = outcome.file, self._bench.stores.catalog
        if self._spec.digest is None:
            self._bench.commit(self._temp, file.digest, file.size_bytes)
        elif not self._bench.stores.blobs.has(file.digest):
            raise BlobNotFound("The upload was deleted while it was imported; upload it again.", param="digest")
        lineage = Lineage(origin="imported", duration_seconds=round(file.duration_seconds, 3))
        self._name = catalog.add_variant(parse_ref(self._spec.name), file, lineage).name

    def remarks(self) -> Sequence[Remark]:
        """None."""
        return ()

    def conclude(self) -> None:
        """It is done when its steps are."""

    def settle(self) -> None:
        """A variant that was entered stays."""

    def result(self) -> tuple[str, ...]:
        """The variant's name."""
        return () if self._name is None else (self._name,)


def discard_refused_upload(spec: ImportSpec, stores: Stores) -> None:
    """Forget an upload whose content is no model: row first, then the file. One that something is made of stays."""
    if spec.digest is None:
        return
    with suppress(Conflict):
        stores.catalog.forget_blob(spec.digest)
        stores.blobs.discard(spec.digest)


def _steps(spec: ImportSpec) -> tuple[Step, ...]:
    """An upload lies in its place already; a path is copied."""
    return tuple(Step(name) for name in ((CHECK, PLAN, LOAD) if spec.digest is not None else (COPY, CHECK, PLAN, LOAD)))
