"""A source that is itself quantized: refused unless asked for, and marked for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server import MakeServer, Server


@pytest.mark.slow
def test_a_lossy_source_needs_permission_and_leaves_its_mark(clean_server: Server, smollm2: Path) -> None:
    """A real model; gloss keeps the same promise by default (jobs/test_quantize.py, cli/test_commands.py)."""
    server = clean_server
    imported = server.json("POST", "/v1/models", 201, {"name": "smollm2:135m-instruct", "path": str(smollm2)})
    assert imported["name"] == "smollm2:135m-instruct-Q4_1"
    assert imported["lossy"]

    body = {"model": "smollm2:135m-instruct-q4_1", "to": ["Q4_0"]}
    refused = server.json("POST", "/v1/quantize", 400, body)["error"]
    assert refused["code"] == "lossy_source"
    assert "allow_requantize" in refused["message"]

    job = server.json("POST", "/v1/quantize", 202, {**body, "allow_requantize": True})
    assert server.wait_for_job(job["id"])["status"] == "succeeded"
    made = server.json("GET", "/v1/variants/smollm2:135M-INSTRUCT-Q4_0", 200)
    assert made["lineage"]["lossy_source"]
    assert made["lineage"]["recipe"]["allow_requantize"]

    copied = server.json(
        "POST", "/v1/models/copy", 201, {"source": "smollm2:135m-instruct-q4_0", "destination": "copy"}
    )
    assert copied["lineage"]["lossy_source"]


def test_a_real_chat_model_is_known_as_lossy_and_answers_over_every_route(
    make_server: MakeServer, smollm2: Path
) -> None:
    server = make_server(QUANTRY_CONTEXT_LENGTH="512", QUANTRY_PARALLEL="2")
    assert server.json("POST", "/v1/models", 201, {"name": "smollm2", "path": str(smollm2)})["lossy"]
    refused = server.json("POST", "/v1/quantize", 400, {"model": "smollm2", "to": ["Q4_0"]})["error"]
    assert refused["code"] == "lossy_source"
    text = server.json(
        "POST",
        "/v1/generate",
        200,
        {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0},
    )["text"]
    assert text.startswith(" Paris")
    chat = server.json(
        "POST",
        "/v1/chat/completions",
        200,
        {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
            "temperature": 0,
            "max_tokens": 20,
        },
    )
    assert "Paris" in chat["choices"][0]["message"]["content"]
