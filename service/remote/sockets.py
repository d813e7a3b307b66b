"""Sockets that lead to public addresses alone, and that do not wait for headers without end. In children.

What a name means is asked once for each connection, and what was checked is what is connected to.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpcore

from service.domain.errors import Forbidden
from service.domain.reach import is_public, shown

Resolve = Callable[[str, int], Sequence[str]]
"""`(host, port)` -> IP addresses."""


class Guarded(httpcore.NetworkBackend):
    """Connects to public addresses alone."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        """`resolve` replaces the system's."""
        self._resolve = resolve or _resolved
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """As httpcore asks for it. Raises Forbidden for a name that leads elsewhere, also with one of its addresses."""
        addresses = self._resolve(host, port)
        if not addresses:
            raise httpcore.ConnectError("no address")
        if not all(is_public(address) for address in addresses):
            raise Forbidden(f"{shown(host)} leads to a private address, where models are not fetched from.")
        problem: Exception = httpcore.ConnectError("no address")
        for address in addresses[:4]:
            try:
                return self._system.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class Until(threading.local):
    """The moment until which the calling thread waits for headers; None: it does not."""

    moment: float | None = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """While the block runs."""
        self.moment = monotonic() + seconds
        try:
            yield
        finally:
            self.moment = None

    def shortened(self, timeout: float | None) -> float | None:
        """A timeout that does not go past the moment. Raises ReadTimeout when it is over."""
        if self.moment is None:
            return timeout
        left = self.moment - monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the headers do not end")
        return left if timeout is None else min(timeout, left)


class Timed(httpcore.NetworkBackend):
    """Another backend, whose streams end reading at a moment."""

    def __init__(self, backend: httpcore.NetworkBackend, until: Until) -> None:
        self._backend = backend
        self._until = until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """As the other backend does."""
        stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _TimedStream(stream, self._until)


class _TimedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, until: Until) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._until.shortened(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolved(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError("the name is not known") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
