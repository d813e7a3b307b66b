"""The commands of the laboratory against a scripted server: what they ask for, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import session as cli_session
from service.cli.client import Client
from service.cli.program import build

DIGEST = "sha256:" + "ab" * 32
JOB = {
    "id": "job_1", "object": "job", "kind": "evaluate", "status": "succeeded", "model": "gloss", "levels": ["Q4_K_M"],
    "progress": 1.0, "steps": [], "eta_seconds": None, "result": ["gloss:Q4_K_M"], "error": None, "attempts": 0,
    "created_at": "2026-01-01T00:00:00Z", "started_at": None, "finished_at": None,
}  # fmt: skip
ESTIMATE = {"value": 31.5, "error": 0.2}
DIVERGENCE = {
    "base_name": "gloss:F16", "base_digest": DIGEST, "base_perplexity": ESTIMATE, "log_perplexity_ratio": ESTIMATE,
    "mean_kld": {"value": 0.00653, "error": 0.0001}, "median_kld": 0.1, "p90_kld": 0.1, "p99_kld": 0.1, "p999_kld": 0.1,
    "max_kld": 0.1, "mean_dp": ESTIMATE, "rms_dp": ESTIMATE, "same_top": {"value": 0.9625, "error": 0.001},
}  # fmt: skip
CARD = {
    "machine": "a machine", "llama_build": "b1", "seconds": 3.0, "created_at": "2026-01-01T00:00:00Z",
    "text": {
        "dataset": "evaluation", "dataset_digest": DIGEST, "window": 512, "chunks": 47, "tokens": 12000,
        "perplexity": ESTIMATE, "divergence": DIVERGENCE,
    },
    "speed": {
        "threads": 2, "prompt_tokens": 512, "prompt_tokens_per_second": 1000.0, "generation_tokens": 64,
        "generation_tokens_per_second": 512.34, "memory_bytes": 1 << 20,
    },
    "tasks": [{"task": "words", "task_digest": DIGEST, "correct": 174, "total": 232}],
}  # fmt: skip
LINEAGE = {
    "origin": "quantized", "source": "gloss:F16", "source_digest": DIGEST, "recipe": None, "llama_build": None,
    "duration_seconds": None, "lossy_source": False,
}  # fmt: skip
VARIANT = {
    "name": "gloss:Q4_K_M", "aliases": [], "model": "gloss", "quantization": "Q4_K_M", "bits_per_weight": 5.05,
    "size_bytes": 3776928, "digest": DIGEST, "parameters": 1, "context_length": 512, "recommended": True,
    "advice": "medium", "reference": None, "measured": [], "card": CARD, "memory_bytes": 1, "loaded": False,
    "lossy": True, "corrupt": False, "lineage": LINEAGE, "created_at": "2026-01-01T00:00:00Z", "license": None,
}  # fmt: skip
MATRIX = {
    "digest": DIGEST, "model": "gloss", "size_bytes": 9, "source": "gloss:F16", "source_digest": DIGEST,
    "datasets": ["calibration"], "dataset_digest": None, "chunks": 2, "chunk_tokens": 512, "tensors": 1,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
TENSOR = {
    "name": "output.weight", "columns": 64, "experts": 1, "experts_without_data": 0, "total": 10.0, "mean": 0.5,
    "minimum": 0.0, "maximum": 2.0, "deviation": 0.25, "active": 0.75, "entropy": 3.5, "z_share": 0.1, "cosine": 0.9,
}  # fmt: skip
DATASET = {
    "name": "mine", "kind": "text", "digest": DIGEST, "size_bytes": 5, "built_in": False,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


class Scripted:
    """A server that notes what it is asked and answers from a table."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, request.read()
        is_json = request.headers.get("content-type") == "application/json"
        self.asked.append((request.method, path, json.loads(body) if is_json else body))
        if request.method == "HEAD":
            return httpx.Response(404)
        if path.startswith("/v1/blobs/"):
            return httpx.Response(201, json={"digest": path.rpartition("/")[2], "size_bytes": len(body)})
        if request.method == "DELETE":
            kind = "dataset" if "datasets" in path else "importance_matrix"
            return httpx.Response(200, json={"id": path.rpartition("/")[2], "object": kind})
        if path == "/v1/calibrate":
            return httpx.Response(202, json=JOB | {"kind": "calibrate", "result": [DIGEST]})
        if path.startswith("/v1/importance-matrices/"):
            if request.url.params.get("format") == "gguf":
                return httpx.Response(200, content=b"the file.")
            return httpx.Response(200, json=MATRIX | {"statistics": [TENSOR]})
        if path == "/v1/datasets/mine":
            return httpx.Response(200, text="hello") if request.method == "GET" else httpx.Response(201, json=DATASET)
        lists = {"/v1/importance-matrices": [MATRIX], "/v1/datasets": [DATASET], "/v1/variants": [VARIANT]}
        if path in lists:
            return httpx.Response(200, json={"object": "list", "data": lists[path], "available": []})
        return httpx.Response(202, json=JOB)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()

    def client(self: cli_session.Session) -> Client:
        return Client("http://127.0.0.1:1", transport=httpx.MockTransport(scripted))

    monkeypatch.setattr(cli_session.Session, "client", client)
    return scripted


@pytest.fixture
def quantry(server: Scripted) -> Callable[..., Any]:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(build(), list(arguments))
        assert result.exit_code == 0, result.output
        return result

    return run


