"""What jobs of the laboratory ask of their child, and what becomes of its answers: without a child."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.catalog import Lineage
from service.domain.datasets import DatasetRef
from service.domain.errors import BlobCorrupt, BlobNotFound, Conflict, DigestMismatch, InvalidParameter, LossySource
from service.domain.evaluation import Card, SearchReport, Target
from service.domain.importance import ImportanceFacts
from service.domain.jobs import (
    BudgetSpec,
    CalibrateOptions,
    CalibrateSpec,
    EvaluateSpec,
    JobStatus,
    RebuildSpec,
    SearchOptions,
    StoredFile,
)
from service.domain.names import parse_ref
from service.domain.recipes import Recipe, TypeOverride
from service.jobs.assignments import assign
from service.jobs.messages import Calibrated, CalibrateStep, Evaluated, EvaluateStep, LevelStep, SearchStep
from tests.unit.jobs.laboratory_home import Home, digest_of, made, names

CARD = Card("a machine", "llama.cpp 1", 1.0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.engine.dispose()


def calibrated(home: Home, assignment, step: int = 0) -> str:
    """Let the calibration of an assignment land."""
    task: CalibrateStep = assignment.task.steps[step]
    file = home.write(Path(task.target).name, b"the matrix")
    facts = ImportanceFacts(4, 512, ("calibration",), ())
    assignment.accept(Calibrated(step, task.target, file.digest, file.size_bytes, facts))
    return file.digest


def test_the_levels_of_a_job_are_made_with_the_matrix_that_it_computes_and_measured_in_turn(home: Home) -> None:
    spec = home.levels("Q8_0", "Q4_0", calibrate=home.calibrate, evaluate=home.evaluate)
    run = assign(spec, home.bench())
    kinds = [CalibrateStep, EvaluateStep, LevelStep, EvaluateStep, LevelStep, EvaluateStep]
    assert [type(step) for step in run.task.steps] == kinds
    calibrate, of_source, level, of_level = run.task.steps[:4]
    assert level.importance == calibrate.keep != calibrate.target
    assert (of_source.base, of_source.path) == (None, run.task.source)
    assert (of_level.base, of_level.path) == (run.task.source, level.keep)
    assert of_level.logits == of_source.logits
    assert run.task.threads == 2
    assert len(run.weights) == len(run.steps)
    assert all(weight > 0 for weight in run.weights)
    matrix = calibrated(home, run)
    run.accept(Evaluated(1, CARD))
    made(home, run, 2, b"level 8")
    run.accept(Evaluated(3, CARD))
    assert run.result() == ("gloss:Q8_0",)
    variant = home.stores.catalog.resolve("gloss:Q8_0")
    assert variant.lineage.recipe == Recipe("Q8_0", importance_matrix=matrix)
    assert home.stores.laboratory.cards([variant.id, home.source.id]).keys() == {variant.id, home.source.id}


def test_after_a_crash_only_what_is_missing_is_asked_for(home: Home) -> None:
    spec = home.levels("Q8_0", "Q4_0", calibrate=home.calibrate, evaluate=home.evaluate)
    first = assign(spec, home.bench())
    calibrated(home, first)
    first.accept(Evaluated(1, CARD))
    made(home, first, 2, b"level 8")
    second = assign(spec, home.bench())
    assert names(second) == names(first)
    assert [step.detail for step in second.steps] == ["already there", "already measured", "already there"] + [None] * 3
    evaluate, level, _ = second.task.steps
    assert evaluate.path == str(home.stores.blobs.path(digest_of(b"level 8")))
    assert Path(level.importance).read_bytes() == b"the matrix"
    assert [second.step_of(number) for number in range(3)] == [3, 4, 5]
    second.accept(Evaluated(0, CARD))
    made(home, second, 1, b"level 4")
    second.accept(Evaluated(2, CARD))
    third = assign(spec, home.bench())
    assert third.task is None
    assert third.result() == ("gloss:Q8_0", "gloss:Q4_0")
    assert names(third) == names(first), "a job that goes on has the steps that it had"


def test_without_anything_to_make_no_matrix_is_computed(home: Home) -> None:
    run = assign(home.levels("F16", calibrate=home.calibrate), home.bench())
    assert (run.task, run.result()) == (None, ("gloss:F16",))


def test_what_is_measured_otherwise_is_measured_again(home: Home) -> None:
    spec = home.levels("Q8_0", evaluate=home.evaluate)
    run = assign(spec, home.bench())
    run.accept(Evaluated(0, CARD))
    other = replace(spec, evaluate=replace(home.evaluate, window=256))
    assert [step.status for step in assign(spec, home.bench()).steps][:1] == [JobStatus.SUCCEEDED]
    assert [step.status for step in assign(other, home.bench()).steps][:1] == [JobStatus.QUEUED]


def test_nothing_is_measured_on_damaged_bytes(home: Home) -> None:
    stored = StoredFile(home.source.name, home.source.digest)
    home.stores.catalog.mark_corrupt(home.source.digest, True)
    for spec in (
        home.levels("F16", evaluate=home.evaluate),
        EvaluateSpec((stored,), None, home.evaluate),
        EvaluateSpec((stored,), stored, home.evaluate),
    ):
        with pytest.raises(BlobCorrupt):
            assign(spec, home.bench())


def test_a_variant_deleted_while_it_was_measured_is_no_fault(home: Home) -> None:
    spec = EvaluateSpec((StoredFile(home.source.name, home.source.digest),), None, home.evaluate)
    run = assign(spec, home.bench())
    assert run.task.steps[0].logits == "", "nothing will be held to it"
    home.stores.catalog.delete(parse_ref("gloss"))
    run.accept(Evaluated(0, CARD))


def test_who_asks_again_gets_it_measured_again_but_not_by_the_same_job(home: Home) -> None:
    spec = EvaluateSpec((StoredFile(home.source.name, home.source.digest),), None, home.evaluate)
    run = assign(spec, home.bench("job_1"))
    assert run.result() == ()
    run.accept(Evaluated(0, CARD))
    assert run.result() == ("gloss:F16",)
    assert assign(spec, home.bench("job_1")).task is None
    assert assign(spec, home.bench("job_2")).task is not None
    with pytest.raises(Conflict, match="another file"):
        assign(replace(spec, variants=(StoredFile("gloss:F16", digest_of(b"x")),)), home.bench())
    with pytest.raises(InvalidParameter):
        assign(replace(spec, variants=()), home.bench())


def test_a_calibration_keeps_its_checkpoint_until_it_has_landed(home: Home) -> None:
    spec = CalibrateSpec(home.source.name, home.source.digest, home.calibrate)
    bench = home.bench()
    run = assign(spec, bench)
    checkpoint = Path(run.task.steps[0].checkpoint)
    assert checkpoint in bench.derived
    checkpoint.write_bytes(b"so far")
    assert assign(spec, home.bench("job_2")).task.steps[0].checkpoint == str(checkpoint)
    digest = calibrated(home, run)
    assert not checkpoint.exists()
    assert run.result() == (digest,)
    other = replace(spec, options=replace(home.calibrate, process_output=True))
    assert assign(other, home.bench()).task is not None
    with pytest.raises(InvalidParameter):
        assign(replace(spec, options=None), home.bench())
    with pytest.raises(BlobNotFound, match="dataset gone"):
        assign(replace(spec, options=CalibrateOptions(DatasetRef("gone", digest_of(b"gone")))), home.bench())


def budget(home: Home, **more: object) -> BudgetSpec:
    search = SearchOptions(home.dataset("calibration"))
    return BudgetSpec(home.source.name, home.source.digest, Target(size_bytes=1000), search, **more)


def found(spec: BudgetSpec) -> dict[str, object]:
    recipe = Recipe("Q4_K_M", overrides=(TypeOverride("^blk", "Q6_K"),))
    return {"recipe": recipe, "search": SearchReport(spec.target, 900, 0.1, "calibration", 1, 2, 3.0, "measured")}


def test_a_mix_takes_a_name_that_is_free(home: Home) -> None:
    spec = budget(home)
    taken = []
    for content in (b"one mix", b"another", b"another", b"a third"):
        run = assign(spec, home.bench(f"job_{content.decode()}"))
        (step,) = run.task.steps
        assert isinstance(step, SearchStep)
        made(home, run, 0, content, **found(spec))
        taken += run.result()
    assert taken == ["gloss:mix-Q4_K_M", "gloss:mix-2-Q4_K_M", "gloss:mix-2-Q4_K_M", "gloss:mix-3-Q4_K_M"]
    mix = home.stores.catalog.resolve("gloss:mix-Q4_K_M")
    assert (mix.lineage.recipe, mix.lineage.search) == tuple(found(spec).values())


def test_a_mix_that_was_found_before_the_crash_is_not_searched_again(home: Home) -> None:
    spec = budget(home, calibrate=home.calibrate, evaluate=home.evaluate)
    first = assign(spec, home.bench())
    assert names(first) == ["importance matrix", "search", "evaluate F16", "evaluate mix"]
    matrix = calibrated(home, first)
    made(home, first, 1, b"a mix", **found(spec))
    assert home.stores.catalog.resolve(first.result()[0]).lineage.recipe.importance_matrix == matrix
    second = assign(spec, home.bench(done=first.result()))
    assert names(second) == names(first)
    assert [type(step) for step in second.task.steps] == [EvaluateStep, EvaluateStep]
    assert second.result() == first.result()
    assert isinstance(assign(spec, home.bench("job_2")).task.steps[0], SearchStep)


def test_sensitivities_depend_on_the_matrix(home: Home) -> None:
    plain = assign(budget(home), home.bench()).task.steps[0]
    with_matrix = assign(budget(home, calibrate=home.calibrate), home.bench()).task.steps[1]
    assert plain.known != with_matrix.known
    assert plain.logits == with_matrix.logits


def test_a_mix_of_a_lossy_source_needs_permission(home: Home) -> None:
    lossy = home.add(b"lossy", "Q4_1", Lineage("imported"))
    spec = replace(budget(home), source_name=lossy.name, source_digest=lossy.digest)
    with pytest.raises(LossySource):
        assign(spec, home.bench())
    allowed = assign(replace(spec, recipe=Recipe(allow_requantize=True)), home.bench())
    assert allowed.task.steps[0].recipe.allow_requantize


def test_a_rebuild_follows_the_recipe_and_compares(home: Home) -> None:
    lineage = Lineage("quantized", home.source.digest, home.source.name, Recipe("Q8_0"), "llama.cpp 0")
    variant = home.add(b"level 8", "Q8_0", lineage)
    spec = RebuildSpec(StoredFile(variant.name, variant.digest))
    run = assign(spec, home.bench())
    (step,) = run.task.steps
    assert (step.recipe, step.expected_bytes) == (Recipe("Q8_0"), len(b"level 8"))
    with pytest.raises(DigestMismatch, match=r"llama\.cpp 0, and again by llama\.cpp 1"):
        made(home, run, 0, b"level ?")
    assert run.result() == ()
    home.stores.catalog.mark_corrupt(variant.digest, True)
    made(home, run, 0, b"level 8")
    assert run.result() == ("gloss:Q8_0",)
    assert not home.stores.catalog.resolve("gloss:Q8_0").corrupt
    with pytest.raises(Conflict, match="imported"):
        assign(RebuildSpec(StoredFile(home.source.name, home.source.digest)), home.bench())
