"""OpenAI's embeddings route on a scripted pool: what reaches the pool, what comes back, and who hangs up."""

from __future__ import annotations

import asyncio
import base64
import json
import struct

import pytest

from service.domain.errors import PromptTooLong, QueueFull, WorkerDied
from service.domain.generation import EmbeddingRequest, Embeddings

VECTORS = [(0.5, -0.25), (1.0, 0.0)]
PACKED = tuple(struct.pack("<2f", *vector) for vector in VECTORS)


@pytest.fixture
def asked(api, monkeypatch):
    """What the pool was asked for; its answer is always the same two vectors."""
    requests: list[EmbeddingRequest] = []

    async def embed(variant, request):
        assert variant.name == "gloss:Q8_0"
        requests.append(request)
        return Embeddings(PACKED, 7)

    monkeypatch.setattr(api.pool, "embed", embed, raising=False)
    return requests


async def post(client, **fields):
    return await client.post("/v1/embeddings", json={"model": "gloss", **fields})


async def test_the_answer_is_openais_list_of_embeddings(client, asked):
    answer = await post(client, input=["a", "b"], user="somebody", shoe_size=43)
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": list(vector)} for index, vector in enumerate(VECTORS)
        ],
        "model": "gloss:Q8_0",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert asked == [EmbeddingRequest(("a", "b"), truncate=False)]


async def test_base64_is_the_vectors_own_bytes(client, asked):
    answer = await post(client, input="a", encoding_format="base64", dimensions=2)
    assert [base64.b64decode(item["embedding"]) for item in answer.json()["data"]] == list(PACKED)
    assert asked[0].dimensions == 2


@pytest.mark.parametrize(
    ("sent", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2.0], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
async def test_every_form_of_input_becomes_texts_or_token_ids(client, asked, sent, inputs):
    assert (await post(client, input=sent)).status_code == 200
    assert asked[0].inputs == inputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1] * 100_000 + ["a"]}, "input[100000]"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_a_wrong_field_is_named_and_reaches_no_worker(client, asked, fields, param):
    answer = await post(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_parameter"
    assert answer.json()["error"]["param"] == param
    assert "problems in all" not in answer.json()["error"]["message"]
    assert asked == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLong("Too long.", param="input"), 400, "context_length_exceeded"),
        (QueueFull("Full.", retry_after_seconds=3), 429, "rate_limit_exceeded"),
        (WorkerDied("Dead."), 503, "worker_died"),
    ],
)
async def test_errors_are_in_openais_words(client, api, monkeypatch, error, status, code):
    async def embed(_variant, _request):
        raise error

    monkeypatch.setattr(api.pool, "embed", embed, raising=False)
    answer = await post(client, input="a")
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["param"] == error.param


async def test_a_hang_up_cancels_the_work(api, raw, monkeypatch):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def embed(_variant, _request):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(api.pool, "embed", embed, raising=False)
    request = raw("POST", "/v1/embeddings", json.dumps({"model": "gloss", "input": "a"}).encode())
    running = asyncio.create_task(request.run())
    await entered.wait()
    request.hang_up.set()
    async with asyncio.timeout(5):
        await cancelled.wait()
        await running
    assert request.status is None
