"""The laboratory against a running server with a real model: what its routes promise is what comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server, stocked

TASK = b'{"prompt": "What does \\"horse\\" mean?", "expected": "Horse (noun): solid-hoofed herbivorous quadruped \
domesticated since prehistoric times."}\n{"prompt": "What does \\"axiom\\" mean?", "expected": "no such thing"}\n'
FEW = {"chunks": 2, "window": 128}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """With gloss at F16, and a task of two questions."""
    server = Server(stocked(tmp_path_factory.mktemp("laboratory") / "home", gloss_home), {}).start()
    assert server.client.put("/v1/datasets/questions?kind=task", content=TASK).status_code == 201
    yield server
    server.close()


def done(server: Server, path: str, **body: Any) -> Any:
    answer = server.client.post(path, json=body)
    assert answer.status_code in (200, 202), answer.text
    job = server.wait_for_job(answer.json()["id"])
    assert job["status"] == "succeeded", job
    return job


def plan(server: Server, **body: Any) -> Any:
    asked = {"model": "gloss", "dry_run": True, **body}
    return server.json("POST", "/v1/quantize", 200, asked)["data"]


def test_a_level_with_options_is_the_one_that_was_planned_and_is_made_again_the_same(server: Server) -> None:
    options: dict[str, Any] = {
        "to": ["Q4_K_M"],
        "imatrix": {**FEW},
        "recipe": {
            "output_type": "Q8_0",
            "overrides": [{"pattern": r"blk\.0\.ffn_down", "type": "Q6_K"}],
            "metadata": {"general.name": "a mix of mine"},
        },
        "flavour": "mine",
    }
    (planned,) = plan(server, **options, tensors=True)
    assert planned["error"] is None
    types = {tensor["name"]: tensor["type"] for tensor in planned["tensors"]}
    assert types["blk.0.ffn_down.weight"] == "Q6_K"
    job = done(server, "/v1/quantize", model="gloss", evaluate={**FEW, "tasks": ["questions"]}, **options)
    assert job["result"] == ["gloss:mine-Q4_K_M"]
    variant = server.json("GET", "/v1/variants/gloss:mine-Q4_K_M", 200)
    assert variant["size_bytes"] == planned["size_bytes"]
    recipe = variant["lineage"]["recipe"]
    assert recipe["overrides"] == options["recipe"]["overrides"]
    assert recipe["metadata"] == options["recipe"]["metadata"]

    card = variant["card"]
    assert (card["text"]["dataset"], card["text"]["chunks"], card["text"]["tokens"]) == ("evaluation", 2, 126)
    assert card["text"]["divergence"]["base_name"] == "gloss:F16"
    assert 0 < card["text"]["divergence"]["mean_kld"]["value"] < 0.1
    assert 0.5 < card["text"]["divergence"]["same_top"]["value"] <= 1
    assert card["speed"]["generation_tokens_per_second"] > 0
    assert [(score["task"], score["correct"], score["total"]) for score in card["tasks"]] == [("questions", 1, 2)]
    assert variant["reference"]["perplexity_added_7b"] == 0.0535  # published, and apart

    (matrix,) = server.json("GET", "/v1/importance-matrices?model=gloss", 200)["data"]
    assert matrix["digest"] == recipe["importance_matrix"]
    rebuilt = done(server, "/v1/variants/gloss:mine-Q4_K_M/rebuild", threads=1)
    assert rebuilt["result"] == ["gloss:mine-Q4_K_M"]
    refused = server.json("DELETE", f"/v1/importance-matrices/{matrix['digest']}", 409)
    assert "gloss" in refused["error"]["message"]


def test_an_importance_matrix_goes_out_and_comes_in_again(server: Server) -> None:
    job = done(server, "/v1/calibrate", model="gloss", **FEW, process_output=True)
    (digest,) = job["result"]
    shown = server.json("GET", f"/v1/importance-matrices/{digest}", 200)
    assert shown["tensors"] == len(shown["statistics"]) == 43
    assert (shown["chunks"], shown["datasets"], shown["source"]) == (2, ["calibration"], "gloss:F16")
    file = server.client.get(f"/v1/importance-matrices/{digest}?format=gguf").content
    assert file.startswith(b"GGUF")
    assert len(file) == shown["size_bytes"]
    assert done(server, "/v1/calibrate", model="gloss", **FEW, process_output=True)["result"] == [digest]
    (merged,) = done(server, "/v1/calibrate", model="gloss", dataset=None, include=[digest])["result"]
    twice = server.json("GET", f"/v1/importance-matrices/{merged}", 200)
    assert twice["statistics"][0]["mean"] == pytest.approx(shown["statistics"][0]["mean"], rel=1e-5)
    (plan_with,) = plan(server, to=["IQ2_S"], imatrix=digest)
    assert (plan_with["needs_imatrix"], plan_with["error"]) == (True, None)


def test_a_mix_keeps_to_its_budget_and_says_how_it_was_found(server: Server) -> None:
    job = done(
        server, "/v1/quantize", model="gloss", target={"size": "3.2MiB"}, imatrix={**FEW},
        search={"types": ["Q3_K", "Q4_K", "Q6_K"], "guide": "estimated", "max_seconds": 5, **FEW},
    )  # fmt: skip
    (name,) = job["result"]
    variant = server.json("GET", f"/v1/variants/{name}", 200)
    assert variant["size_bytes"] <= 3.2 * (1 << 20)
    search = variant["lineage"]["search"]
    assert search["size_bytes"] == variant["size_bytes"]
    assert search["target"]["size_bytes"] == int(3.2 * (1 << 20))
    assert set(search["types"]) <= {"F32", "Q3_K", "Q4_K", "Q6_K"}


def test_a_source_is_measured_too_and_answers_all_it_can(server: Server) -> None:
    job = done(server, "/v1/evaluate", model="gloss:F16", tasks=["questions"], speed=False, **FEW)
    assert (job["kind"], job["result"]) == ("evaluate", ["gloss:F16"])
    card = server.json("GET", "/v1/variants/gloss:F16", 200)["card"]
    assert card["text"]["divergence"] is None
    assert 20 < card["text"]["perplexity"]["value"] < 60
    assert card["tasks"][0]["correct"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        ("/v1/quantize", {"to": ["Q4_K_M"], "recipe": {"overrides": [{"pattern": "nowhere", "type": "Q8_0"}]}},
         400, "quantization_not_applicable", "nowhere"),
        ("/v1/quantize", {"to": ["IQ1_S"]}, 400, "importance_matrix_required", "importance matrix"),
        ("/v1/calibrate", {"dataset": "nothing"}, 404, "dataset_not_found", "calibration"),
        ("/v1/variants/gloss:F16/rebuild", {}, 409, "conflict", "imported"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(
    server: Server, path: str, body: Any, status: int, code: str, said: str
) -> None:
    sent = body if "rebuild" in path else {"model": "gloss", **body}
    error = server.json("POST", path, status, sent)["error"]
    assert error["code"] == code
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/calibrate", {"dataset": "short"}, "tokens"),
        ("/v1/quantize", {"target": {"size": 1000}, "search": {**FEW, "max_seconds": 5}}, "bytes"),
    ],
)
def test_what_only_the_work_can_tell_fails_the_job_with_what_is_needed(
    server: Server, path: str, body: Any, said: str
) -> None:
    server.client.put("/v1/datasets/short", content=b"Too short.")
    answer = server.client.post(path, json={"model": "gloss", **body})
    if answer.status_code == 202:
        job = server.wait_for_job(answer.json()["id"])
        assert job["status"] == "failed", job
        error = job["error"]
    else:
        error = answer.json()["error"]
    assert said in error["message"], json.dumps(error)
