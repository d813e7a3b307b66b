"""What clients do to their streams, and that others do not feel it: hang-ups at every stage, readers that stop."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.domain.generation import GenerationRequest, Token
from service.domain.memory import MemoryNeed, Placement
from service.workers.ladder import Rung
from service.workers.options import WorkerOptions
from service.workers.stream import Stream
from service.workers.supervisor import Worker
from tests.server import Server, stocked, until, within

STALL_SECONDS = 0.6
MODEL = "gloss:F16"
LONG: dict[str, Any] = {"model": MODEL, "prompt": "It was", "ignore_eos": True, "max_tokens": 450}
CHAT: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "It was"}], "ignore_eos": True, "max_tokens": 450,
}  # fmt: skip
PROMPT: dict[str, Any] = {"model": MODEL, "prompt": "a horse or a cow or " * 70, "ignore_eos": True, "max_tokens": 1}
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "It was", "max_tokens": 1}
TRIES = 3  # for promises with a time in them: a machine may be busy with something else for that long
DOOMED = 40  # requests whose work takes far longer than a second


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """Runs two requests at a time: the others wait, and the next one tells when a slot is free."""
    settings = {"QUANTRY_PARALLEL": "2", "QUANTRY_STREAM_STALL_SECONDS": str(STALL_SECONDS)}
    server = Server(stocked(tmp_path_factory.mktemp("streams") / "home", gloss_home), settings).start()
    server.json("POST", "/v1/generate", 200, SHORT)
    yield server
    server.close()


class Client:
    """One request on a socket of its own."""

    def __init__(self, server: Server, body: dict[str, Any], receive_bytes: int | None = None) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.sock = socket.socket()
        self.sock.settimeout(20)
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.connect((host, int(port)))
        content = json.dumps(body).encode()
        path = "/v1/chat/completions" if "messages" in body else "/v1/generate"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        self.sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read(self, until: bytes) -> bytes:
        """What comes until `until` is in it, or to the end."""
        text = b""
        while until not in text:
            more = self.sock.recv(1 << 16)
            if not more:
                break
            text += more
        return text

    def leave(self, how: str) -> None:
        if how == "half-close":
            self.sock.shutdown(socket.SHUT_WR)
            return
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def requests_in(server: Server) -> tuple[int, int]:
    """Running and waiting ones; those that wait for a load are not in the worker yet."""
    answer = server.json("GET", "/v1/workers", 200)
    return sum(worker["active_requests"] for worker in answer["data"]), answer["queue_depth"]


# --- hang-ups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("stage", ["running and queued", "processing a prompt", "loading"])
def test_a_hang_up_frees_its_slot_within_a_second(server: Server, stage: str, how: str) -> None:
    assert any(hang_up(server, stage, how, attempt) for attempt in range(TRIES))


def hang_up(server: Server, stage: str, how: str, attempt: int) -> bool:
    """Let many requests begin and leave them all; whether their slots were free in time."""
    if stage == "loading":
        server.json("POST", f"/v1/workers/{MODEL}/unload", 200)
    body = PROMPT if stage == "processing a prompt" else LONG
    with ExitStack() as stack:
        clients = [
            # Every prompt begins in its own way, so that none is in a cache.
            stack.enter_context(
                Client(server, {**body, "prompt": f"{i} {how} {attempt} {body['prompt']}", "stream": i % 2 == 0})
            )
            for i in range(DOOMED)
        ]
        if stage == "running and queued":
            clients[0].read(b"\n\n")
        until(lambda: max(requests_in(server)) > 4)
        for client in clients:
            client.leave(how)
        freed = within(1, lambda: requests_in(server) == (0, 0))
        left_at = time.monotonic()
        server.json("POST", "/v1/generate", 200, SHORT)  # it waits for a free slot
        assert "Traceback" not in server.log()
        return freed and (stage == "loading" or time.monotonic() - left_at < 1)


# --- readers that stop -------------------------------------------------------------------------------------------


def test_a_reader_that_stops_is_cut_with_one_error_event_and_others_keep_their_pace(server: Server) -> None:
    assert any(longest_gap_beside_a_stopped_reader(server) < STALL_SECONDS for _ in range(TRIES))


def longest_gap_beside_a_stopped_reader(server: Server) -> float:
    """Let one reader stop and be cut; for how long another stream gave nothing, at most."""
    # OpenAI's chunks are long, so fewer tokens fill what lies between the server and a client that does not read.
    with Client(server, {**CHAT, "stream": True}, receive_bytes=4096) as stopped:
        text = stopped.read(b"\n\n")
        beside, gap = b"", 0.0
        with Client(server, {**LONG, "stream": True}) as other:
            last = time.monotonic()
            while b"event: done" not in beside:
                beside += other.read(b"\n\n")
                now = time.monotonic()
                gap, last = max(gap, now - last), now
        assert beside.count(b"event: token") > 200
        until(lambda: requests_in(server) == (0, 0))
        text += stopped.read(b"\r\n0\r\n\r\n")
    assert text.count(b'"slow_reader"') == text.count(b'{"error":') == 1
    assert text.index(b'{"error":') > text.rindex(b'"delta":')
    assert b"[DONE]" not in text
    return gap


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_reader_that_stops_pauses_its_own_request_and_no_other(choices: int) -> None:
    argv = (sys.executable, str(Path(__file__).with_name("flooding_worker.py")))
    worker = Worker(
        name="flood",
        path=Path("/nowhere"),
        placement=Placement(512, 4, MemoryNeed(0, 0, 0)),
        options=WorkerOptions(512, 1, 0, 20.0, 20.0, argv=argv),
        rung=Rung.FULL,
        on_death=lambda _: None,
    )
    await worker.start()
    try:
        stopped, other = (worker.submit(GenerationRequest(prompt="", choices=choices), 0.0) for _ in range(2))
        for _ in range(2):
            async with asyncio.timeout(5):
                while not stopped.paused:
                    await anext(other)
            # What was on its way when it was paused still comes; then nothing does, while the other goes on.
            await asyncio.sleep(0.05)
            held_back = len(await _text(stopped))
            assert held_back < 16 * 1024
            assert not stopped.paused
        async with asyncio.timeout(5):
            while not stopped.paused:
                await anext(other)
            for _ in range(20):
                await anext(other)
        before = worker.active_requests
        stopped.cancel()
        assert (before, worker.active_requests) == (2, 1)
        assert not other.paused
    finally:
        await worker.stop()


async def _text(stream: Stream) -> str:
    event = await anext(stream)
    assert isinstance(event, Token)
    return event.text


# --- ends --------------------------------------------------------------------------------------------------------


def test_every_stream_ends_with_exactly_one_end(server: Server) -> None:
    bodies = [
        {**LONG, "stream": True, "max_tokens": 1 + i % 5, "prompt": "It was " * (i % 3 * 300 + 1)} for i in range(24)
    ]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server, body)) for body in bodies]
        answers = [client.read(b"0\r\n\r\n") if i % 3 == 0 else client.read(b"}") for i, client in enumerate(clients)]
    for answer in answers:
        streamed = answer.count(b"event: done") + answer.count(b"event: error")
        refused = answer.count(b'"context_length_exceeded"')
        assert (streamed, refused) == ((1, 0) if answer.startswith(b"HTTP/1.1 200") else (0, 1)), answer
