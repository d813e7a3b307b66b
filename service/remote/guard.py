"""Every connection to another server: where it may lead is checked first, and what comes back is bounded.

    URL ──on the list?──> name resolved ──public?──> connected to that very address ──> TLS for the name ──> answer
     ^                                                                                              └─ sends on, 5 times

In children. A name is resolved once for each connection, and what was checked is what is connected to: a name that
means another address a moment later changes nothing. No proxies and no cookies; answers that are compressed are
refused; the token goes to the hub's own origin alone. Messages name hosts and nothing else of an address.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import msgspec

from service.domain.errors import Forbidden, RemoteFailed
from service.domain.remote import Place, RemoteAccess, admit, is_public, shown

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 32 * 1024 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 3600.0
_VISIBLE = re.compile(r"[\x21-\x7e]+")

Resolve = Callable[[str, int], Sequence[str]]
"""`(host, port)` -> IP addresses."""


class Dropped(Exception):
    """A connection that could not be made or ended early, or a server that is busy; trying again may help."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Answer:
    """A status, headers in lower case, and a body that has not been read."""

    def __init__(self, response: httpcore.Response, place: Place) -> None:
        self.status = response.status
        self.place = place
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in response.headers
        }
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raises Dropped when it ends before it should, Forbidden when it is compressed."""
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise RemoteFailed(
                f"{shown(self.place.host)} sends a compressed body, which was not asked for and is not read."
            )
        with _as_dropped():
            yield from self._response.iter_stream()

    def content(self, limit_bytes: int) -> bytes:
        """The whole body. Raises RemoteFailed when it is larger than `limit_bytes`."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise RemoteFailed(f"{shown(self.place.host)} answers with more than {limit_bytes} bytes.")
        return bytes(body)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server says."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and len(text) < 20 else None

    @property
    def retry_after_seconds(self) -> float | None:
        """What the server asks for, in seconds from now, an hour at most."""
        text = self.headers.get("retry-after", "")
        if text.isdecimal() and len(text) < 10:
            return min(float(text), _LONGEST_WAIT_SECONDS)
        try:
            return min(max(0.0, parsedate_to_datetime(text).timestamp() - time()), _LONGEST_WAIT_SECONDS)
        except (ValueError, OverflowError):
            return None

    @property
    def validator(self) -> str | None:
        """What If-Range takes to mean this very file: a strong ETag, else the date. Compared and sent, never a path."""
        etag = self.headers.get("etag", "")
        if len(etag) <= 256 and etag.startswith('"') and etag.endswith('"') and _VISIBLE.fullmatch(etag):
            return etag
        date = self.headers.get("last-modified", "")
        return date if re.fullmatch(r"[A-Za-z0-9 ,:+-]{10,60}", date) else None


class Network:
    """What a child may reach. Any thread may use it."""

    def __init__(self, access: RemoteAccess, *, resolve: Resolve | None = None) -> None:
        """`resolve` replaces the system's."""
        self.access = access
        context = httpcore.default_ssl_context()
        options: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": access.connections + 4,
            "max_keepalive_connections": access.connections,
            "keepalive_expiry": 30.0,
        }
        self._open = httpcore.ConnectionPool(network_backend=_Guarded(resolve or _resolved), **options)
        self._trusted = httpcore.ConnectionPool(**options)
        self._hub = admit(access.hub, (access.hub,)).origin

    def close(self) -> None:
        """End every connection."""
        self._open.close()
        self._trusted.close()

    @contextmanager
    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        may_leave: bool = True,
        authorization: str | None = None,
    ) -> Iterator[Answer]:
        """GET `url`, following where it sends on. `may_leave` False: not to another origin.

        `authorization` goes to the first origin alone, in place of the hub's token. Raises Forbidden, RemoteFailed,
        Dropped.
        """
        first: Place | None = None
        for _ in range(MAX_REDIRECTS + 1):
            place = admit(url, self.access.hosts)
            first = first or place
            if not may_leave and place.origin != first.origin:
                raise RemoteFailed(f"{shown(first.host)} sends on to another server, where it should not.")
            secret = self._secret_for(place, authorization if place.origin == first.origin else None)
            response = self._send(url, place, {**(headers or {}), **secret})
            try:
                answer = Answer(response, place)
                if response.status not in _REDIRECTS:
                    yield answer
                    return
                url = _next(url, answer)
            finally:
                with _as_dropped():
                    response.close()
        host = "" if first is None else shown(first.host)
        raise RemoteFailed(f"{host} sends on more than {MAX_REDIRECTS} times.")

    def json(self, url: str, kind: Any, *, limit_bytes: int = MAX_JSON_BYTES) -> Any:
        """A JSON document as `kind`, and no errors' text. Raises as `get` does; NotOk for a status that is no 200."""
        with self.get(url, may_leave=False) as answer:
            if answer.status != 200:
                raise NotOk(answer)
            body = answer.content(limit_bytes)
        return decoded(body, kind, answer.place)

    def _secret_for(self, place: Place, authorization: str | None) -> dict[str, str]:
        if authorization is not None:
            return {"Authorization": authorization}
        token = self.access.hub_token
        return {"Authorization": f"Bearer {token.value}"} if token is not None and place.origin == self._hub else {}

    def _send(self, url: str, place: Place, headers: Mapping[str, str]) -> httpcore.Response:
        pool = self._trusted if place.trusted else self._open
        timeout = {
            "connect": _CONNECT_SECONDS,
            "read": self.access.stall_seconds,
            "write": self.access.stall_seconds,
            "pool": self.access.stall_seconds,
        }
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = httpcore.Request(
            "GET",
            httpcore.URL(scheme=place.scheme, host=place.host, port=parts.port, target=target),
            headers=[
                ("Host", place.origin.partition("://")[2]),
                ("User-Agent", "quantry"),
                ("Accept", "*/*"),
                ("Accept-Encoding", "identity"),
                *headers.items(),
            ],
            extensions={"timeout": timeout},
        )
        with _as_dropped():
            return pool.handle_request(request)


class NotOk(Exception):
    """An answer that is none: its status, and the headers that say why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


def decoded(body: bytes, kind: Any, place: Place) -> Any:
    """JSON as `kind`. Raises RemoteFailed."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RemoteFailed(f"{shown(place.host)} answers with something else than was asked for.") from None


class _Guarded(httpcore.NetworkBackend):
    """Connects to public addresses alone."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
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


def _resolved(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError("the name is not known") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _next(url: str, answer: Answer) -> str:
    location = answer.headers.get("location", "")
    if not location or len(location) > 8192 or not location.isascii() or not location.isprintable() or " " in location:
        raise RemoteFailed(f"{shown(answer.place.host)} sends on to what is no address.")
    return urljoin(url, location).partition("#")[0]


@contextmanager
def _as_dropped() -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, TimeoutError):
        raise Dropped("it does not answer") from None
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
        ssl.SSLError,
        OSError,
    ) as error:
        raise Dropped(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.ConnectError | ssl.SSLError):
        certificate = "certificate" in str(error).lower()
        return "its certificate is not valid" if certificate else "it cannot be connected to"
    return "the connection broke"
