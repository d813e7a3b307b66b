"""A job's steps in a pipe: one line for each that ended, in words that blame nobody."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from service.api.catalogue_shapes import JobShape, StepShape
from service.cli.progress import job_view
from service.cli.session import Session


def lines(status: str, steps: Sequence[tuple[str, str, str | None]]) -> list[str]:
    """What is printed of a job of these steps: name, status, detail."""
    file = io.StringIO()
    console = Console(file=file, width=1000, markup=False)
    shape = JobShape(
        id="job_a32ff0f7d73e65db", kind="pull", status=status, model="m", levels=[], progress=0.4,
        steps=[StepShape(name=name, status=how, progress=0.0, detail=detail) for name, how, detail in steps],
        eta_seconds=None, result=[], error=None, attempts=1, created_at="2025-01-02T03:04:05Z", started_at=None,
        finished_at=None,
    )  # fmt: skip
    with job_view(Session("http://127.0.0.1:1", None, as_json=False, out=console, err=console)) as view:
        view.show(shape)
        view.show(shape)
    return file.getvalue().splitlines()


def test_steps_that_a_failure_left_undone_are_not_called_cancelled() -> None:
    steps = [("look up", "succeeded", None), ("fetch", "failed", None), ("check", "cancelled", None)]
    assert lines("failed", steps) == ["look up: succeeded (1 of 3)", "fetch: failed (2 of 3)"]


def test_steps_of_a_job_that_was_cancelled_are_and_what_is_left_out_says_why() -> None:
    assert lines("cancelled", [("fetch", "cancelled", None)]) == ["fetch: cancelled (1 of 1)"]
    left_out = [("Q4_K_M", "succeeded", None), ("Q3_K_M", "cancelled", "left out: Q4_K_M broke the bound")]
    assert lines("succeeded", left_out)[1] == "Q3_K_M: left out: Q4_K_M broke the bound (2 of 2)"
