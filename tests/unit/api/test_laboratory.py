"""Quantize, calibrate, evaluate, rebuild: what each body asks the job runner for, on a real store and queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.domain.datasets import DatasetRef
from service.domain.errors import Conflict
from service.domain.evaluation import Target
from service.domain.importance import ImportanceFacts
from service.domain.jobs import (
    BudgetSpec,
    CalibrateOptions,
    CalibrateSpec,
    EvaluateOptions,
    EvaluateSpec,
    JobStatus,
    QuantizeSpec,
    RebuildSpec,
    SearchOptions,
    Step,
    StepsBack,
    StoredFile,
)
from service.domain.recipes import MetadataOverride, Recipe, TypeOverride
from service.domain.steps_back import Bound
from service.store.datasets import enter_built_in

NO_DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def built_in(api):
    """The built-in datasets by name."""
    enter_built_in(api.blobs, api.services.laboratory)
    return {dataset.name: DatasetRef(dataset.name, dataset.digest) for dataset in api.services.laboratory.datasets()}


@pytest.fixture
def asked(api, monkeypatch):
    """The specs that the runner gets; it queues each as it is."""
    specs = []

    async def submit(spec):
        specs.append(spec)
        return api.queue.enqueue(spec, [Step("one")])[0]

    for kind in ("quantize", "calibrate", "evaluate", "budget", "rebuild"):
        monkeypatch.setattr(api.services.jobs, f"submit_{kind}", submit)
    return specs


@pytest.fixture
def matrix(api):
    """A stored importance matrix of gloss."""
    content = b"a matrix"
    source = api.catalog.resolve("gloss:F16")
    digest = api.put(content)
    facts = ImportanceFacts(2, 512, ("calibration",), ())
    return api.services.laboratory.add_importance_matrix(
        source.model, digest, len(content), facts, made_from="x", source_digest=source.digest
    )


async def accepted(client, path, **body):
    answer = await client.post(path, json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()


async def refused(client, path, **body):
    answer = await client.post(path, json=body)
    assert answer.status_code >= 400, answer.text
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# --- quantize ----------------------------------------------------------------------------------------------------


async def test_quantize_is_a_job(client):
    job = await accepted(client, "/v1/quantize", model="gloss:f16", to=["q4_k"])
    assert (job["kind"], job["model"], job["levels"]) == ("quantize", "gloss:F16", ["Q4_K_M"])
    again = await accepted(client, "/v1/quantize", model="gloss:F16", to=["Q4_K_M"])
    assert again["id"] == job["id"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "gloss:F16", "to": ["Q9_X"]}, 400, "unknown_quantization"),
        ({"model": "gloss:F16", "to": []}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": "Q4_K_M"}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": ["IQ1_S"]}, 400, "importance_matrix_required"),
        ({"model": "gloss:Q8_0", "to": ["Q4_K_M"]}, 400, "lossy_source"),
        ({"model": "none", "to": ["Q4_K_M"]}, 404, "model_not_found"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "threads": 0}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "quantise": True}, 400, "invalid_parameter"),
        ({"model": "gloss:F16"}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "target": {"size": 5}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "search": {}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"keep": "all"}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"max_kld": 0}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"max_kld": 1}, "target": {"size": 5}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"max_kld": 1}, "search": {}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"max_kld": 1}, "evaluate": {"dataset": None}}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "until": {"max_kld": 1}}, 404, "dataset_not_found"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "evaluate": True}, 404, "dataset_not_found"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "imatrix": NO_DIGEST}, 404, "importance_matrix_not_found"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "recipe": "gloss:F16"}, 400, "invalid_parameter"),
        ({"model": "gloss:F16", "to": ["Q4_K_M"], "recipe": "gloss:Q2_K"}, 404, "model_not_found"),
    ],
)
async def test_a_quantize_that_cannot_be_is_refused(client, body, status, code):
    answer = await client.post("/v1/quantize", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_every_option_of_the_quantizer_reaches_the_job(client, asked):
    recipe = {
        "pure": True,
        "output_type": "q8_0",
        "token_embedding_type": "Q6_K",
        "overrides": [{"pattern": "ffn_down", "type": "q5_k"}],
        "metadata": {"general.name": "mine", "a.b": 3, "c": 0.5, "d": True},
        "prune_layers": [3, 1, 3],
    }
    body = {"to": ["Q8_0", "q4_k"], "recipe": recipe, "flavour": "hq", "allow_requantize": True, "threads": 2}
    await accepted(client, "/v1/quantize", model="gloss", **body)
    (spec,) = asked
    assert isinstance(spec, QuantizeSpec)
    assert (spec.source_name, spec.levels, spec.flavour, spec.threads) == ("gloss:F16", ("Q8_0", "Q4_K_M"), "hq", 2)
    assert spec.recipe == Recipe(
        allow_requantize=True,
        pure=True,
        output_type="Q8_0",
        token_embedding_type="Q6_K",
        overrides=(TypeOverride("ffn_down", "Q5_K"),),
        metadata=(
            MetadataOverride("a.b", 3), MetadataOverride("c", 0.5), MetadataOverride("d", True),
            MetadataOverride("general.name", "mine"),
        ),
        prune_layers=(1, 3),
    )  # fmt: skip
    assert (spec.calibrate, spec.evaluate) == (None, None)


async def test_a_bound_needs_no_levels_and_measures_what_it_needs(client, asked, built_in):
    await accepted(client, "/v1/quantize", model="gloss", until={"max_kld": 0.05})
    bound = {"max_perplexity_ratio": 1.02, "min_same_top": 0.9, "keep": "all"}
    await accepted(client, "/v1/quantize", model="gloss", to=["q8_0"], until=bound, evaluate={"chunks": 2})
    unnamed, named = asked
    assert (unnamed.levels, unnamed.until) == ((), StepsBack(Bound(max_kld=0.05)))
    assert unnamed.evaluate == EvaluateOptions(built_in["evaluation"], speed=False)
    assert (named.levels, named.until) == (("Q8_0",), StepsBack(Bound(None, 1.02, 0.9), "all"))
    assert named.evaluate == EvaluateOptions(built_in["evaluation"], chunks=2)


async def test_levels_for_a_bound_are_queued_and_planned_largest_first(client, built_in):
    body = {"model": "gloss:F16", "to": ["q4_k", "Q8_0"], "until": {"max_kld": 0.05}}
    job = await accepted(client, "/v1/quantize", **body)
    assert job["levels"] == ["Q8_0", "Q4_K_M"]
    assert [step["name"] for step in job["steps"]][-2:] == ["Q4_K_M", "evaluate Q4_K_M"]
    answer = await client.post("/v1/quantize", json={**body, "dry_run": True})
    assert [plan["quantization"] for plan in answer.json()["data"]] == ["Q8_0", "Q4_K_M"]
    answer = await client.post("/v1/quantize", json={"model": "gloss:F16", "until": {"max_kld": 1}, "dry_run": True})
    assert (answer.status_code, answer.json()["data"]) == (200, []), "this source is smaller than any plan"


@pytest.mark.parametrize(
    ("recipe", "param"),
    [
        ({"output_type": "Q9"}, "recipe.output_type"),
        ({"overrides": [{"pattern": "((", "type": "Q8_0"}]}, "recipe.overrides.0.pattern"),
        ({"overrides": [{"pattern": "x"}]}, "recipe.overrides[0].type"),
        ({"metadata": {"general.architecture": "x"}}, "recipe.metadata"),
        ({"metadata": {"a": []}}, "recipe.metadata.a"),
        ({"metadata": {"a": 1 << 32}}, "recipe.metadata"),
        ({"metadata": {"a": -1}}, "recipe.metadata"),
        ({"metadata": {"a": 1e39}}, "recipe.metadata"),
        ({"metadata": {"a": "x" * 128}}, "recipe.metadata.a"),
        ({"metadata": {"a b": 1}}, "recipe.metadata.a b"),
        ({"prune_layers": [-1]}, "recipe.prune_layers[0]"),
        ({"keep_output": True, "output_type": "F16"}, "recipe.keep_output"),
        ({"nothing": 1}, "recipe.nothing"),
        (7, "recipe"),
    ],
)
async def test_a_recipe_that_no_model_can_have_is_refused_by_its_field(client, recipe, param):
    status, code, at = await refused(client, "/v1/quantize", model="gloss:F16", to=["Q4_K_M"], recipe=recipe)
    assert (status, code, at) == (400, "invalid_parameter", param)


async def test_the_recipe_of_a_variant_is_taken_by_its_name(client, api, asked):
    source = api.catalog.resolve("gloss:F16")
    made = api.add("gloss:hq", "Q4_K_M", source=source, recipe=Recipe("Q4_K_M", pure=True, importance_matrix=NO_DIGEST))
    await accepted(client, "/v1/quantize", model="gloss:F16", to=["Q5_0"], recipe=made.name)
    assert asked[-1].recipe == Recipe(pure=True, importance_matrix=NO_DIGEST)


async def test_an_importance_matrix_is_computed_or_taken(client, api, asked, built_in, matrix):
    body = {"model": "gloss:F16", "to": ["IQ1_S"]}
    for wish, calibrate, digest in (
        ("auto", CalibrateOptions(built_in["calibration"]), None),
        ({"chunks": 3, "dataset": "Evaluation"}, CalibrateOptions(built_in["evaluation"], chunks=3), None),
        (matrix.digest, None, matrix.digest),
        (None, None, None),
    ):
        await accepted(client, "/v1/quantize", **body, imatrix=wish)
        assert (asked[-1].calibrate, asked[-1].recipe.importance_matrix) == (calibrate, digest)


async def test_what_to_measure_is_looked_up(client, asked, built_in):
    body = {"model": "gloss:F16", "to": ["Q4_K_M"]}
    await accepted(client, "/v1/quantize", **body, evaluate=True)
    assert asked[-1].evaluate == EvaluateOptions(text=built_in["evaluation"])
    wish = {"dataset": None, "tasks": ["words", "words"], "speed": False}
    await accepted(client, "/v1/quantize", **body, evaluate=wish)
    assert asked[-1].evaluate == EvaluateOptions(text=None, tasks=(built_in["words"],), speed=False)


@pytest.mark.parametrize(
    ("field", "wish", "param"),
    [
        ("evaluate", {"dataset": "words"}, "evaluate.dataset"),
        ("evaluate", {"tasks": ["calibration"]}, "evaluate.tasks"),
        ("evaluate", {"dataset": None, "speed": False}, "evaluate"),
        ("evaluate", {"window": 3}, "evaluate.window"),
        ("imatrix", {"dataset": "words"}, "imatrix.dataset"),
        ("imatrix", {"window": 63}, "imatrix.window"),
        ("flavour", "a b", "flavour"),
    ],
)
async def test_a_wish_that_cannot_be_met_is_refused_by_its_field(client, built_in, field, wish, param):
    body = {"model": "gloss:F16", "to": ["Q4_K_M"], field: wish}
    assert await refused(client, "/v1/quantize", **body) == (400, "invalid_parameter", param)


async def test_a_dataset_that_is_not_there_is_a_404_with_its_field(client, built_in):
    body = {"model": "gloss:F16", "to": ["Q4_K_M"], "imatrix": {"dataset": "calibrations"}}
    assert await refused(client, "/v1/quantize", **body) == (404, "dataset_not_found", "imatrix.dataset")


# --- budgets -----------------------------------------------------------------------------------------------------


async def test_a_budget_is_a_search(client, asked, built_in):
    search = {"types": ["q4_k", "iq4_nl", "Q4_K"], "guide": "estimated", "max_seconds": 60, "chunks": 8}
    body = {"model": "gloss", "target": {"size": "3.5 KiB", "min_speed": 20}, "search": search, "imatrix": "auto"}
    job = await accepted(client, "/v1/quantize", **body, evaluate=True)
    assert (job["kind"], job["model"], job["levels"]) == ("budget", "gloss:F16", [])
    (spec,) = asked
    assert isinstance(spec, BudgetSpec)
    assert spec.target == Target(size_bytes=3584, min_speed=20)
    assert spec.search == SearchOptions(
        built_in["calibration"], chunks=8, types=("Q4_K", "IQ4_NL"), guide="estimated", max_seconds=60
    )
    assert spec.calibrate == CalibrateOptions(built_in["calibration"])
    assert spec.evaluate == EvaluateOptions(built_in["evaluation"])
    assert spec.flavour == "mix"


@pytest.mark.parametrize(
    ("target", "param"),
    [
        ({}, "target"),
        ({"size": None}, "target"),
        ({"size": 0}, "target.size"),
        ({"size": "much"}, "target.size"),
        ({"size": "0GiB"}, "target.size"),
        ({"size": 1.5}, "target.size"),
        ({"bits_per_weight": 0}, "target.bits_per_weight"),
        ({"max_kld": -1}, "target.max_kld"),
        ({"speed": 3}, "target.speed"),
        (5, "target"),
    ],
)
async def test_a_budget_that_is_none_is_refused_by_its_field(client, built_in, target, param):
    assert await refused(client, "/v1/quantize", model="gloss", target=target) == (400, "invalid_parameter", param)


# --- calibrate ---------------------------------------------------------------------------------------------------


async def test_calibrate_computes_reads_or_merges(client, api, asked, built_in):
    job = await accepted(client, "/v1/calibrate", model="gloss")
    assert (job["kind"], job["model"]) == ("calibrate", "gloss:F16")
    await accepted(client, "/v1/calibrate", model="gloss:Q8_0", dataset=None, include=[NO_DIGEST], threads=1)
    source, lossy = api.catalog.resolve("gloss:F16"), api.catalog.resolve("gloss:Q8_0")
    assert asked == [
        CalibrateSpec(source.name, source.digest, CalibrateOptions(built_in["calibration"])),
        CalibrateSpec(lossy.name, lossy.digest, None, (NO_DIGEST,), 1),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"dataset": None}, None), ({"dataset": "words"}, "dataset"), ({"include": ["x"]}, "include[0]")],
)
async def test_a_calibration_of_nothing_is_refused(client, built_in, fields, param):
    assert await refused(client, "/v1/calibrate", model="gloss", **fields) == (400, "invalid_parameter", param)


# --- evaluate ----------------------------------------------------------------------------------------------------


async def test_a_bare_name_measures_every_variant_of_the_model(client, api, asked, built_in):
    broken = api.add("gloss", "Q2_K", source=api.catalog.resolve("gloss:F16"))
    api.catalog.mark_corrupt(broken.digest, True)
    job = await accepted(client, "/v1/evaluate", model="gloss")
    assert (job["kind"], job["model"], job["levels"]) == ("evaluate", "gloss", ["F16", "Q8_0"])
    (spec,) = asked
    assert isinstance(spec, EvaluateSpec)
    assert [file.name for file in spec.variants] == ["gloss:F16", "gloss:Q8_0"]
    assert spec.base is not None
    assert spec.base.name == "gloss:F16"
    assert spec.options == EvaluateOptions(built_in["evaluation"])


async def test_variants_are_held_to_what_they_were_made_from(client, api, asked, built_in):
    chat = api.add("gloss:chat", "F16", content=b"another source")
    made = api.add("gloss:chat", "Q4_K_M", source=chat)
    await accepted(client, "/v1/evaluate", model=[made.name, made.name], speed=False)
    assert asked[-1].variants == (StoredFile(made.name, made.digest),)
    assert asked[-1].base == StoredFile(chat.name, chat.digest)
    await accepted(client, "/v1/evaluate", model=made.name, base="gloss:F16")
    assert asked[-1].base.name == "gloss:F16"
    api.catalog.mark_corrupt(chat.digest, True)
    await accepted(client, "/v1/evaluate", model=made.name)
    assert asked[-1].base.name == made.name  # the only one left of that flavour: nothing to hold it to


async def test_variants_of_two_models_are_two_requests(client, api, built_in):
    api.add("other", "F16")
    body = {"model": ["gloss:F16", "other:F16"]}
    assert await refused(client, "/v1/evaluate", **body) == (400, "invalid_parameter", "model")
    assert await refused(client, "/v1/evaluate", model="none") == (404, "model_not_found", "model")
    assert await refused(client, "/v1/evaluate", model="gloss", base="none") == (404, "model_not_found", "base")
    assert await refused(client, "/v1/evaluate", model=[]) == (400, "invalid_parameter", "model")
    empty = {"dataset": None, "speed": False}
    assert await refused(client, "/v1/evaluate", model="gloss", **empty) == (400, "invalid_parameter", None)


# --- rebuild -----------------------------------------------------------------------------------------------------


async def test_rebuild_is_a_job_with_or_without_a_body(client, api, asked):
    variant = api.catalog.resolve("gloss:Q8_0")
    job = await accepted(client, "/v1/variants/gloss:q8_0/rebuild", threads=2)
    assert (job["kind"], job["model"], job["levels"]) == ("rebuild", "gloss:Q8_0", [])
    assert (await client.post("/v1/variants/gloss:q8_0/rebuild")).status_code == 202
    file = StoredFile(variant.name, variant.digest)
    assert asked == [RebuildSpec(file, 2), RebuildSpec(file)]


async def test_what_was_imported_cannot_be_rebuilt(client):
    assert await refused(client, "/v1/variants/gloss:F16/rebuild") == (409, "conflict", "model")


async def test_a_job_with_nothing_left_to_do_is_a_200(client, api, monkeypatch):
    source = api.catalog.resolve("gloss:F16")
    job, _ = api.queue.enqueue(CalibrateSpec(source.name, source.digest, None, (NO_DIGEST,)), [Step("x")])

    async def submit(_spec):
        return replace(job, status=JobStatus.SUCCEEDED)

    monkeypatch.setattr(api.services.jobs, "submit_calibrate", submit)
    answer = await client.post("/v1/calibrate", json={"model": "gloss", "dataset": None, "include": [NO_DIGEST]})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


async def test_a_refusal_of_the_runner_is_the_answer(client, api, monkeypatch, built_in):
    async def submit(_spec):
        raise Conflict("Not so; do it otherwise.", param="model")

    monkeypatch.setattr(api.services.jobs, "submit_evaluate", submit)
    assert await refused(client, "/v1/evaluate", model="gloss") == (409, "conflict", "model")