def test_evaluate_shows_what_was_measured(server: Scripted, quantry: Callable[..., Any]) -> None:
    result = quantry("evaluate", "gloss", "--task", "words", "--chunks", "3", "--base", "gloss:F16")
    body = {"model": "gloss", "tasks": ["words"], "chunks": 3, "base": "gloss:F16"}
    assert server.asked[0] == ("POST", "/v1/evaluate", body)
    for figure in ("31.5000", "0.00653", "96.25 %", "512.3", "174/232"):
        assert figure in result.stdout
    assert "KL divergence to gloss:F16" in result.stderr
    quantry("evaluate", "gloss:Q4_K_M", "gloss:Q8_0", "--detach")
    assert server.asked[-1][2]["model"] == ["gloss:Q4_K_M", "gloss:Q8_0"]


def test_quantize_takes_levels_or_a_budget(server: Scripted, quantry: Callable[..., Any]) -> None:
    quantry("quantize", "gloss", "q4_k", "--imatrix", "auto", "--task", "words", "--override", "ffn=Q6_K", "--detach")
    assert server.asked[-1][2] == {
        "model": "gloss", "imatrix": "auto", "recipe": {"overrides": [{"pattern": "ffn", "type": "Q6_K"}]},
        "evaluate": {"tasks": ["words"]}, "to": ["Q4_K_M"],
    }  # fmt: skip
    quantry("quantize", "gloss", "--size", "3MiB", "--types", "Q4_K,Q6_K", "--guide", "measured", "--evaluate")
    assert server.asked[0 - 2][2] == {
        "model": "gloss", "evaluate": True, "target": {"size": "3MiB"},
        "search": {"types": ["Q4_K", "Q6_K"], "guide": "measured"},
    }  # fmt: skip


def test_quantize_steps_down_to_a_bound_and_says_what_each_level_lost(
    server: Scripted, quantry: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"name": "evaluate Q4_K_M", "status": "succeeded", "progress": 1.0, "detail": "mean KLD 0.04 keeps to 0.05"}
    monkeypatch.setitem(JOB, "steps", [step])
    result = quantry("quantize", "gloss", "--until-kld", "0.05")
    assert server.asked[0][2] == {"model": "gloss", "until": {"max_kld": 0.05}}
    assert "Q4_K_M: mean KLD 0.04 keeps to 0.05" in result.stderr
    quantry(
        "quantize", "gloss", "q4_k", "Q8_0", "--until-perplexity-ratio", "1.02", "--until-same-top", "0.9",
        "--keep-all", "--chunks", "3", "--detach",
    )  # fmt: skip
    assert server.asked[-1][2] == {
        "model": "gloss", "to": ["Q4_K_M", "Q8_0"], "evaluate": {"chunks": 3},
        "until": {"max_perplexity_ratio": 1.02, "min_same_top": 0.9, "keep": "all"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "gloss"],
        ["quantize", "gloss", "Q4_K", "--keep-all"],
        ["quantize", "gloss", "--size", "3MiB", "--until-kld", "0.05"],
        ["quantize", "gloss", "Q4_K", "--size", "3MiB"],
        ["quantize", "gloss", "Q4_K", "--guide", "measured"],
        ["calibrate", "gloss", "--detach", "--out", "x"],
        ["importance", "--delete"],
        ["datasets", "--delete"],
        ["datasets", "x", "--put", "/nowhere"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_meant_ends_with_2(arguments: list[str], server: Scripted) -> None:
    assert CliRunner().invoke(build(), arguments).exit_code == 2
    assert server.asked == []


def test_calibrate_sends_files_and_saves_the_matrix(
    server: Scripted, quantry: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "other.gguf").write_bytes(b"a matrix")
    out = tmp_path / "out.gguf"
    result = quantry(
        "calibrate", "gloss", "--text", "none", "--include", str(tmp_path / "other.gguf"), "--out", str(out)
    )
    (body,) = [body for _, path, body in server.asked if path == "/v1/calibrate"]
    assert body["dataset"] is None
    assert body["include"][0].startswith("sha256:")
    assert "output.weight" in result.stdout
    assert out.read_bytes() == b"the file."


def test_importance_lists_shows_saves_and_deletes(
    server: Scripted, quantry: Callable[..., Any], tmp_path: Path
) -> None:
    assert DIGEST[:19] in quantry("importance").stdout
    assert "output.weight" in quantry("importance", "abab").stdout
    assert json.loads(quantry("importance", DIGEST, "--json").stdout)["statistics"][0]["entropy"] == 3.5
    quantry("importance", "abab", "--out", str(tmp_path / "m.gguf"))
    assert (tmp_path / "m.gguf").read_bytes() == b"the file."
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    quantry("importance", "abab", "--delete")
    assert server.asked[-1][:2] == ("DELETE", f"/v1/importance-matrices/{DIGEST}")


def test_datasets_lists_prints_stores_and_deletes(
    server: Scripted, quantry: Callable[..., Any], tmp_path: Path
) -> None:
    assert "mine" in quantry("datasets").stdout
    assert quantry("datasets", "mine").stdout == "hello"
    (tmp_path / "text").write_bytes(b"hello")
    quantry("datasets", "mine", "--put", str(tmp_path / "text"), "--task")
    assert server.asked[-1] == ("PUT", "/v1/datasets/mine", b"hello")
    quantry("datasets", "mine", "--delete")
    assert server.asked[-1][:2] == ("DELETE", "/v1/datasets/mine")


def test_rebuild_says_that_it_came_out_the_same(server: Scripted, quantry: Callable[..., Any]) -> None:
    assert "gloss:Q4_K_M came out the same" in quantry("rebuild", "gloss:Q4_K_M", "--threads", "1").stdout
    assert server.asked[0] == ("POST", "/v1/variants/gloss:Q4_K_M/rebuild", {"threads": 1})
