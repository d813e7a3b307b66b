"""A LoRA adapter taken in for one model. Server process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.domain.adapters import check_name
from service.domain.addresses import parse_address
from service.domain.catalog import Variant
from service.domain.errors import BlobCorrupt, BlobNotFound, InvalidParameter
from service.domain.jobs import AdapterSpec, Step
from service.domain.reach import admit, origin_of
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import AdapterMade, AdapterTask, NamedPath, Outcome, Task
from service.jobs.server_paths import ADAPTER_PATHS, check_readable

FETCH, COPY, CONVERT, CHECK, LOAD = "fetch", "copy", "convert", "check", "load"
# The base is loaded and computes a few tokens; that is most of the work of small adapters.
_LOAD_SHARE = 8
_LEAST_WEIGHT_BYTES = 4 * 1024**2
_FETCHING_NICENESS = 5


class AdapterAssignment:
    """One adapter, checked and tried beside its base."""

    def __init__(self, spec: AdapterSpec, bench: Bench) -> None:
        """Raises ModelNotFound, Conflict for a base that has changed, BlobCorrupt, BlobNotFound, DiskFull.

        And InvalidParameter for a path that cannot be read and what is no address, Forbidden for one that may not be
        reached.
        """
        base = bench.variant(spec.base.name, spec.base.digest)
        if base.corrupt:
            raise BlobCorrupt(f"The bytes of {base.name} no longer match their digest; mend it first.", param="model")
        self._spec = spec
        self._bench = bench
        self._model = base.model
        self._temp = bench.temp("adapter")
        self._name: str | None = None
        if spec.source is not None:
            self._prepare_fetch(spec.source, base, bench)
            return
        files = tuple(NamedPath(file.name, bench.blob(file.digest, f"{file.name[:80]!r}")) for file in spec.files)
        if spec.path is not None:
            check_readable(Path(spec.path), ADAPTER_PATHS)
        source = spec.path or ("" if spec.digest is None else bench.blob(spec.digest, "the adapter"))
        paths = [Path(file.path) for file in files] if files else _files_at(Path(source))
        size_bytes = sum(_size(path) for path in paths)
        if spec.digest is None:
            # What is converted is written in F32, and may have been in 16 bits.
            bench.stores.blobs.check_space(size_bytes if paths == [Path(source)] else 2 * size_bytes)
        self.task: Task | None = AdapterTask(
            source=source,
            target=str(self._temp),
            base=bench.blob(base.digest, base.name),
            name=spec.name,
            digest=spec.digest,
            niceness=bench.niceness,
            files=files,
            within=spec.within,
        )
        first = () if spec.digest is not None else (COPY,) if paths == [Path(source)] else (CONVERT,)
        self.steps = tuple(Step(name) for name in (*first, CHECK, LOAD))
        work = max(size_bytes, _LEAST_WEIGHT_BYTES)
        self.weights = (work, work, _LEAST_WEIGHT_BYTES + base.size_bytes // _LOAD_SHARE)[-len(self.steps) :]

    def _prepare_fetch(self, source: str, base: Variant, bench: Bench) -> None:
        blobs = bench.stores.blobs
        admit(origin_of(parse_address(source), bench.access), bench.access.hosts)
        blobs.check_space(0)
        self.task = None
        if bench.job_id != "new":  # it is to run, and not only to be queued
            self.task = AdapterTask(
                source=source,
                target=str(self._temp),
                base=bench.blob(base.digest, base.name),
                name=self._spec.name,
                digest=None,
                niceness=min(bench.niceness, _FETCHING_NICENESS),
                access=bench.access,
                transfers=str(bench.stores.partials.root),
                room_bytes=max(1, blobs.room_bytes()),
            )
        self.steps = tuple(Step(name) for name in (FETCH, CONVERT, CHECK, LOAD))
        self.weights = (100, 20, 10, 20)

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> None:
        """Commit the file, if one was made, and enter the adapter. Raises NameTaken, ModelNotFound, BlobNotFound."""
        assert isinstance(outcome, AdapterMade)
        stores = self._bench.stores
        if self._spec.digest is None:
            self._bench.commit(self._temp, outcome.digest, outcome.size_bytes)
        elif not stores.blobs.has(outcome.digest):
            raise BlobNotFound("The upload was deleted while it was checked; upload it again.", param="digest")
        added = stores.catalog.adapters.add(
            self._model, self._spec.name, outcome.digest, outcome.size_bytes, outcome.facts
        )
        self._name = added.name

    def remarks(self) -> Sequence[Remark]:
        """None."""
        return ()

    def conclude(self) -> None:
        """It is done when its steps are."""

    def settle(self) -> None:
        """An adapter that was entered stays."""

    def result(self) -> tuple[str, ...]:
        """The adapter's name."""
        return () if self._name is None else (self._name,)


def check_sources(spec: AdapterSpec) -> None:
    """Raise InvalidName, and InvalidParameter unless exactly one source is named."""
    check_name(spec.name)
    sources = (spec.path is not None, spec.digest is not None, bool(spec.files), spec.source is not None)
    if sum(sources) != 1:
        raise InvalidParameter("Give one of: a path on the server, the digest of an upload, files, or an address.")
    if len({file.name for file in spec.files}) < len(spec.files):
        raise InvalidParameter("A file is named twice; name each once.", param="files")


def _files_at(path: Path) -> list[Path]:
    """The file itself, or the files of a folder. What cannot be read is for the child to tell."""
    try:
        return [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else [path]
    except OSError:
        return [path]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
