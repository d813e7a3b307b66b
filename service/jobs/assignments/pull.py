"""A pull: a model fetched from elsewhere becomes one variant. Server process."""

from __future__ import annotations

from collections.abc import Sequence

from service.domain.errors import NotSupported
from service.domain.jobs import PullSpec, Step
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import Outcome, Task


class PullAssignment:
    """To be built."""

    def __init__(self, spec: PullSpec, bench: Bench) -> None:
        self.task: Task | None = None
        self.steps: tuple[Step, ...] = ()
        self.weights: tuple[int, ...] = ()
        raise NotSupported("Not built yet.")

    def step_of(self, number: int) -> int:
        """The child counts the same steps."""
        return number

    def accept(self, outcome: Outcome) -> None:
        """Nothing yet."""

    def remarks(self) -> Sequence[Remark]:
        """None."""
        return ()

    def conclude(self) -> None:
        """Nothing yet."""

    def settle(self) -> None:
        """Nothing yet."""

    def result(self) -> tuple[str, ...]:
        """Nothing yet."""
        return ()
