"""An import: a file, a folder or a set of uploads becomes one variant. Server process.

Names and sizes alone are looked at here, and the first eight bytes of a file, for the steps and their weights: what
the files are is the child's to find out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from service.domain.catalog import Lineage
from service.domain.errors import BlobNotFound, Conflict, InvalidParameter
from service.domain.jobs import Adoption, ImportSpec, Step
from service.domain.names import parse_ref
from service.jobs.assignments.adoption import AdoptedFile
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import ImportTask, Made, NamedPath, Outcome, Task
from service.store.stores import Stores

COPY, CONVERT, MERGE, CHECK, PLAN, LOAD = "copy", "convert", "merge", "check", "plan", "load"
HASH = "hash"  # a file that is adopted where it is
MAX_FILES = 4096  # of a folder or of a set of uploads
# What the steps of an import weigh against a byte copied and hashed: only the first and the load grow with the file.
_CHECK_WEIGHT_BYTES = 4 * 1024**2
_PLAN_WEIGHT_BYTES = 64 * 1024**2
_LOAD_SHARE = 8
_PIECE = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MODEL_FILES = (".safetensors", ".gguf")
_OLD_FORMATS = (b"GGUF\x01\x00\x00\x00", b"tjgg", b"fmgg", b"lmgg")


class ImportAssignment:
    """What is imported becomes one variant."""

    def __init__(self, spec: ImportSpec, bench: Bench) -> None:
        """Raises BlobNotFound when an upload is gone, DiskFull when there is no room for what is written."""
        self._spec = spec
        self._bench = bench
        blobs = bench.stores.blobs
        self._temp = bench.temp("import")
        self._name: str | None = None
        files = tuple(NamedPath(file.name, bench.blob(file.digest, file.name)) for file in spec.files)
        source = ""
        if spec.digest is not None:
            source = str(blobs.path(spec.digest))
            size_bytes = blobs.size(spec.digest)
        elif spec.path is not None:
            source = spec.path
            size_bytes = size_of(Path(source))
        else:
            size_bytes = sum(blobs.size(file.digest) for file in spec.files)
        first = _first_step(spec, source)
        self._adopted = AdoptedFile(spec, bench) if spec.adopt is not Adoption.COPY else None
        if self._adopted is not None:
            if first != COPY:
                raise InvalidParameter(
                    "Only a single current GGUF file is adopted as it is; import this as a copy.", param="adopt"
                )
            first = HASH
        elif first is not None:
            # F32 is twice as much as the usual checkpoint, in BF16.
            blobs.check_space(size_bytes * 2 if spec.convert_to == "F32" and first == CONVERT else size_bytes)
        self.task: Task | None = ImportTask(
            source,
            str(self._temp),
            spec.name,
            spec.digest,
            bench.niceness,
            files,
            spec.convert_to,
            spec.adopt,
            spec.within,
        )
        self.steps = tuple(Step(name) for name in ((first,) if first is not None else ()) + (CHECK, PLAN, LOAD))
        weights = (size_bytes, _CHECK_WEIGHT_BYTES, _PLAN_WEIGHT_BYTES, _CHECK_WEIGHT_BYTES + size_bytes // _LOAD_SHARE)
        self.weights = weights[-len(self.steps) :]

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> None:
        """Commit the file, if one was made, and enter the variant. Raises NameTaken, LabelMismatch."""
        assert isinstance(outcome, Made)
        file, catalog = outcome.file, self._bench.stores.catalog
        outside = None
        if self._adopted is not None:
            outside = self._adopted.take(self._temp, file)
        elif file.digest != self._spec.digest:
            self._bench.commit(self._temp, file.digest, file.size_bytes)
        elif not self._bench.stores.blobs.has(file.digest):
            raise BlobNotFound("The upload was deleted while it was imported; upload it again.", param="digest")
        lineage = Lineage(
            origin="imported",
            duration_seconds=round(file.duration_seconds, 3),
            lossy_source=outcome.lossy_source,
            job_id=self._bench.job_id if outcome.converted_from is not None else None,
            converted_from=outcome.converted_from,
        )
        self._name = catalog.add_variant(parse_ref(self._spec.name), file, lineage, outside=outside).name

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


def size_of(path: Path) -> int:
    """Bytes of the model files that a path means: one file, all pieces of a split, all that a folder holds.

    0 for what cannot be looked at: the child says what is wrong with it.
    """
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                files = [entry for _, entry in zip(range(MAX_FILES), entries, strict=False)]
            return sum(entry.stat().st_size for entry in files if entry.name.endswith(_MODEL_FILES) and entry.is_file())
        if (piece := _PIECE.fullmatch(path.name)) is not None:
            count = min(int(piece["count"]), MAX_FILES)
            names = (f"{piece['stem']}-{number:05}-of-{piece['count']}.gguf" for number in range(1, count + 1))
            return sum(other.stat().st_size for name in names if (other := path.with_name(name)).is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _first_step(spec: ImportSpec, source: str) -> str | None:
    """What is done before the check. None: an upload that is a current file lies in its place already."""
    if spec.files:
        return CONVERT if any(file.name.endswith(".safetensors") for file in spec.files) else MERGE
    path = Path(source)
    if path.is_dir():
        return CONVERT
    if _is_old(path):
        return CONVERT
    if spec.digest is not None:
        return None
    return MERGE if _PIECE.fullmatch(path.name) is not None else COPY


def _is_old(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, 8, 0).startswith(_OLD_FORMATS)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return False
