"""OpenAI's client embeds texts on a running server: with a chat model, and with one that can do nothing else."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil
import pytest
from numpy.typing import NDArray
from openai import OpenAI

from tests.server import Server, stocked, until, within

TEXTS = ["a horse", "a ship on the sea", "the sea and a ship", "What does the word mean?"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path, tiny: dict[str, Path]) -> Iterator[Server]:
    server = Server(stocked(tmp_path_factory.mktemp("embeddings") / "home", gloss_home), {}).start()
    server.json("POST", "/v1/models", 201, {"name": "bert", "path": str(tiny["bert"])})
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def matrix(answer: openai.types.CreateEmbeddingResponse) -> NDArray[np.float64]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data])


@pytest.mark.parametrize("model", ["gloss", "bert"])
def test_texts_become_vectors_of_length_one_in_their_order(client: OpenAI, model: str) -> None:
    answer = client.embeddings.create(model=model, input=TEXTS)
    vectors = matrix(answer)
    assert answer.object == "list"
    assert answer.model == f"{model}:F16"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    assert vectors.shape == (4, {"gloss": 256, "bert": 64}[model])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert matrix(client.embeddings.create(model=model, input=text))[0] @ vector > 0.9999
    like = vectors @ vectors.T
    assert like[1, 2] > like[0, 3]


def test_numbers_base64_and_fewer_dimensions_say_the_same(client: OpenAI) -> None:
    numbers = client.embeddings.create(model="bert", input=TEXTS, encoding_format="float")
    packed = client.embeddings.create(model="bert", input=TEXTS, encoding_format="base64")
    for one, other in zip(numbers.data, packed.data, strict=True):
        raw = other.embedding
        assert isinstance(raw, str)  # the client leaves it packed when it was asked for
        assert np.frombuffer(base64.b64decode(raw), "<f4") == pytest.approx(one.embedding)
    short = matrix(client.embeddings.create(model="bert", input=TEXTS, dimensions=8))
    whole = matrix(numbers)[:, :8]
    assert short == pytest.approx(whole / np.linalg.norm(whole, axis=1, keepdims=True), abs=1e-6)


def test_token_ids_are_inputs_too(client: OpenAI) -> None:
    ids = [5, 6, 7, 300]
    one = client.embeddings.create(model="gloss", input=ids)
    two = client.embeddings.create(model="gloss", input=[ids, ids[:2]])
    assert one.usage.prompt_tokens == 4
    assert len(two.data) == 2
    assert matrix(one)[0] @ matrix(two)[0] > 0.9999


def test_what_is_wrong_is_named_in_openais_words(client: OpenAI) -> None:
    cases = [
        ({"input": ""}, "invalid_parameter", "input"),
        ({"input": []}, "invalid_parameter", "input"),
        ({"input": ["a", ""]}, "invalid_parameter", "input[1]"),
        ({"input": ["a"] * 2049}, "invalid_parameter", "input"),
        ({"input": [4096]}, "invalid_parameter", "input"),
        ({"input": "a", "dimensions": 257}, "invalid_parameter", "dimensions"),
        ({"input": "horse " * 700}, "context_length_exceeded", "input"),
    ]
    for fields, code, param in cases:
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="gloss", **fields)
        assert (refused.value.code, refused.value.param) == (code, param)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nothing", input="a")


def test_a_model_that_only_embeds_refuses_to_write_and_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="bert", prompt="It was", max_tokens=2)
    assert refused.value.code == "not_supported"
    assert "/v1/embeddings" in refused.value.message


def test_many_texts_and_streams_do_not_hold_one_another_up(client: OpenAI) -> None:
    with ThreadPoolExecutor(4) as threads:
        many = [threads.submit(client.embeddings.create, model="gloss", input=TEXTS * 80) for _ in range(2)]
        text = client.completions.create(model="gloss", prompt="It was a", max_tokens=5, temperature=0)
        assert text.choices[0].text
        answers = [matrix(task.result()) for task in many]
    assert all(answer.shape == (320, 256) for answer in answers)
    assert np.sum(answers[0] * answers[1], axis=1).min() > 0.9999
    assert np.sum(answers[0][:4] * answers[0][-4:], axis=1).min() > 0.9999


def test_a_hang_up_frees_the_worker_within_a_second(server: Server) -> None:
    server.json("POST", "/v1/workers/gloss:F16/load", 200)
    body = {"model": "gloss", "input": ["It was a truth universally " * 30] * 2048}

    def hang_up() -> bool:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=httpx.Timeout(20, read=0.2))
        return within(1, lambda: not server.active("gloss:F16"))

    assert any(hang_up() for _ in range(3))


def test_a_dead_worker_fails_what_it_was_asked_and_the_next_request_works(server: Server, client: OpenAI) -> None:
    server.json("POST", "/v1/workers/bert/load", 200)
    [row] = [row for row in server.json("GET", "/v1/workers", 200)["data"] if row["name"] == "bert:F16"]
    psutil.Process(row["pid"]).suspend()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.embeddings.create, model="bert", input=TEXTS)
        until(lambda: server.active("bert:F16"))
        os.kill(row["pid"], signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as died:
            waiting.result()
    assert died.value.code == "worker_died"
    assert len(client.embeddings.create(model="bert", input=TEXTS).data) == len(TEXTS)
