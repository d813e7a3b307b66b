"""Levels made until one breaks a bound: what is asked of the child, what stays, what is said. Without a child."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.catalog import Lineage
from service.domain.errors import InvalidParameter, JobFailed, QuantizationNotApplicable
from service.domain.evaluation import Card, Divergence, Estimate, TextFigures
from service.domain.jobs import JobStatus, QuantizeSpec, StepsBack
from service.domain.recipes import Recipe
from service.domain.steps_back import Bound
from service.jobs.assignments import assign
from service.jobs.messages import Evaluated
from service.jobs.progress import Meter
from service.jobs.submission import canonical, in_order
from tests.unit.jobs.laboratory_home import Home, made, names

LEVELS = ("Q8_0", "Q6_K", "Q4_0")
ZERO = Estimate(0.0, 0.0)


def card(kld: float) -> Card:
    divergence = Divergence(
        "gloss:F16", "sha256:x", ZERO, ZERO, Estimate(kld, 0.0), 0.0, 0.0, 0.0, 0.0, 0.0, ZERO, ZERO, ZERO
    )
    return Card("a machine", "b1", 1.0, TextFigures("evaluation", "sha256:y", 512, 1, 256, ZERO, divergence))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.engine.dispose()


def until(home: Home, *levels: str, keep: str = "last", **more: object) -> QuantizeSpec:
    evaluate = replace(home.evaluate, tasks=(), speed=False)
    return home.levels(*(levels or LEVELS), evaluate=evaluate, until=StepsBack(Bound(max_kld=0.05), keep), **more)


class Job:
    """Runs of one job, with what its row would hold."""

    def __init__(self, home: Home, spec: QuantizeSpec, job_id: str = "job_1") -> None:
        self.home, self.spec, self.job_id = home, spec, job_id
        self.said: dict[str, str] = {}
        self.begin()

    def begin(self) -> None:
        self.run = assign(self.spec, self.home.bench(self.job_id, said=self.said))
        self.meter = Meter(self.run.steps, self.run.weights)
        self.next = 0

    def lands(self, outcome=None, **made_file) -> str | None:
        """Let the child's next step land; what is said of it."""
        number, self.next = self.next, self.next + 1
        detail = made(self.home, self.run, number, **made_file) if outcome is None else self.run.accept(outcome(number))
        self.meter.complete(self.run.step_of(number), detail)
        self.note()
        return detail

    def note(self) -> None:
        for remark in self.run.remarks():
            self.meter.remark(remark.step, remark.detail, left_out=remark.left_out)
        self.said = {step.name: step.detail for step in self.meter.steps if step.status == "succeeded" and step.detail}

    def level(self, content: bytes, kld: float | None = None) -> None:
        self.lands(content=content)
        if kld is not None:
            self.measured(kld)

    def measured(self, kld: float) -> str | None:
        return self.lands(lambda number: Evaluated(number, card(kld)))

    def ends(self) -> None:
        self.run.settle()
        self.note()
        self.meter.end(JobStatus.SUCCEEDED)

    def stored(self) -> list[str]:
        return [variant.quantization for variant in self.home.stores.catalog.variants()]

    def steps(self) -> dict[str, tuple[str, str | None]]:
        return {step.name: (step.status.value, step.detail) for step in self.meter.steps}


def test_the_last_good_level_stays_and_every_step_says_what_became_of_it(home: Home) -> None:
    job = Job(home, until(home))
    assert names(job.run) == ["evaluate F16", *(name for level in LEVELS for name in (level, f"evaluate {level}"))]
    bounds = [getattr(step, "bound", None) for step in job.run.task.steps]
    assert bounds == [None, *[None, Bound(max_kld=0.05)] * 3], "the source is not judged"
    job.measured(0.0)
    assert job.run.result() == ()
    job.level(b"level 8", 0.001)
    assert job.run.result() == ("gloss:Q8_0",)
    job.lands(content=b"level 6")
    assert job.stored() == ["F16", "Q8_0", "Q6_K"]
    assert job.measured(0.02) == "mean KLD 0.02 keeps to 0.05"
    assert (job.stored(), job.run.result()) == (["F16", "Q6_K"], ("gloss:Q6_K",))
    job.level(b"level 4", 0.3)
    job.run.conclude()
    job.ends()
    assert (job.stored(), job.run.result()) == (["F16", "Q6_K"], ("gloss:Q6_K",))
    assert job.steps() == {
        "evaluate F16": ("succeeded", None),
        "Q8_0": ("succeeded", "deleted again"),
        "evaluate Q8_0": ("succeeded", "mean KLD 0.001 keeps to 0.05"),
        "Q6_K": ("succeeded", None),
        "evaluate Q6_K": ("succeeded", "mean KLD 0.02 keeps to 0.05"),
        "Q4_0": ("succeeded", "deleted again"),
        "evaluate Q4_0": ("succeeded", "mean KLD 0.3 is above 0.05"),
    }


def test_what_comes_after_the_first_broken_one_is_left_out(home: Home) -> None:
    job = Job(home, until(home))
    job.measured(0.0)
    job.level(b"level 8", 0.001)
    before = job.meter.progress
    job.level(b"level 6", 0.06)
    job.run.conclude()
    job.ends()
    assert job.stored() == ["F16", "Q8_0"]
    left_out = ("cancelled", "left out: Q6_K breaks the bound")
    assert (job.steps()["Q4_0"], job.steps()["evaluate Q4_0"]) == (left_out, left_out)
    assert before < job.meter.progress == 1.0


