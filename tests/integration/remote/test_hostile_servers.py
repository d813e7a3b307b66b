"""Answers that never end, and servers that send on to where nobody but the operator is to lead."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from service.domain.errors import Forbidden
from service.domain.remote import RemoteAccess
from service.remote import guard
from service.remote.guard import Dropped, Network
from tests.remote_hub import FakeHub, Fault


@pytest.fixture
def speaking() -> Iterator[Callable[[bytes, bytes], str]]:
    """A server that says `first`, and then `again` ten times a second; its origin."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def speak(first: bytes, again: bytes) -> str:
        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=say, args=(connection,), daemon=True).start()

        def say(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(first)
                while not closing.wait(0.05):
                    connection.sendall(again)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield speak
    closing.set()
    listener.close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-More: ", b"1"),
    ],
)
def test_headers_that_do_not_end_are_waited_for_no_longer_than_agreed(speaking, monkeypatch, first, again):
    monkeypatch.setattr(guard, "_HEADERS_SECONDS", 0.4)
    url = speaking(first, again)
    network = Network(RemoteAccess(hosts=(url,), hub=url, registry=url, stall_seconds=5.0))
    began = time.monotonic()
    with pytest.raises(Dropped), network.get(f"{url}/x"):
        pass
    network.close()
    assert time.monotonic() - began < 4


def test_a_document_that_trickles_is_given_up(speaking, monkeypatch):
    monkeypatch.setattr(guard, "_DOCUMENT_SECONDS", 0.3)
    url = speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"[")
    network = Network(RemoteAccess(hosts=(url,), hub=url, registry=url, stall_seconds=5.0))
    with pytest.raises(Dropped, match="too slowly"):
        network.json(f"{url}/x", list)
    network.close()


def test_headers_of_any_size_are_not_kept(speaking):
    url = speaking(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000, b"x")
    network = Network(RemoteAccess(hosts=(url,), hub=url, registry=url, stall_seconds=5.0))
    with pytest.raises(Dropped), network.get(f"{url}/x"):
        pass
    network.close()


def test_a_listed_name_cannot_send_on_to_an_origin_of_the_operators(hub: FakeHub, monkeypatch):
    with FakeHub() as inside:
        hub.files["/x.gguf"] = inside.files["/x.gguf"] = b"GGUF"
        hub.always["x.gguf"] = Fault.ELSEWHERE
        hub.elsewhere = inside.url
        access = RemoteAccess(hosts=(hub.url, inside.url), hub=hub.url, registry=hub.url)
        network = Network(access)
        with network.get(f"{hub.url}/x.gguf") as answer:
            assert answer.status == 200, "one of the operator's own may"
        admit = guard.admit
        public = lambda url, hosts: replace_trust(admit(url, hosts), url.startswith(inside.url))  # noqa: E731
        monkeypatch.setattr(guard, "admit", public)
        network._open = network._trusted
        inside.requests.clear()
        with pytest.raises(Forbidden, match="only its operator"), network.get(f"{hub.url}/x.gguf"):
            pass
        network.close()
        assert not inside.requests


def replace_trust(place: guard.Place, trusted: bool) -> guard.Place:
    return guard.Place(place.scheme, place.host, place.port, trusted)
