"""A job is followed to its end over connections that break, and nothing is waited for without a limit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.cli.client import Client
from service.cli.failures import CommandFailed, ExitCode
from service.cli.following import GIVE_UP_SECONDS, follow

Handler = Callable[[httpx.Request], httpx.Response]


def job(status: str, progress: float = 0.0) -> dict[str, Any]:
    return {
        "id": "job_1", "kind": "quantize", "status": status, "model": "gloss:F16", "levels": ["Q8_0"],
        "progress": progress, "steps": [], "eta_seconds": None, "result": [], "error": None, "attempts": 1,
        "created_at": "2025-01-01T00:00:00Z", "started_at": None, "finished_at": None,
    }  # fmt: skip


def event(number: int, shape: dict[str, Any]) -> bytes:
    return f"id: {number}\nevent: progress\ndata: {json.dumps(shape)}\n\n".encode()


class Breaking(httpx.SyncByteStream):
    """Some bytes, then a connection that is gone."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        raise httpx.ReadError("gone")


def client(handler: Handler) -> Client:
    return Client("http://127.0.0.1:9", transport=httpx.MockTransport(handler))


def test_a_broken_stream_is_resumed_after_the_last_event_seen() -> None:
    asked: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 1:
            return httpx.Response(200, stream=Breaking(event(3, job("running", 0.1)), event(4, job("running", 0.2))))
        return httpx.Response(200, content=event(5, job("succeeded", 1.0)))

    pauses: list[float] = []
    seen = list(follow(client(handler), "job_1", pauses.append))
    assert [one.progress for one in seen] == [0.1, 0.2, 1.0]
    assert asked == [None, "4"]
    assert len(pauses) == 1


def test_a_server_that_restarts_is_waited_for() -> None:
    answers: list[Callable[[], httpx.Response]] = [
        lambda: httpx.Response(200, stream=Breaking(event(1, job("running")))),
        lambda: (_ for _ in ()).throw(httpx.ConnectError("refused")),
        lambda: httpx.Response(
            503, json={"error": {"code": "shutting_down", "message": "m", "type": "unavailable_error", "param": None}}
        ),
        lambda: httpx.Response(200, content=event(2, job("succeeded", 1.0))),
    ]
    seen = list(follow(client(lambda request: answers.pop(0)()), "job_1", lambda seconds: None))
    assert seen[-1].status == "succeeded"


def test_a_job_that_ended_meanwhile_is_told_once() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(204)
        return httpx.Response(200, json=job("cancelled"))

    assert [one.status for one in follow(client(handler), "job_1", lambda seconds: None)] == ["cancelled"]


def test_a_server_that_stays_away_is_given_up_with_a_way_to_go_on() -> None:
    waited: list[float] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(CommandFailed) as failed:
        list(follow(client(refuse), "job_1", waited.append))
    assert GIVE_UP_SECONDS <= sum(waited) < 2 * GIVE_UP_SECONDS
    assert failed.value.problem.exit_code is ExitCode.UNREACHABLE
    assert "quantry jobs job_1 --watch" in str(failed.value.problem.remedy)


def test_a_refusal_is_not_waited_out() -> None:
    error = {"error": {"code": "job_not_found", "message": "m", "type": "not_found_error", "param": None}}
    pauses: list[float] = []
    with pytest.raises(CommandFailed) as failed:
        list(follow(client(lambda request: httpx.Response(404, json=error)), "job_1", pauses.append))
    assert failed.value.problem.code == "job_not_found"
    assert not pauses
