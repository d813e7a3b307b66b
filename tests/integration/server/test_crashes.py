"""kill -9 at any moment: nothing half-written is visible, finished levels stay, no job is left running."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.server import Server, children, has_gone, until

# Each takes one to two seconds, others a tenth of one: a job with some of them is caught at work.
SLOW = ["IQ3_S", "IQ3_M", "IQ4_XS"]
LEVELS = ["BF16", "Q8_0", "Q4_0", "IQ3_S"]


def check_invariants(server: Server) -> None:
    """I1, I3, I4 of the reliability plan, on disk and over HTTP."""
    for variant in server.json("GET", "/v1/variants", 200)["data"]:
        name = variant["digest"].replace(":", "-")
        content = (server.home / "blobs" / name).read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == variant["digest"]
        assert len(content) == variant["size_bytes"]
    statuses = {job["status"] for job in server.json("GET", "/v1/jobs", 200)["data"]}
    assert statuses <= {"queued", "succeeded", "failed", "cancelled", "running"}


def incoming(server: Server) -> list[Path]:
    return [path for path in (server.home / "blobs").rglob("*") if path.is_file() and "sha256-" not in path.name]


def child_of(server: Server, module: str) -> psutil.Process:
    until(lambda: children(server.process, module))
    return children(server.process, module)[0]


@pytest.fixture
def server(clean_server: Server) -> Server:
    clean_server.add_gloss()
    return clean_server


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(0.0, id="at its start", marks=pytest.mark.slow),
        pytest.param(0.5, id="in the middle"),
        pytest.param(0.9, id="near its end", marks=pytest.mark.slow),
    ],
)
def test_a_killed_server_goes_on_where_it_was(server: Server, moment: float) -> None:
    """By default in the middle of a job, where levels are done, one is at work and others wait."""
    job = server.json("POST", "/v1/quantize", 202, {"model": "gloss:F16", "to": LEVELS})
    server.wait_for_job(job["id"], until=lambda job: job["progress"] >= moment and job["status"] != "queued")
    done_before = set(server.names())
    begun = server.process.children(recursive=True)
    server.kill()
    until(lambda: all(map(has_gone, begun)), 20)  # no child outlives its parent

    server.start()
    assert done_before <= set(server.names())
    ended = server.wait_for_job(job["id"])
    assert ended["status"] == "succeeded"
    assert set(server.names()) == {"gloss:F16", *(f"gloss:{level}" for level in LEVELS)}
    check_invariants(server)
    assert incoming(server) == []


def test_a_killed_job_child_fails_its_job_and_finished_levels_stay(server: Server) -> None:
    job = server.json("POST", "/v1/quantize", 202, {"model": "gloss:F16", "to": ["BF16", "Q8_0", *SLOW, "Q4_0"]})
    child = child_of(server, "service.jobs.steps")
    server.wait_for_job(job["id"], until=lambda job: len(server.names()) >= 3)
    child.kill()
    ended = server.wait_for_job(job["id"])
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "job_child_died"
    assert "SIGKILL" in ended["error"]["message"]
    assert len(server.names()) >= 3
    check_invariants(server)
    assert incoming(server) == []
    again = server.quantize("BF16", "Q8_0", "Q4_0")  # and what is missing can simply be asked for again
    assert again["status"] == "succeeded"


def test_a_killed_worker_fails_its_stream_with_an_error_event_and_the_server_goes_on(server: Server) -> None:
    server.json("POST", "/v1/workers/gloss:F16/load", 200)
    worker = child_of(server, "service.workers.worker")
    body = {"model": "gloss", "prompt": "It was", "ignore_eos": True, "temperature": 0, "stream": True}
    with server.client.stream("POST", "/v1/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: token"
        os.kill(worker.pid, signal.SIGKILL)
        rest = "\n".join(lines)
    assert rest.count("event: error") == 1
    assert "worker_died" in rest
    assert "event: done" not in rest
    body = {"model": "gloss", "prompt": "It was", "max_tokens": 3}
    assert server.json("POST", "/v1/generate", 200, body)["finish_reason"] == "length"


def test_sigterm_lets_a_stream_end_and_puts_a_job_back(server: Server) -> None:
    server.json("POST", "/v1/generate", 200, {"model": "gloss", "prompt": "It was", "max_tokens": 1})
    job = server.json("POST", "/v1/quantize", 202, {"model": "gloss:F16", "to": LEVELS})
    body = {"model": "gloss", "prompt": "It was", "ignore_eos": True, "temperature": 0, "stream": True}
    with server.client.stream("POST", "/v1/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: token"
        server.process.send_signal(signal.SIGTERM)
        rest = "\n".join(lines)
    assert "event: done" in rest
    assert server.stop() == 0
    server.start()
    assert server.wait_for_job(job["id"])["status"] == "succeeded"
    check_invariants(server)


def test_two_servers_never_share_a_home(clean_server: Server) -> None:
    second = Server(clean_server.home, {})
    with pytest.raises(AssertionError, match="Another quantry server"):
        second.start()
    second.close()
    assert clean_server.json("GET", "/health", 200)["status"] == "ok"