def test_with_keep_all_everything_that_was_made_stays(home: Home) -> None:
    job = Job(home, until(home, keep="all"))
    job.measured(0.0)
    job.level(b"level 8", 0.001)
    job.level(b"level 6", 0.01)
    job.level(b"level 4", 0.3)
    job.run.conclude()
    job.ends()
    assert job.stored() == ["F16", *LEVELS]
    assert job.run.result() == ("gloss:Q6_K", "gloss:Q8_0", "gloss:Q4_0"), "the answer first"


def test_where_nothing_is_good_the_job_fails_with_the_figure_and_leaves_nothing(home: Home) -> None:
    job = Job(home, until(home))
    job.measured(0.0)
    job.level(b"level 8", 0.0517)
    with pytest.raises(
        JobFailed, match=r"even Q8_0, .* bound: mean KLD 0\.0517 is above 0\.05\. Loosen the bound, use"
    ):
        job.run.conclude()
    job.ends()
    assert (job.stored(), job.run.result()) == (["F16"], ())


def test_levels_that_were_there_before_stay_and_count(home: Home) -> None:
    lineage = Lineage("quantized", home.source.digest, home.source.name, Recipe("Q8_0"), "llama.cpp 0", job_id="job_0")
    home.add(b"level 8", "Q8_0", lineage)
    home.add(b"level 4", "Q4_0", replace(lineage, recipe=Recipe("Q4_0")))
    job = Job(home, until(home))
    job.measured(0.0)
    assert job.measured(0.001) == "mean KLD 0.001 keeps to 0.05"
    job.level(b"level 6", 0.01)
    assert job.measured(0.3) == "mean KLD 0.3 is above 0.05"
    job.run.conclude()
    job.ends()
    assert sorted(job.stored()) == ["F16", "Q4_0", "Q6_K", "Q8_0"]
    assert job.run.result() == ("gloss:Q6_K",)
    other = Job(home, until(home, "Q4_0"), "job_2")
    assert other.run.task is None, "it has been measured the same way before"
    with pytest.raises(JobFailed, match="even Q4_0"):
        other.run.conclude()
    other.ends()
    assert "Q4_0" in other.stored()


def test_the_source_may_stand_at_the_head_of_its_own_levels(home: Home) -> None:
    job = Job(home, until(home, "F16", "Q8_0"))
    assert names(job.run) == ["evaluate F16", "F16", "Q8_0", "evaluate Q8_0"]
    job.measured(0.0)
    job.level(b"level 8", 0.3)
    job.run.conclude()
    job.ends()
    assert (job.stored(), job.run.result()) == (["F16"], ("gloss:F16",))


@pytest.mark.parametrize("keep", ["last", "all"])
def test_after_a_crash_it_goes_on_below_what_it_has_passed(home: Home, keep: str) -> None:
    job = Job(home, until(home, keep=keep))
    job.measured(0.0)
    job.level(b"level 8", 0.001)
    job.level(b"level 6", 0.01)
    job.begin()
    assert [step.status.value for step in job.run.steps] == ["succeeded"] * 5 + ["queued"] * 2
    assert job.steps()["evaluate Q8_0"][1] == "mean KLD 0.001 keeps to 0.05"
    assert len(job.run.task.steps) == 2
    assert job.run.result() == (("gloss:Q6_K",) if keep == "last" else ("gloss:Q6_K", "gloss:Q8_0"))
    job.level(b"level 4")
    job.begin()
    assert len(job.run.task.steps) == 1, "made, and not measured yet"
    job.measured(0.3)
    job.begin()
    assert job.run.task is None
    job.run.conclude()
    job.ends()
    assert job.stored() == (["F16", "Q6_K"] if keep == "last" else ["F16", *LEVELS])


def test_a_crash_before_the_last_deletion_leaves_nothing_too_many(home: Home) -> None:
    job = Job(home, until(home))
    job.measured(0.0)
    job.level(b"level 8", 0.001)
    job.lands(content=b"level 6")
    of_six = home.stores.catalog.resolve("gloss:Q6_K")
    conditions = job.run._evaluation.conditions(of_six.digest)
    home.stores.laboratory.add_card(of_six.id, card(0.01), job_id="job_1", conditions=conditions)
    job.begin()
    assert job.stored() == ["F16", "Q8_0", "Q6_K"]
    job.level(b"level 4", 0.3)
    job.ends()
    assert job.stored() == ["F16", "Q6_K"]


def test_a_job_that_is_cancelled_keeps_the_last_good_level_alone(home: Home) -> None:
    job = Job(home, until(home))
    job.measured(0.0)
    job.level(b"level 8", 0.001)
    job.lands(content=b"level 6")
    job.ends()
    assert (job.stored(), job.run.result()) == (["F16", "Q8_0"], ("gloss:Q8_0",))


def test_levels_are_tried_largest_first_and_those_of_the_ladder_that_apply(home: Home) -> None:
    named = canonical(until(home, "q4_0", "Q8_0"), home.stores)
    assert in_order(named, home.bench()).levels == ("Q8_0", "Q4_0")
    unnamed = canonical(replace(named, levels=()), home.stores)
    assert in_order(unnamed, home.bench()).levels == ("Q6_K",), "Q8_0 would be larger than its source"
    without_plans = home.add(b"another", "F32", Lineage("imported"))
    with pytest.raises(QuantizationNotApplicable, match="name the levels"):
        in_order(replace(unnamed, source_name=without_plans.name), home.bench())
    with pytest.raises(InvalidParameter):
        canonical(replace(named, evaluate=None), home.stores)
    with pytest.raises(InvalidParameter):
        canonical(replace(named, evaluate=replace(named.evaluate, text=None)), home.stores)
