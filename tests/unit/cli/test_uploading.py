"""Sending large files: pieces, each from where the server says, over lines that drop and servers that start again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.cli import uploading
from service.cli.client import Client
from service.cli.failures import CommandFailed
from service.cli.session import open_session

CONTENT = bytes(range(256)) * 40
SIZE = len(CONTENT)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Fake:
    """A server that takes pieces, and fails as it is told: `faults` by the number of the PATCH."""

    def __init__(self, faults: dict[int, Callable[[], httpx.Response | None]] | None = None, came: bytes = b"") -> None:
        self.came = bytearray(came)
        self.faults = faults or {}
        self.spans: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        here = {"Upload-Offset": str(len(self.came)), "Upload-Length": str(SIZE)}
        if request.method == "HEAD":
            return httpx.Response(200 if len(self.came) == SIZE else 404, headers=here if self.came else {})
        body = request.read()
        if request.method == "PUT":
            self.came += body
            return httpx.Response(201, json={"digest": DIGEST, "size_bytes": SIZE})
        span = request.headers["Content-Range"]
        self.spans.append(span)
        fault = self.faults.get(len(self.spans) - 1)
        if fault is not None and (answer := fault()) is not None:
            return answer
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", span)
        if match is not None:
            assert (int(match[1]), int(match[3])) == (len(self.came), SIZE)
            assert len(body) == int(match[2]) - int(match[1]) + 1
            self.came += body
        status = 201 if len(self.came) == SIZE else 202
        return httpx.Response(status, json={}, headers={"Upload-Offset": str(len(self.came))})


@pytest.fixture
def send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fake], str]:
    monkeypatch.setattr(uploading, "PIECE_BYTES", 4096)
    monkeypatch.setattr(uploading, "PAUSE_SECONDS", 0.0)
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)

    def _send(fake: Fake) -> str:
        with Client("http://127.0.0.1:1", transport=httpx.MockTransport(fake)) as client:
            return uploading.upload_blob(open_session("http://127.0.0.1:1", None, True), client, path)

    return _send


def drop() -> httpx.Response:
    raise httpx.ReadError("gone")


def refuse(status: int, code: str) -> Callable[[], httpx.Response]:
    error = {"error": {"code": code, "message": "No.", "type": "x", "param": None}}
    return lambda: httpx.Response(status, json=error)


def test_a_large_file_goes_in_pieces_and_a_small_one_whole(
    send: Callable[[Fake], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    assert send(fake) == DIGEST
    assert bytes(fake.came) == CONTENT
    assert fake.spans == [f"bytes 0-4095/{SIZE}", f"bytes 4096-8191/{SIZE}", f"bytes 8192-{SIZE - 1}/{SIZE}"]
    monkeypatch.setattr(uploading, "PIECE_BYTES", SIZE)
    whole = Fake()
    send(whole)
    assert (bytes(whole.came), whole.spans) == (CONTENT, [])


def test_a_run_goes_on_where_the_one_before_ended(send: Callable[[Fake], str]) -> None:
    fake = Fake(came=CONTENT[:5000])
    send(fake)
    assert fake.spans[0] == f"bytes 5000-9095/{SIZE}"
    assert bytes(fake.came) == CONTENT


def test_what_is_there_is_not_sent(send: Callable[[Fake], str]) -> None:
    fake = Fake(came=CONTENT)
    assert send(fake) == DIGEST
    assert fake.spans == []


@pytest.mark.parametrize(
    "fault", [drop, refuse(503, "shutting_down"), refuse(409, "conflict"), refuse(429, "busy")], ids=range(4)
)
def test_what_passes_is_tried_again_from_where_the_upload_stands(
    send: Callable[[Fake], str], fault: Callable[[], httpx.Response]
) -> None:
    fake = Fake({0: fault, 2: fault, 3: fault})
    send(fake)
    assert bytes(fake.came) == CONTENT


def test_bytes_that_came_before_the_line_dropped_are_not_sent_again(send: Callable[[Fake], str]) -> None:
    fake = Fake()

    def half() -> httpx.Response:
        fake.came += CONTENT[4096:5000]
        raise httpx.ReadError("gone")

    fake.faults = {1: half}
    send(fake)
    assert fake.spans[2].startswith("bytes 5000-")
    assert bytes(fake.came) == CONTENT


def test_an_offset_elsewhere_is_followed(send: Callable[[Fake], str]) -> None:
    fake = Fake()

    def elsewhere() -> httpx.Response:
        fake.came = bytearray(CONTENT[:100])
        return httpx.Response(416, headers={"Upload-Offset": "100"})

    fake.faults = {1: elsewhere}
    send(fake)
    assert fake.spans[2].startswith("bytes 100-")
    assert bytes(fake.came) == CONTENT


def test_a_piece_that_came_but_for_its_last_byte_is_ended_by_that_byte(send: Callable[[Fake], str]) -> None:
    fake = Fake()

    def all_came() -> httpx.Response:
        fake.came = bytearray(CONTENT[: SIZE - 1])
        raise httpx.ReadError("gone")

    fake.faults = {2: all_came}
    send(fake)
    assert bytes(fake.came) == CONTENT


def test_a_refusal_is_told_at_once(send: Callable[[Fake], str]) -> None:
    fake = Fake({0: refuse(413, "body_too_large")})
    with pytest.raises(CommandFailed) as failed:
        send(fake)
    assert (failed.value.problem.code, len(fake.spans)) == ("body_too_large", 1)


def test_a_line_that_stays_down_is_given_up(send: Callable[[Fake], str]) -> None:
    fake = Fake(dict.fromkeys(range(100), drop))
    with pytest.raises(CommandFailed) as failed:
        send(fake)
    assert (failed.value.problem.code, len(fake.spans)) == ("connection_lost", uploading.TRIES)
