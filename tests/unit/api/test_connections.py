"""A client's connection on a real socket: bounded heads, hang-ups, and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api import connections
from service.api.connections import MAX_HEAD_BYTES, Connection
from service.domain.generation import Token

ENOUGH = [Token("x" * 5000)] * 100  # far more than the buffers on the way to a client that does not read
HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


class Client:
    """One connection, spoken in bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def ask(self, path: str, **body: Any) -> None:
        content = json.dumps(body).encode()
        await self.send(
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (path.encode(), len(content), content)
        )

    async def read(self, until: bytes | None = None) -> bytes:
        """What comes, up to and with `until`, or to the end."""
        received = b""
        while until is None or until not in received:
            try:
                more = await asyncio.wait_for(self._loop.sock_recv(self.sock, 1 << 16), 5)
            except ConnectionResetError:
                return received
            if not more:
                return received
            received += more
        return received


Connect = Callable[..., Any]


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[tuple[Connect, ServerState]]:
    config = uvicorn.Config(app, http=Connection, ws="none", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    clients: list[socket.socket] = []

    async def connect(receive_bytes: int | None = None) -> Client:
        sock = socket.socket()
        clients.append(sock)
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        return Client(sock)

    yield connect, state
    for sock in clients:
        sock.close()
    server.close()
    await ended(state)


async def ended(state: ServerState) -> None:
    """No connection is left, and no request."""
    async with asyncio.timeout(2):
        while state.connections or state.tasks:
            await asyncio.sleep(0.005)


# --- heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 100) for i in range(MAX_HEAD_BYTES // 100)) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"\r\n" + HEAD + b"X-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\x00: 1\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["one long header", "many headers", "a long target", "the second request", "no header", "two lengths"],
)
async def test_a_head_that_is_too_large_or_none_is_refused(api, head):
    async with listening(api.app) as (connect, _):
        client = await connect()
        await client.send(head)
        assert b"HTTP/1.1 400 Bad Request" in await client.read()


async def test_a_head_that_never_ends_is_refused_without_being_kept(api):
    async with listening(api.app) as (connect, _):
        client = await connect()
        await client.send(HEAD + b"X-Long: ")
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(1000):
                await asyncio.sleep(0)
                await asyncio.wait_for(client.send(b"x" * 1024), 1)


async def test_a_head_of_half_the_limit_in_many_pieces_is_read(api):
    head = HEAD + b"X-Long: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n"
    async with listening(api.app) as (connect, _):
        client = await connect()
        for start in range(0, len(head), 700):
            await client.send(head[start : start + 700])
            await asyncio.sleep(0)
        assert (await client.read(b"}")).startswith(b"HTTP/1.1 200")


async def test_trailers_are_no_headers(api, monkeypatch):
    seen: list[Any] = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with listening(app) as (connect, _):
        client = await connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Api-Key: k\r\n\r\n"
        )
        assert b" 204 " in await client.read(b"\r\n\r\n")
    assert [name for name, _ in seen] == [b"host", b"transfer-encoding"]


async def test_requests_one_behind_the_other_are_answered_in_order(api):
    async with listening(api.app) as (connect, _):
        client = await connect()
        await client.send(HEAD + b"\r\n" + HEAD.replace(b"/health", b"/nowhere") + b"\r\n")
        answers = await client.read(b"route_not_found")
    assert answers.index(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 404")


# --- readers that do not read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/v1/generate", {"prompt": "x"}, b"event: error\ndata: "),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, b"data: "),
    ],
    ids=["native", "openai"],
)
async def test_a_reader_that_stops_gets_one_error_event_when_it_is_cut(make_api, path, body, end):
    api = make_api(stream_stall_seconds=0.2)
    api.add("gloss", "Q8_0")
    api.pool.script = ENOUGH
    async with listening(api.app) as (connect, state):
        client = await connect(receive_bytes=4096)
        await client.ask(path, model="gloss", stream=True, **body)
        async with asyncio.timeout(2):
            while not api.pool.cancelled:
                await asyncio.sleep(0.01)
        text = await client.read()
        await ended(state)
    assert text.endswith(b"0\r\n\r\n")
    assert text.count(b'"slow_reader"') == 1
    assert end + b'{"error":{"code":"slow_reader"' in text
    assert b"[DONE]" not in text
    assert b"event: done" not in text
    assert 'outcome="cancelled"} 1.0' in api.services.metrics.render().decode()


async def test_a_reader_that_never_reads_again_loses_its_socket(make_api, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    api = make_api(stream_stall_seconds=0.2)
    api.add("gloss", "Q8_0")
    api.pool.script = ENOUGH
    async with listening(api.app) as (connect, state):
        client = await connect(receive_bytes=4096)
        await client.ask("/v1/generate", model="gloss", stream=True, prompt="x")
        await client.read(b"\r\n\r\n")
        await ended(state)
    assert api.pool.cancelled == 1


async def test_a_reader_that_is_slow_but_reads_gets_everything(make_api):
    api = make_api(stream_stall_seconds=5.0)
    api.add("gloss", "Q8_0")
    api.pool.script = [*ENOUGH[:30], *api.pool.script]
    async with listening(api.app) as (connect, _):
        client = await connect(receive_bytes=4096)
        await client.ask("/v1/generate", model="gloss", stream=True, prompt="x")
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            await asyncio.sleep(0.005)
            text += await asyncio.get_running_loop().sock_recv(client.sock, 20_000)
    body = b"".join(text.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2])
    events = [json.loads(event.partition(b"data: ")[2]) for event in body.split(b"\n\n")[:-1]]
    assert "".join(event.get("text", "") for event in events) == "x" * 30 * 5000 + "Hello"
    assert events[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("how", ["half-close", "close", "reset"])
@pytest.mark.parametrize("reads", [True, False])
async def test_a_hang_up_cancels_at_once_even_where_nothing_is_read(make_api, how, reads):
    api = make_api(stream_stall_seconds=30.0)
    api.add("gloss", "Q8_0")
    api.pool.open_ended, api.pool.script = reads, [Token("x")] if reads else ENOUGH
    async with listening(api.app) as (connect, state):
        client = await connect(receive_bytes=4096)
        await client.ask("/v1/generate", model="gloss", stream=True, prompt="x")
        await asyncio.wait_for(api.pool.entered.wait(), 2)
        await asyncio.sleep(0.05)
        assert api.pool.cancelled == 0
        if how == "half-close":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sock.close()
        async with asyncio.timeout(1):
            while not api.pool.cancelled:
                await asyncio.sleep(0.005)
        if how != "half-close" or reads:
            await ended(state)
    assert api.pool.cancelled == 1
