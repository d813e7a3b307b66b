"""Several runs on one variant as one card. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.domain.evaluation import Card


def merged(runs: Sequence[Card]) -> Card:
    """The newest text figures, the newest speed and each task's newest score; `runs` newest first, at least one.

    Machine, build and time are the newest run's.
    """
    tasks = {score.task: score for run in reversed(runs) for score in run.tasks}
    return replace(
        runs[0],
        text=next((run.text for run in runs if run.text is not None), None),
        speed=next((run.speed for run in runs if run.speed is not None), None),
        tasks=tuple(sorted(tasks.values(), key=lambda score: score.task)),
    )
