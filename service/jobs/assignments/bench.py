"""What all kinds of jobs share: where they work, and the parts that a laboratory job consists of. Server process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service import machine
from service.domain.catalog import LevelPlan, Variant
from service.domain.errors import BlobCorrupt, BlobNotFound, Conflict
from service.domain.jobs import JobStatus, Step
from service.domain.recipes import Recipe
from service.domain.remote import RemoteAccess
from service.jobs.messages import LaboratoryTask, Outcome, Task
from service.jobs.messages import Step as TaskStep
from service.store import care
from service.store.stores import Stores

CHECKPOINT = "checkpoint"
"""The kind of derived file that holds a job's work so far."""

PlanOf = Callable[[str, Recipe, bool], LevelPlan | None]


def _no_plan(_digest: str, _recipe: Recipe, _has_importance: bool) -> LevelPlan | None:
    return None


@dataclass(slots=True)
class Bench:
    """Where one run of one job works. `done` is what earlier runs of the job have reported, `said` what they said of
    its steps, by name.

    `plan_of` finds the plan of a recipe for a file, if someone has made it; `derived` collects the derived files that
    the run names. `on_damaged` hears of blobs that turn out damaged.
    """

    stores: Stores
    job_id: str = "new"
    done: tuple[str, ...] = ()
    said: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    niceness: int = 19
    plan_of: PlanOf = _no_plan
    derived: set[Path] = field(default_factory=set)
    access: RemoteAccess = field(default_factory=RemoteAccess)
    memory_bytes: int = 0  # that inference may take; 0: nothing is known
    on_damaged: Callable[[str], None] = lambda _digest: None

    def temp(self, name: str) -> Path:
        """A file of this job in the incoming folder."""
        return self.stores.blobs.incoming / f"{self.job_id}-{name}"

    def derive(self, kind: str, *depends_on: object) -> Path:
        """A derived file that depends on these values, and on the machine and its llama.cpp."""
        path = self.stores.derived.path(kind, *depends_on, machine.machine_id())
        self.derived.add(path)
        return path

    def variant(self, name: str, digest: str, *, param: str = "model") -> Variant:
        """The variant of that name. Raises ModelNotFound, Conflict when it is another file by now."""
        found = self.stores.catalog.resolve(name)
        if found.digest != digest:
            raise Conflict(f"{found.name} is another file by now; ask again.", param=param)
        return found

    def blob(self, digest: str, what: str) -> str:
        """The path of a blob. Raises BlobNotFound naming `what` it holds; BlobCorrupt for damage that is known, and for
        a changed file elsewhere.
        """
        known = self.stores.catalog.blob(digest)
        if known is not None and known.corrupt:
            raise BlobCorrupt(f"The bytes of {what} no longer match their digest; bring them again.", param="digest")
        if not self.stores.blobs.has(digest):
            if self.stores.blobs.outside.get(digest) is not None:
                care.loadable(self.stores.catalog, self.stores.blobs, digest)
            raise BlobNotFound(f"The bytes of {what} are gone from this store; bring them again.", param="digest")
        return str(self.stores.blobs.path(digest))

    def commit(self, temp: Path, digest: str, size_bytes: int, *, linked: bool = False) -> None:
        """Make the child's file a blob; it takes the place of a damaged one with the same digest.

        `linked` as in `BlobStore.commit`.
        """
        known = self.stores.catalog.blob(digest)
        corrupt = known is not None and known.corrupt
        self.stores.blobs.commit(temp, digest, size_bytes, replace=corrupt, linked=linked)
        if corrupt:
            with suppress(BlobNotFound):  # deleted meanwhile: whoever commits it enters it anew
                care.mended(self.stores.catalog, self.stores.blobs, digest)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say of a job's step, by its number. One that is `left_out` will not be done."""

    step: int
    detail: str
    left_out: bool = False


class Assignment(Protocol):
    """One run of one job. `task` None: nothing is left to do."""

    task: Task | None
    steps: tuple[Step, ...]
    weights: tuple[int, ...]  # of the steps, in bytes

    def step_of(self, number: int) -> int:
        """The job's step for the child's step `number`."""

    def accept(self, outcome: Outcome) -> str | None:
        """Take in what a step of the child has left: commit files, enter them in the catalogue, keep figures.

        What there is to say of the step.
        """

    def remarks(self) -> Sequence[Remark]:
        """What there is to say of other steps since it was asked last."""

    def conclude(self) -> None:
        """All that was to do is done. Raises why the job has failed all the same."""

    def settle(self) -> None:
        """The job ends, well or not: remove what it is not to leave in the catalogue."""

    def result(self) -> tuple[str, ...]:
        """What has been made or found so far: canonical names, or digests of importance matrices."""


@dataclass(frozen=True, slots=True)
class Part:
    """One step of a laboratory job. `task` None: it is done already, or left out, as `detail` says.

    `weight` is its work in bytes to write, or what takes as long. `land` may have something to say of the step.
    """

    name: str
    weight: int
    task: TaskStep | None
    land: Callable[[Outcome], str | None]
    detail: str = "already there"
    left_out: bool = False

    @property
    def step(self) -> Step:
        """As the job shows it before the run."""
        if self.task is not None:
            return Step(self.name)
        if self.left_out:
            return Step(self.name, JobStatus.CANCELLED, 0.0, self.detail)
        return Step(self.name, JobStatus.SUCCEEDED, 1.0, self.detail)


def nothing(_outcome: Outcome) -> None:
    """The landing of a part that is done already."""
    raise AssertionError("a part that is done was done again")


class LaboratoryAssignment:
    """An assignment that consists of parts on one source file."""

    def __init__(self, source: str, parts: Sequence[Part], *, threads: int, niceness: int) -> None:
        """`source` is a path; `threads` 0 means all cores."""
        self._parts = tuple(parts)
        self._todo = [index for index, part in enumerate(parts) if part.task is not None]
        tasks = tuple(part.task for part in parts if part.task is not None)
        self.task: Task | None = LaboratoryTask(source, tasks, threads, niceness) if tasks else None
        self.steps = tuple(part.step for part in parts)
        self.weights = tuple(part.weight for part in parts)

    def step_of(self, number: int) -> int:
        """The child counts only what it is to do."""
        return self._todo[number]

    def accept(self, outcome: Outcome) -> str | None:
        """Let the part that it belongs to take it in."""
        return self._parts[self._todo[outcome.step]].land(outcome)

    def remarks(self) -> Sequence[Remark]:
        """Most have none."""
        return ()

    def conclude(self) -> None:
        """Most are done when their steps are."""

    def settle(self) -> None:
        """What most have made stays."""
