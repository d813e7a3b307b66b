"""Jobs of the laboratory with the real store and the real llama.cpp: matrices, cards, mixes, rebuilds."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from service.domain.datasets import DatasetKind
from service.domain.errors import (
    BlobNotFound,
    Conflict,
    ImportanceMatrixNotFound,
    NameTaken,
    QuantizationNotApplicable,
)
from service.domain.evaluation import Target
from service.domain.jobs import (
    BudgetSpec,
    CalibrateOptions,
    CalibrateSpec,
    EvaluateOptions,
    EvaluateSpec,
    JobStatus,
    MadeFile,
    RebuildSpec,
    SearchOptions,
    StoredFile,
)
from service.domain.names import parse_ref
from service.domain.recipes import Recipe, TypeOverride
from service.quantization.importance import Entry, Importance
from service.quantization.importance_files import write_importance
from service.store.datasets import store_dataset

WINDOW, CHUNKS = 128, 4


def few(home, **more) -> EvaluateOptions:
    return EvaluateOptions(home.dataset("evaluation"), window=WINDOW, chunks=CHUNKS, speed=False, **more)


def calibrating(home, chunks: int = CHUNKS) -> CalibrateOptions:
    return CalibrateOptions(home.dataset("calibration"), window=WINDOW, chunks=chunks)


def stored(variant) -> StoredFile:
    return StoredFile(variant.name, variant.digest)


def uploaded(home, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with home.blobs.open_upload(digest, len(data)) as upload:
        upload.write(data)
        upload.finish()
    home.catalog.add_blob(digest, len(data))
    return digest


async def calibrated(home, source, **more) -> str:
    spec = CalibrateSpec(source.name, source.digest, calibrating(home), threads=1, **more)
    job = await home.ended(await home.runner.submit_calibrate(spec))
    assert job.error is None
    (digest,) = job.result
    return digest


async def test_a_matrix_is_computed_once_kept_and_found_again(home, source):
    digest = await calibrated(home, source)
    matrix = home.laboratory.importance_matrix(digest)
    assert (matrix.model, matrix.source_digest) == ("gloss", source.digest)
    assert matrix.dataset_digest == home.dataset("calibration").digest
    assert (matrix.facts.chunks, matrix.facts.chunk_tokens) == (CHUNKS, WINDOW)
    assert home.blobs.verify(digest)
    again = await home.runner.submit_calibrate(CalibrateSpec(source.name, source.digest, calibrating(home)))
    assert again.steps[0].detail == "already there"
    assert (await home.ended(again)).result == (digest,)
    assert (home.incoming(), os.listdir(home.derived.root)) == ([], []), "the checkpoint is gone"


async def test_matrices_are_merged_and_that_of_another_model_is_refused_by_its_tensors(home, source, tmp_path):
    one = await calibrated(home, source)
    spec = CalibrateSpec(source.name, source.digest, calibrating(home, chunks=2), include=(one,), threads=1)
    job = await home.ended(await home.runner.submit_calibrate(spec))
    merged = home.laboratory.importance_matrix(job.result[0])
    assert merged.facts.chunks == CHUNKS + 2
    assert merged.dataset_digest is None
    entry = Entry(np.ones((1, 64), np.float32), np.ones(1, np.float32))
    write_importance(Importance({"blk.0.attn_q.weight": entry}, 1, 1, ()), tmp_path / "strange.gguf")
    strange = uploaded(home, (tmp_path / "strange.gguf").read_bytes())
    refused = CalibrateSpec(source.name, source.digest, None, include=(strange,))
    job = await home.ended(await home.runner.submit_calibrate(refused))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "invalid_parameter")
    assert "blk.0.attn_q.weight" in job.error.message
    no_matrix = replace(refused, include=(home.dataset("words").digest,))
    job = await home.ended(await home.runner.submit_calibrate(no_matrix))
    assert job.error.code == "invalid_model"
    with pytest.raises(BlobNotFound):
        await home.runner.submit_calibrate(replace(refused, include=("sha256:" + "0" * 64,)))


async def test_levels_with_a_matrix_and_cards_in_one_job(home, source):
    spec = home.levels(source, "Q2_K_S", "Q4_0", calibrate=calibrating(home), evaluate=few(home), threads=1)
    job = await home.runner.submit_quantize(spec)
    assert [step.name for step in job.steps] == [
        "importance matrix",
        "evaluate F16",
        "Q2_K_S",
        "evaluate Q2_K_S",
        "Q4_0",
        "evaluate Q4_0",
    ]
    events = [event async for event in home.runner.subscribe(job.id)]
    landed = [event.job.result for event in events if event.kind == "level"]
    assert landed[0] == ()
    assert landed[2:] == [("gloss:Q2_K_S",)] * 2 + [("gloss:Q2_K_S", "gloss:Q4_0")] * 2
    (matrix,) = home.laboratory.importance_matrices()
    variants = [home.catalog.resolve(name) for name in ("gloss:Q2_K_S", "gloss:Q4_0", "gloss:F16")]
    cards = home.laboratory.cards([variant.id for variant in variants])
    small, large, plain = (cards[variant.id] for variant in variants)
    assert variants[0].lineage.recipe == Recipe("Q2_K_S", importance_matrix=matrix.digest)
    assert plain.text.divergence is None
    assert small.text.divergence.base_name == "gloss:F16"
    assert small.text.divergence.mean_kld.value > large.text.divergence.mean_kld.value > 0
    assert (small.text.chunks, small.text.window, small.text.dataset) == (CHUNKS, WINDOW, "evaluation")
    assert home.incoming() == []
    again = await home.ended(await home.runner.submit_quantize(spec))
    assert {step.detail for step in again.steps} == {"already there", "already measured"}
    with pytest.raises(Conflict, match="gloss:Q2_K_S"):
        home.laboratory.delete_importance_matrix(matrix.digest)


async def test_a_recipe_is_planned_before_it_is_queued_and_followed_to_the_byte(home, source):
    recipe = Recipe(overrides=(TypeOverride("ffn_down", "Q6_K"),), token_embedding_type="Q8_0")
    (plan,) = await home.runner.plan(source, [replace(recipe, quantization="Q4_K_M")])
    spec = home.levels(source, "Q4_K_M", recipe=recipe, flavour="mine")
    job = await home.ended(await home.runner.submit_quantize(spec))
    assert job.result == ("gloss:mine-Q4_K_M",)
    made = home.catalog.resolve("gloss:mine-Q4_K_M")
    assert (made.size_bytes, made.facts.types) == (plan.size_bytes, plan.types)
    assert {tensor.type for tensor in plan.tensors if "ffn_down" in tensor.name} == {"Q6_K"}
    with pytest.raises(QuantizationNotApplicable, match="no_such_tensor"):
        hopeless = Recipe(overrides=(TypeOverride("no_such_tensor", "Q6_K"),))
        await home.runner.submit_quantize(home.levels(source, "Q4_K_M", recipe=hopeless, flavour="other"))
    with pytest.raises(NameTaken, match="flavour"):
        await home.runner.submit_quantize(home.levels(source, "Q4_K_M", recipe=Recipe(pure=True), flavour="mine"))
    with pytest.raises(ImportanceMatrixNotFound):
        matrix = Recipe(importance_matrix="sha256:" + "0" * 64)
        await home.runner.submit_quantize(home.levels(source, "Q4_K_M", recipe=matrix, flavour="other"))


async def test_a_plan_knows_what_a_matrix_changes_and_is_made_once(home, source, monkeypatch):
    recipes = [Recipe("Q2_K"), Recipe("IQ2_XXS")]
    without = await home.runner.plan(source, recipes)
    with monkeypatch.context() as patched:
        patched.delattr(asyncio, "create_subprocess_exec")
        assert await home.runner.plan(source, recipes) == without, "no child was asked again"
    with_matrix = await home.runner.plan(source, recipes, has_importance=True)
    assert [plan.quantization for plan in with_matrix] == ["Q2_K", "IQ2_XXS"]
    assert with_matrix[1].needs_imatrix


async def test_variants_are_measured_against_their_source_and_a_task_is_scored(home, source):
    await home.ended(await home.runner.submit_quantize(home.levels(source, "Q8_0", "Q2_K", threads=1)))
    question = b'{"prompt": "What does \\"horse\\" mean?", "expected": "Horse (noun): solid-hoofed herbivorous '
    question += b'quadruped domesticated since prehistoric times."}\n'
    store_dataset(home.blobs, home.laboratory, "horses", DatasetKind.TASK, question)
    variants = [home.catalog.resolve(name) for name in ("gloss:Q2_K", "gloss:Q8_0", "gloss:F16")]
    options = few(home, tasks=(home.dataset("horses"),))
    spec = EvaluateSpec(tuple(map(stored, variants)), stored(source), options, threads=1)
    job = await home.ended(await home.runner.submit_evaluate(spec))
    assert job.error is None
    assert job.result == ("gloss:Q2_K", "gloss:Q8_0", "gloss:F16")
    assert [step.name for step in job.steps] == ["evaluate F16", "evaluate Q2_K", "evaluate Q8_0"]
    cards = home.laboratory.cards([variant.id for variant in variants])
    perplexities = [cards[variant.id].text.perplexity.value for variant in variants]
    assert perplexities[0] > perplexities[2]
    (score,) = cards[source.id].tasks
    assert (score.task, score.total) == ("horses", 1)
    again = await home.ended(await home.runner.submit_evaluate(spec))
    assert len(home.laboratory.evaluations(source.id)) == 2, "who asks again gets it measured again"
    assert again.error is None


async def test_a_text_that_is_too_short_says_how_much_is_needed(home, source):
    store_dataset(home.blobs, home.laboratory, "short", DatasetKind.TEXT, b"Too short to say anything.")
    spec = CalibrateSpec(source.name, source.digest, CalibrateOptions(home.dataset("short")))
    job = await home.ended(await home.runner.submit_calibrate(spec))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "invalid_parameter")
    assert "512" in job.error.message
    assert home.laboratory.importance_matrices() == []


async def test_a_mix_within_a_budget_is_found_made_measured_and_made_again(home, source):
    plans = {plan.quantization: plan for plan in home.catalog.plans(source.digest)}
    target = Target(size_bytes=plans["Q4_K_M"].size_bytes)
    search = SearchOptions(
        home.dataset("calibration"), window=WINDOW, chunks=2, types=("Q4_K", "Q6_K"), guide="estimated", max_seconds=3
    )
    spec = BudgetSpec(source.name, source.digest, target, search, evaluate=few(home), threads=1)
    job = await home.ended(await home.runner.submit_budget(spec))
    assert job.error is None
    (name,) = job.result
    mix = home.catalog.resolve(name)
    assert mix.flavour == "mix"
    assert mix.size_bytes <= target.size_bytes
    assert mix.lineage.search.target == target
    assert mix.lineage.recipe.overrides
    assert home.laboratory.cards([mix.id])[mix.id].text.divergence.mean_kld.value > 0
    job = await home.ended(await home.runner.submit_rebuild(RebuildSpec(stored(mix))))
    assert (job.error, job.result) == (None, (name,))


async def test_a_rebuild_confirms_the_digest_and_mends_a_damaged_blob(home, source):
    digest = await calibrated(home, source)
    recipe = Recipe(importance_matrix=digest)
    await home.ended(await home.runner.submit_quantize(home.levels(source, "Q4_0", recipe=recipe)))
    made = home.catalog.resolve("gloss:Q4_0")
    path = home.blobs.path(made.digest)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    home.catalog.mark_corrupt(made.digest, True)
    job = await home.ended(await home.runner.submit_rebuild(RebuildSpec(stored(made))))
    assert (job.error, job.result) == (None, ("gloss:Q4_0",))
    assert home.blobs.verify(made.digest)
    assert not home.catalog.resolve("gloss:Q4_0").corrupt
    with pytest.raises(Conflict, match="imported"):
        await home.runner.submit_rebuild(RebuildSpec(stored(source)))
    home.catalog.delete(parse_ref("gloss:F16"))
    home.blobs.sweep(home.catalog.referenced_digests(), 0.0)
    with pytest.raises(BlobNotFound, match="import the same file"):
        await home.runner.submit_rebuild(RebuildSpec(stored(made)))


async def test_a_rebuild_that_comes_out_different_says_so_and_changes_nothing(home, source):
    await home.ended(await home.runner.submit_quantize(home.levels(source, "Q4_0", "Q8_0")))
    made = home.catalog.resolve("gloss:Q4_0")
    # As if another llama.cpp had made it: the recipe of one level with the bytes of the other.
    other = home.catalog.resolve("gloss:Q8_0")
    home.catalog.delete(parse_ref("gloss:Q4_0"))
    facts = replace(other.facts, quantization="Q4_0")
    lied = home.catalog.add_variant(
        (source.model, ""), MadeFile("", other.digest, other.size_bytes, facts), made.lineage
    )
    job = await home.ended(await home.runner.submit_rebuild(RebuildSpec(stored(lied))))
    assert (job.status, job.error.code, job.result) == (JobStatus.FAILED, "digest_mismatch", ())
    assert home.catalog.resolve("gloss:Q4_0").digest == other.digest
    assert home.blobs.verify(other.digest)


async def test_a_cancel_leaves_nothing_of_a_calibration_behind(home, source):
    spec = CalibrateSpec(source.name, source.digest, replace(calibrating(home), chunks=None), threads=1)
    job = await home.runner.submit_calibrate(spec)
    await home.under_way(job, 0)
    cancelled = await home.runner.cancel(job.id)
    assert cancelled.status is JobStatus.CANCELLED
    assert (home.incoming(), os.listdir(home.derived.root)) == ([], [])
    assert home.laboratory.importance_matrices() == []
