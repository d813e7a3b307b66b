"""Progress figures: weighted by bytes, never backwards, with an estimate that rests on this run alone."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.domain.jobs import JobStatus, Step
from service.jobs.progress import Meter


def test_steps_weigh_what_they_write():
    meter = Meter((Step("Q8_0"), Step("Q4_0")), (800, 200))
    meter.advance(0, 0.5, "tensor 1 of 2")
    assert meter.progress == pytest.approx(0.4)
    meter.complete(0)
    assert meter.progress == pytest.approx(0.8)
    meter.advance(1, 0.5, None)
    assert meter.progress == pytest.approx(0.9)
    assert [step.status for step in meter.steps] == ["succeeded", "running"]


def test_the_estimate_leaves_out_what_an_earlier_run_did():
    meter = Meter((Step("a", JobStatus.SUCCEEDED, 1.0), Step("b")), (500, 500))
    assert meter.progress == 0.5
    assert meter.eta_seconds(10.0) is None
    meter.advance(1, 0.5, None)
    assert meter.eta_seconds(10.0) == pytest.approx(10.0)


def test_a_step_that_is_done_does_not_run_again():
    meter = Meter((Step("a"),), (1,))
    meter.complete(0)
    meter.advance(0, 0.1, "late")
    assert meter.steps == (Step("a", JobStatus.SUCCEEDED, 1.0),)


@pytest.mark.parametrize("ending", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_job_that_ends_early_keeps_its_finished_steps(ending):
    meter = Meter((Step("a"), Step("b"), Step("c")), (1, 1, 1))
    meter.complete(0)
    meter.advance(1, 0.5, None)
    meter.end(ending)
    assert [step.status for step in meter.steps] == ["succeeded", ending, "cancelled"]


def test_a_step_that_is_left_out_is_no_work_and_no_success():
    meter = Meter((Step("a"), Step("b"), Step("c", JobStatus.CANCELLED, 0.0, "before")), (1, 9, 90))
    meter.complete(0, "good")
    assert meter.progress == pytest.approx(0.1)
    meter.remark(1, "left out", left_out=True)
    meter.remark(0, "deleted again")
    assert meter.progress == 1.0
    meter.end(JobStatus.SUCCEEDED)
    assert [(step.status, step.detail) for step in meter.steps] == [
        ("succeeded", "deleted again"),
        ("cancelled", "left out"),
        ("cancelled", "before"),
    ]


@given(
    weights=st.lists(st.integers(0, 10**12), min_size=1, max_size=5),
    moves=st.lists(st.tuples(st.integers(0, 4), st.floats(-1.0, 2.0), st.booleans()), max_size=40),
)
def test_progress_never_goes_back_and_stays_between_0_and_1(weights, moves):
    meter = Meter([Step(str(index)) for index in range(len(weights))], weights)
    before = meter.progress
    for step, fraction, completes in moves:
        step %= len(weights)
        if completes:
            meter.complete(step)
        else:
            meter.advance(step, fraction, None)
        assert before <= meter.progress <= 1.0
        assert all(0.0 <= step.progress <= 1.0 for step in meter.steps)
        before = meter.progress
        eta = meter.eta_seconds(1.0)
        assert eta is None or eta >= 0.0
