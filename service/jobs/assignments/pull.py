"""A pull: a model fetched from elsewhere becomes one variant. Server process.

What the child fetches lies beside the blobs and outlives the run (`store/partials.py`): a pull that was cancelled, or
whose server went down, goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.domain.addresses import parse_address
from service.domain.catalog import Lineage
from service.domain.errors import BlobNotFound
from service.domain.jobs import PullSpec, Step
from service.domain.names import parse_ref
from service.domain.reach import admit, origin_of
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import Made, Outcome, PullTask, Task

LOOK_UP, FETCH, CONVERT, CHECK, PLAN, LOAD = "look up", "fetch", "convert", "check", "plan", "load"
# How large the file is is not known before it is looked up: these say how long each step takes beside the others.
_WEIGHTS = {LOOK_UP: 1, FETCH: 100, CONVERT: 10, CHECK: 1, PLAN: 4, LOAD: 4}
_FETCHING_NICENESS = 5


class PullAssignment:
    """Files from elsewhere become one variant."""

    def __init__(self, spec: PullSpec, bench: Bench) -> None:
        """Raises InvalidParameter for what is no address, Forbidden for one that may not be reached, DiskFull."""
        self._spec = spec
        self._bench = bench
        self._name: str | None = None
        blobs = bench.stores.blobs
        admit(origin_of(parse_address(spec.source), bench.access), bench.access.hosts)
        blobs.check_space(0)
        self._temp = bench.temp("pull")
        self.task: Task | None = None
        if bench.job_id != "new":  # it is to run, and not only to be queued
            self.task = PullTask(
                source=spec.source,
                transfers=str(bench.stores.partials.root),
                target=str(self._temp),
                name=spec.name,
                access=bench.access,
                niceness=min(bench.niceness, _FETCHING_NICENESS),
                convert_to=spec.convert_to,
                blobs=str(blobs.root),
                damaged=tuple(blob.digest for blob in bench.stores.catalog.blobs() if blob.corrupt),
                memory_bytes=bench.memory_bytes,
                room_bytes=max(1, blobs.room_bytes()),
            )
        self.steps = tuple(map(Step, _WEIGHTS))
        self.weights = tuple(_WEIGHTS.values())

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> str | None:
        """Commit what was fetched, unless it was stored already, and enter the variant. Raises NameTaken."""
        assert isinstance(outcome, Made)
        file, catalog = outcome.file, self._bench.stores.catalog
        if self._temp.exists():
            self._bench.commit(self._temp, file.digest, file.size_bytes)
        elif not self._bench.stores.blobs.has(file.digest):
            raise BlobNotFound("The file was stored already and was deleted while it was pulled; pull it again.")
        lineage = Lineage(
            origin="pulled",
            duration_seconds=round(file.duration_seconds, 3),
            lossy_source=outcome.lossy_source,
            job_id=self._bench.job_id,
            remote=outcome.remote,
            converted_from=outcome.converted_from,
        )
        self._name = catalog.add_variant(parse_ref(self._spec.name), file, lineage).name
        return None

    def remarks(self) -> Sequence[Remark]:
        """None."""
        return ()

    def conclude(self) -> None:
        """It is done when its steps are."""

    def settle(self) -> None:
        """Nothing was entered before the end."""

    def result(self) -> tuple[str, ...]:
        """The variant's name."""
        return () if self._name is None else (self._name,)
