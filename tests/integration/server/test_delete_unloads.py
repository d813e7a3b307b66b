"""A deleted variant leaves memory too: its worker ends once its requests have, long before keep_alive runs out."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server import Server, has_gone, until

BODY = {"model": "gloss:F16", "prompt": "It was", "temperature": 0}
LONG = {**BODY, "ignore_eos": True, "max_tokens": 400}
SOON = 20.0  # seconds; unused, a model stays for five minutes


@pytest.fixture
def server(clean_server: Server) -> Server:
    clean_server.add_gloss()
    return clean_server


def test_the_worker_of_a_deleted_variant_ends_at_once_when_nobody_uses_it(server: Server) -> None:
    server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 1})
    (worker,) = server.workers()
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    until(lambda: has_gone(worker) and not server.loaded(), SOON)


def test_a_stream_of_a_deleted_variant_ends_whole_and_then_its_worker(server: Server) -> None:
    whole = server.json("POST", "/v1/generate", 200, LONG)["text"]
    (worker,) = server.workers()
    text, seen_alive = "", 0
    with server.client.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line == "event: token" and not seen_alive:
                with httpx.Client(base_url=server.url) as other:
                    assert other.delete("/v1/models/gloss").status_code == 200
                seen_alive += worker.is_running()
            elif line.startswith("data: "):
                text += json.loads(line.removeprefix("data: ")).get("text", "")
    assert seen_alive
    assert text == whole
    until(lambda: has_gone(worker) and not server.loaded(), SOON)


def test_a_worker_stays_while_another_name_refers_to_its_blob(server: Server) -> None:
    server.json("POST", "/v1/models/copy", 201, {"source": "gloss:F16", "destination": "other"})
    server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 1})
    (worker,) = server.workers()
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    answer = server.json("POST", "/v1/generate", 200, {**BODY, "model": "other", "max_tokens": 1})
    assert answer["timings"]["load_seconds"] == 0
    assert server.workers() == [worker]
    server.json("DELETE", "/v1/variants/other:F16", 200)
    until(lambda: has_gone(worker) and not server.loaded(), SOON)


def test_a_request_that_waits_for_its_load_is_answered_though_the_variant_is_deleted(server: Server) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(httpx.post, f"{server.url}/v1/generate", json={**BODY, "max_tokens": 2}, timeout=60)
        until(lambda: bool(server.workers()))
        server.json("DELETE", "/v1/variants/gloss:F16", 200)
        assert waiting.result(60).status_code == 200
    until(lambda: not server.workers() and not server.loaded(), SOON)


def test_a_variant_imported_again_is_loaded_again(server: Server) -> None:
    first = server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 5})["text"]
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    server.add_gloss()
    assert server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 5})["text"] == first
