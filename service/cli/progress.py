"""A job's steps as bars that move, or as a line for each step where nothing can move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from service.api.catalogue_shapes import JobShape, StepShape
from service.cli.session import Session
from service.cli.tables import STATUS_STYLES

_ENDED = ("succeeded", "failed", "cancelled")


class JobView(Protocol):
    """Shows a job each time it has changed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: JobShape) -> None:
        """The job as it is now."""


def job_view(session: Session) -> JobView:
    """What suits the session: bars, lines, or with --json a document a line."""
    if session.as_json:
        return _Documents(session)
    return _Bars(session) if session.is_live else _Lines(session)


@contextmanager
def transfer(session: Session, title: str, total_bytes: int) -> Iterator[_Advance]:
    """A bar of bytes. What it yields is called with the bytes of each piece."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=session.err, transient=True, disable=not session.is_live) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda done: progress.update(task, advance=done)


class _Advance(Protocol):
    def __call__(self, done: int, /) -> None: ...


class _Quiet:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Documents(_Quiet):
    def show(self, job: JobShape) -> None:
        self._session.document(job)


class _Lines(_Quiet):
    """One line for each step that ends."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._told: set[str] = set()

    def show(self, job: JobShape) -> None:
        for step in job.steps:
            # Steps that a failure left undone were cancelled by nobody.
            undone = job.status == "failed" and step.status == "cancelled" and not step.detail
            if step.status in _ENDED and step.name not in self._told and not undone:
                self._told.add(step.name)
                self._session.note(f"{step.name}: {_detail(step)} ({len(self._told)} of {len(job.steps)})", style="")


class _Bars(_Quiet):
    """A bar for each step."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=session.err,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: JobShape) -> None:
        for step in job.steps:
            if step.name not in self._bars:
                self._bars[step.name] = self._progress.add_task(step.name, total=1.0, start=False, detail="")
            bar = self._bars[step.name]
            if step.status == "running":
                self._progress.start_task(bar)
            self._progress.update(bar, completed=step.progress, detail=_detail(step))
            if step.status in _ENDED:
                self._progress.stop_task(bar)


def _detail(step: StepShape) -> str:
    left_out = (step.detail or "").startswith("left out")
    return step.detail or "" if step.status == "running" or left_out else step.status


def ending(job: JobShape) -> Text:
    """How a job ended, as one line."""
    text = Text.assemble(f"Job {job.id} ", (job.status, STATUS_STYLES.get(job.status, "")))
    return text.append(f": {job.error.message}") if job.error else text
