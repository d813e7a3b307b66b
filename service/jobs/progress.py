"""How far a job is, from how far its steps are: weights, monotone figures, remaining time. Pure.

Runs in the server process. Knows neither clock nor database: the caller passes the seconds in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.domain.jobs import JobStatus, Step

# Below this share an estimate of the remaining time says more about start-up than about the work.
_ETA_FROM = 0.02


class Meter:
    """The steps of one run of a job, each with a weight in bytes. Progress never goes back."""

    def __init__(self, steps: Sequence[Step], weights: Sequence[int]) -> None:
        """`weights[i]` is the work of `steps[i]`, in bytes to write. A step that is done counts as done, one that is
        cancelled as none.
        """
        assert len(steps) == len(weights)
        self._steps = list(steps)
        self._weights = [
            0 if step.status is JobStatus.CANCELLED else max(1, weight)
            for step, weight in zip(steps, weights, strict=True)
        ]
        self._progress = 0.0
        # What an earlier run has done takes no time in this one.
        self._before = self._share()
        self._progress = self._before

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps as they stand."""
        return tuple(self._steps)

    @property
    def progress(self) -> float:
        """Share of all the work that is done, 0 to 1."""
        return self._progress

    def advance(self, step: int, fraction: float, detail: str | None) -> None:
        """Step number `step` is running and is `fraction` done."""
        for index, before in enumerate(self._steps[:step]):
            # The child has gone on: what it has told to the end of is done, whatever becomes of the rest.
            if before.status is JobStatus.RUNNING and before.progress >= 1.0:
                self._steps[index] = replace(before, status=JobStatus.SUCCEEDED)
        now = self._steps[step]
        if now.status in (JobStatus.QUEUED, JobStatus.RUNNING):
            fraction = min(1.0, max(now.progress, fraction))
            self._steps[step] = replace(now, status=JobStatus.RUNNING, progress=fraction, detail=detail)
        self._progress = max(self._progress, self._share())

    def complete(self, step: int, detail: str | None = None) -> None:
        """Step number `step` is done, and so is everything before it."""
        for index in range(step + 1):
            now = self._steps[index]
            if now.status in (JobStatus.QUEUED, JobStatus.RUNNING):
                told = detail if index == step else None
                self._steps[index] = replace(now, status=JobStatus.SUCCEEDED, progress=1.0, detail=told)
        self._progress = max(self._progress, self._share())

    def remark(self, step: int, detail: str, *, left_out: bool = False) -> None:
        """Say something of step number `step`. One that is left out will not be done, and is no work any more."""
        now = self._steps[step]
        if left_out:
            self._weights[step] = 0
            now = replace(now, status=JobStatus.CANCELLED, progress=0.0)
        self._steps[step] = replace(now, detail=detail)
        self._progress = max(self._progress, self._share())

    def end(self, status: JobStatus) -> None:
        """The job has ended as `status`: the step that was running shares its fate, later ones are left undone."""
        for index, now in enumerate(self._steps):
            if status is JobStatus.SUCCEEDED:
                self.complete(index, now.detail)
            elif now.status is JobStatus.RUNNING:
                self._steps[index] = replace(now, status=status)
            elif now.status is JobStatus.QUEUED:
                self._steps[index] = replace(now, status=JobStatus.CANCELLED)

    def eta_seconds(self, elapsed_seconds: float) -> float | None:
        """Seconds left at the pace of this run; None while there is too little to go by."""
        done = self._progress - self._before
        if done < _ETA_FROM or elapsed_seconds <= 0.0:
            return None
        return round(elapsed_seconds * (1.0 - self._progress) / done, 1)

    def _share(self) -> float:
        done = sum(weight * step.progress for weight, step in zip(self._weights, self._steps, strict=True))
        return min(1.0, done / max(1, sum(self._weights)))
