"""A deleted variant leaves memory too: its worker ends once its requests have, long before keep_alive runs out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from tests.server import MakeServer, Server

BODY = {"model": "gloss:F16", "prompt": "It was", "temperature": 0}
LONG = {**BODY, "ignore_eos": True, "max_tokens": 400}


def workers(server: Server) -> list[psutil.Process]:
    found = []
    for child in server.process.children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it ends this moment
            if "service.workers.worker" in child.cmdline():
                found.append(child)
    return found


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def loaded(server: Server) -> list[str]:
    return [worker["name"] for worker in server.json("GET", "/v1/workers", 200)["data"] if worker["pid"]]


def test_the_worker_of_a_deleted_variant_ends_at_once_when_nobody_uses_it(make_server: MakeServer) -> None:
    server = make_server(QUANTRY_KEEP_ALIVE_SECONDS="3600")
    server.add_gloss()
    server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 1})
    (worker,) = workers(server)
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()
    assert loaded(server) == []


def test_a_stream_of_a_deleted_variant_ends_whole_and_then_its_worker(make_server: MakeServer) -> None:
    server = make_server(QUANTRY_KEEP_ALIVE_SECONDS="3600")
    server.add_gloss()
    whole = server.json("POST", "/v1/generate", 200, LONG)["text"]
    (worker,) = workers(server)
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
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()
    assert loaded(server) == []


def test_a_worker_stays_while_another_name_refers_to_its_blob(make_server: MakeServer) -> None:
    server = make_server(QUANTRY_KEEP_ALIVE_SECONDS="3600")
    server.add_gloss()
    server.json("POST", "/v1/models/copy", 201, {"source": "gloss:F16", "destination": "other"})
    server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 1})
    (worker,) = workers(server)
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    answer = server.json("POST", "/v1/generate", 200, {**BODY, "model": "other", "max_tokens": 1})
    assert answer["timings"]["load_seconds"] == 0
    assert workers(server) == [worker]
    server.json("DELETE", "/v1/variants/other:F16", 200)
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()


def test_a_request_that_waits_for_its_load_is_answered_though_the_variant_is_deleted(make_server: MakeServer) -> None:
    server = make_server(QUANTRY_KEEP_ALIVE_SECONDS="3600")
    server.add_gloss()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(httpx.post, f"{server.url}/v1/generate", json={**BODY, "max_tokens": 2}, timeout=60)
        until(lambda: bool(workers(server)))
        server.json("DELETE", "/v1/variants/gloss:F16", 200)
        assert waiting.result(60).status_code == 200
    until(lambda: not workers(server))
    assert loaded(server) == []


def test_a_variant_imported_again_is_loaded_again(make_server: MakeServer) -> None:
    server = make_server(QUANTRY_KEEP_ALIVE_SECONDS="3600")
    server.add_gloss()
    first = server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 5})["text"]
    server.json("DELETE", "/v1/variants/gloss:F16", 200)
    server.add_gloss()
    assert server.json("POST", "/v1/generate", 200, {**BODY, "max_tokens": 5})["text"] == first
