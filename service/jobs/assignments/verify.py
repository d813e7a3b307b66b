"""Blobs read again: what is damaged is marked and set aside as soon as it is known. Server process.

The child reads; here its verdicts meet the store as it is by then: a file that came, changed or went while it was read
is not judged by what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import BlobNotFound
from service.domain.jobs import Step, VerifySpec
from service.domain.names import parse_ref
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import BlobToRead, Outcome, Task, Verified, VerifyTask
from service.store import care
from service.store.blob_table import StoredBlob

_MOST_STEPS = 64
_SHOWN = 12  # hexadecimal digits of a digest

Look = tuple[int, int, int, int] | None
"""Device, inode, bytes and modification time of a file; None where there is none."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A blob to read: what people call it, where it lies, how that looked before it was read, and its step."""

    blob: StoredBlob
    name: str
    path: Path
    look: Look
    step: int


class VerifyAssignment:
    """Blobs to read and compare; what is wrong is quarantined."""

    def __init__(self, spec: VerifySpec, bench: Bench) -> None:
        """Raises ModelNotFound, and BlobNotFound for a digest that is not stored."""
        self._bench = bench
        self.repairs = spec.repair
        wanted = _wanted(spec, bench)
        names = _names(bench, [blob.digest for blob in wanted])
        size = -(-len(wanted) // _MOST_STEPS) or 1  # blobs of one step
        self._cases = {
            blob.digest: _case(bench, blob, names.get(blob.digest, ""), number // size)
            for number, blob in enumerate(wanted)
        }
        # What an earlier run of the job has found, unless it has been mended since.
        self._damaged = [digest for digest in bench.done if digest in self._cases and self._cases[digest].blob.corrupt]
        self._remedies: dict[str, str] = {}
        self._jobs: list[str] = []
        cases = list(self._cases.values())
        groups = [cases[start : start + size] for start in range(0, len(cases), size)]
        reads = tuple(BlobToRead(case.blob.digest, str(case.path), case.blob.size_bytes, case.step) for case in cases)
        self.task: Task | None = VerifyTask(reads, bench.niceness) if reads else None
        self.steps = tuple(Step(_step_name(group, number * size, len(cases))) for number, group in enumerate(groups))
        self.weights = tuple(max(1, sum(case.blob.size_bytes for case in group)) for group in groups)

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> None:
        """Mark what was read, and quarantine what is damaged."""
        assert isinstance(outcome, Verified)
        catalog, blobs = self._bench.stores.catalog, self._bench.stores.blobs
        plain = [digest for digest in outcome.intact if self._is_plain(digest)]
        if plain:
            catalog.mark_intact(plain)
        for digest in outcome.intact:
            if digest not in plain and self._looks_the_same(digest):
                care.found(catalog, blobs, digest, intact=True)
        for digest in outcome.damaged:
            if not self._looks_the_same(digest):
                continue
            with suppress(BlobNotFound):  # deleted meanwhile
                care.condemn(catalog, blobs, digest)
                self._bench.on_damaged(digest)
                if digest not in self._damaged:
                    self._damaged.append(digest)

    def remarks(self) -> Sequence[Remark]:
        """The damaged ones, with what is done about them, at their steps."""
        told: dict[int, list[str]] = {}
        for digest in self._damaged:
            case = self._cases[digest]
            told.setdefault(case.step, []).append(f"{case.name} {self._remedies.get(digest, 'is damaged')}")
        return [Remark(step, "; ".join(lines)) for step, lines in told.items()]

    def conclude(self) -> None:
        """Damage that was found is a result, not a failure."""

    def settle(self) -> None:
        """What was marked stays."""

    def result(self) -> tuple[str, ...]:
        """The digests of the damaged blobs, then the ids of the jobs that repair them."""
        return (*self._damaged, *self._jobs)

    @property
    def damaged(self) -> tuple[str, ...]:
        """The digests of the damaged blobs, in the order found."""
        return tuple(self._damaged)

    def note_remedy(self, digest: str, told: str, job_id: str | None = None) -> None:
        """What is done about a damaged blob, e.g. "is damaged; job_... makes it again"."""
        self._remedies[digest] = told
        if job_id is not None and job_id not in self._jobs:
            self._jobs.append(job_id)

    def _is_plain(self, digest: str) -> bool:
        """Whether an intact blob is one that nothing was wrong with before and that lies in the store."""
        blob = self._cases[digest].blob
        return not blob.corrupt and blob.outside is None

    def _looks_the_same(self, digest: str) -> bool:
        case = self._cases[digest]
        return _place(self._bench, case.blob) == (case.path, case.look)


def _wanted(spec: VerifySpec, bench: Bench) -> list[StoredBlob]:
    catalog = bench.stores.catalog
    if not spec.models and not spec.digests:
        return [blob for blob in catalog.blobs() if blob.in_use]
    digests = dict.fromkeys(spec.digests)
    for name in spec.models:
        whole = parse_ref(name).tag is None
        found = catalog.variants(name) if whole else []
        digests |= dict.fromkeys(variant.digest for variant in found or [catalog.resolve(name)])
    wanted = []
    for digest in digests:
        blob = catalog.blob(digest)
        if blob is None:
            raise BlobNotFound(f"No blob {digest}; upload or import it again.", param="digests")
        wanted.append(blob)
    return wanted


def _names(bench: Bench, digests: list[str]) -> dict[str, str]:
    """What people call these blobs: the first variant, dataset or adapter that each is."""
    names = {digest: digest[: len("sha256:") + _SHOWN] for digest in digests}
    stores = bench.stores
    for dataset in stores.laboratory.datasets():
        names[dataset.digest] = f"dataset {dataset.name}"
    for variant in reversed(stores.catalog.variants()):
        names[variant.digest] = variant.name
    return names


def _case(bench: Bench, blob: StoredBlob, name: str, step: int) -> _Case:
    path, look = _place(bench, blob)
    return _Case(blob, name, path, look, step)


def _place(bench: Bench, blob: StoredBlob) -> tuple[Path, Look]:
    path = bench.stores.blobs.where(blob.digest) or bench.stores.blobs.path(blob.digest)
    try:
        status = os.lstat(path)
    except OSError:
        return path, None
    return path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _step_name(group: list[_Case], first: int, total: int) -> str:
    return group[0].name if len(group) == 1 else f"files {first + 1} to {first + len(group)} of {total}"
