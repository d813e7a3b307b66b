"""A LoRA adapter taken in for one model. Server process."""

from __future__ import annotations

from collections.abc import Sequence

from service.domain.errors import NotSupported
from service.domain.jobs import AdapterSpec, Step
from service.jobs.assignments.bench import Bench, Remark
from service.jobs.messages import Outcome, Task


class AdapterAssignment:
    """To be built."""

    def __init__(self, spec: AdapterSpec, bench: Bench) -> None:
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
