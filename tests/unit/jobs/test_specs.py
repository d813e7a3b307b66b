"""What follows from a spec alone."""

from __future__ import annotations

import pytest

from service.domain.datasets import DatasetRef
from service.domain.evaluation import Target
from service.domain.jobs import (
    SPECS,
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateOptions,
    CalibrateSpec,
    EvaluateOptions,
    EvaluateSpec,
    ImportSpec,
    JobKind,
    NamedBlob,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    SearchOptions,
    StoredFile,
    VerifySpec,
)
from service.domain.recipes import Recipe
from service.jobs.queue import JobQueue
from service.jobs.specs import digests_of, kind_of, spec_key


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


TEXT = DatasetRef("calibration", digest("a"))
CALIBRATE = CalibrateOptions(TEXT)
EVALUATE = EvaluateOptions(DatasetRef("evaluation", digest("b")), tasks=(DatasetRef("words", digest("c")),))
SOURCE = ("gloss:F16", digest("d"))
EACH = [
    ImportSpec("gloss", digest=digest("e")),
    QuantizeSpec(*SOURCE, ("Q4_0",), recipe=Recipe(importance_matrix=digest("f")), evaluate=EVALUATE),
    CalibrateSpec(*SOURCE, CALIBRATE, include=(digest("f"),)),
    EvaluateSpec((StoredFile("gloss:Q4_0", digest("e")),), StoredFile(*SOURCE), EVALUATE),
    BudgetSpec(*SOURCE, Target(size_bytes=1000), SearchOptions(TEXT), evaluate=EVALUATE),
    RebuildSpec(StoredFile("gloss:Q4_0", digest("e"))),
    PullSpec("gloss", "hf.co/someone/gloss-GGUF:F16"),
    AdapterSpec("pirate", StoredFile(*SOURCE), files=(NamedBlob("adapter_config.json", digest("a")),)),
    BundleSpec(digest=digest("b")),
    VerifySpec(("gloss:F16",), repair=True),
]


def test_every_kind_has_a_spec() -> None:
    assert [kind_of(spec) for spec in EACH] == list(JobKind) == list(SPECS)


@pytest.mark.parametrize("spec", EACH, ids=kind_of)
def test_a_spec_survives_the_queue_and_its_snapshots(queue: JobQueue, spec) -> None:
    job, new = queue.enqueue(spec, [])
    assert new
    assert queue.get(job.id) == job
    assert queue.get(job.id).spec == spec
    assert queue.events_after(job.id)[-1].job == job
    assert queue.enqueue(spec, []) == (job, False)
    assert queue.active_digests() == digests_of(spec)


def test_the_sweep_leaves_everything_that_a_job_names() -> None:
    letters = [{found.removeprefix("sha256:")[0] for found in digests_of(spec)} for spec in EACH]
    assert letters == [{"e"}, set("dfbc"), set("daf"), set("edbc"), set("dabc"), {"e"}, set(), set("da"), {"b"}, set()]


def test_no_two_of_them_are_the_same_work() -> None:
    assert len({spec_key(spec) for spec in EACH}) == len(EACH)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (CalibrateSpec(*SOURCE, CALIBRATE), CalibrateSpec("GLOSS:f16", digest("d"), CALIBRATE, threads=3)),
        (
            CalibrateSpec(*SOURCE, None, include=(digest("e"), digest("f"))),
            CalibrateSpec(*SOURCE, None, include=(digest("f"), digest("e"))),
        ),
        (RebuildSpec(StoredFile(*SOURCE)), RebuildSpec(StoredFile(*SOURCE), threads=1)),
        (
            BudgetSpec(*SOURCE, Target(max_kld=0.1), SearchOptions(TEXT), flavour="mix"),
            BudgetSpec(*SOURCE, Target(max_kld=0.1), SearchOptions(TEXT), flavour="Mix", threads=2),
        ),
    ],
)
def test_case_order_and_threads_make_no_other_work(one, same) -> None:
    assert spec_key(one) == spec_key(same)


def test_what_is_measured_or_how_makes_other_work() -> None:
    specs = [
        QuantizeSpec(*SOURCE, ("Q4_0",), evaluate=evaluate, calibrate=calibrate, flavour=flavour)
        for evaluate in (None, EVALUATE)
        for calibrate in (None, CALIBRATE)
        for flavour in (None, "mine")
    ]
    assert len({spec_key(spec) for spec in specs}) == len(specs)
