"""A laboratory task, in the job's child: its steps one after the other, on one source file.

What each step does is in a file of its own; here they get their threads, their limits, the importance matrix that
several share, and their line to the server. Knows nothing of the queue or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.domain.steps_back import judge
from service.gguf.files import read_header
from service.jobs.limits import lift_file_limit, limit_file_size
from service.jobs.messages import (
    CalibrateStep,
    Evaluated,
    EvaluateStep,
    LaboratoryTask,
    LevelStep,
    Outcome,
    Planned,
    PlanStep,
    SearchStep,
    Step,
)
from service.jobs.outbox import Outbox
from service.jobs.quantizing import finish_file, make_level
from service.machine import usable_cores
from service.quantization.importance import check_belongs, weights
from service.quantization.importance_files import read_importance
from service.quantization.plan import plan_recipe

Progress = Callable[[float, str], None]


def work(task: LaboratoryTask, outbox: Outbox) -> None:
    """Do the steps and send what each leaves, up to one that breaks its bound. Raises what they raise."""
    laboratory = _Laboratory(task)
    for number, step in enumerate(task.steps):
        outbox.progress(number, 0.0)
        outcome = laboratory.carry_out(number, step, _line(outbox, number))
        outbox.send(outcome)
        laboratory.tidy_up(number)
        if _is_the_end(step, outcome):
            return


def _line(outbox: Outbox, number: int) -> Progress:
    def report(share: float, detail: str) -> None:
        outbox.progress(number, share, detail)

    return report


class _Laboratory:
    """The source and what the steps share."""

    def __init__(self, task: LaboratoryTask) -> None:
        self._source = Path(task.source)
        self._steps = task.steps
        self._threads = task.threads or usable_cores()
        self._weights: tuple[str, Mapping[str, NDArray[np.float32]]] | None = None  # of the file at that path

    def carry_out(self, number: int, step: Step, progress: Progress) -> Outcome:
        """Do one step; what it has left."""
        lift_file_limit()
        match step:
            case CalibrateStep():
                return self._calibrate(number, step, progress)
            case LevelStep():
                if step.expected_bytes:
                    limit_file_size(step.expected_bytes)
                importance = self._importance(step.importance)
                return make_level(number, step, self._source, importance, threads=self._threads, progress=progress)
            case EvaluateStep():
                return self._evaluate(number, step, progress)
            case SearchStep():
                return self._search(number, step, progress)
            case PlanStep():
                return self._plan(number, step, progress)

    def tidy_up(self, number: int) -> None:
        """Remove the files kept for later steps that no step after `number` names: they may hold the only bytes."""
        later = {path for step in self._steps[number + 1 :] for path in _reads(step)}
        for step in self._steps[: number + 1]:
            kept = _keeps(step)
            if kept and kept not in later:
                Path(kept).unlink(missing_ok=True)

    # What only one kind of step needs is loaded for it alone: a plan is waited for.

    def _calibrate(self, number: int, step: CalibrateStep, progress: Progress) -> Outcome:
        from service.jobs.calibrating import calibrate

        return calibrate(number, step, self._source, threads=self._threads, progress=progress)

    def _evaluate(self, number: int, step: EvaluateStep, progress: Progress) -> Outcome:
        from service.jobs.evaluating import evaluate_file

        return Evaluated(number, evaluate_file(step, threads=self._threads, progress=progress))

    def _search(self, number: int, step: SearchStep, progress: Progress) -> Outcome:
        from service.jobs.searching import search

        header, recipe, report = search(step, self._source, threads=self._threads, progress=progress)
        made = finish_file(number, Path(step.made), header, step.keep, report.search_seconds, _silent)
        return msgspec.structs.replace(made, recipe=recipe, search=report)

    def _plan(self, number: int, step: PlanStep, progress: Progress) -> Outcome:
        header = read_header(self._source)
        plans = []
        for count, recipe in enumerate(step.recipes):
            progress(count / len(step.recipes), recipe.quantization)
            plans.append(plan_recipe(self._source, header, recipe, has_importance=step.has_importance)[0])
        return Planned(number, tuple(plans))

    def _importance(self, path: str | None) -> Mapping[str, NDArray[np.float32]] | None:
        """The weights in the importance matrix at `path`, read once for all levels."""
        if path is None:
            return None
        if self._weights is None or self._weights[0] != path:
            importance = read_importance(Path(path))
            check_belongs(importance, read_header(self._source))
            self._weights = (path, weights(importance))
        return self._weights[1]


def _silent(_share: float, _detail: str) -> None:
    pass


def _is_the_end(step: Step, outcome: Outcome) -> bool:
    """Whether what was measured breaks the bound that was set to it."""
    return (
        isinstance(step, EvaluateStep)
        and isinstance(outcome, Evaluated)
        and step.bound is not None
        and not judge(step.bound, outcome.card).within
    )


def _reads(step: Step) -> tuple[str | None, ...]:
    match step:
        case LevelStep() | SearchStep():
            return (step.importance,)
        case EvaluateStep():
            return step.path, step.base
        case _:
            return ()


def _keeps(step: Step) -> str:
    match step:
        case CalibrateStep() | LevelStep() | SearchStep():
            return step.keep
        case _:
            return ""
