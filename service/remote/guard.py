"""Every connection to another server: where it may lead is checked first, and what comes back is bounded.

    URL ──on the list?──> name resolved ──public?──> connected to that very address ──> TLS for the name ──> answer
     ^                                                                                              └─ sends on, 5 times

In children. A name is resolved once for each connection, and what was checked is what is connected to: a name that
means another address a moment later changes nothing. No proxies and no cookies; answers that are compressed are
refused, and so are headers and documents without end; the token goes to the hub's own origin alone. Messages name hosts
and nothing else of an address.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import msgspec

from service.domain.errors import Forbidden, RemoteFailed
from service.domain.reach import Place, admit, shown
from service.domain.remote import RemoteAccess
from service.remote.sockets import Guarded, Resolve, Timed, Until

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 32 * 1024 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_SECONDS = 15.0
# For an answer's headers, connecting included, and for a document: a byte now and then is not to hold us for ever.
_HEADERS_SECONDS = 120.0
_DOCUMENT_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 3600.0
_VISIBLE = re.compile(r"[\x21-\x7e]+")


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
        """The whole body. Raises RemoteFailed when it is larger than `limit_bytes`, Dropped when it takes a minute."""
        body = bytearray()
        until = monotonic() + _DOCUMENT_SECONDS
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise RemoteFailed(f"{shown(self.place.host)} answers with more than {limit_bytes} bytes.")
            if monotonic() > until:
                raise Dropped("it answers too slowly")
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
        until = _seconds_of(text)
        if until is None:
            return None
        # By the server's own clock, where it tells the time: ours may be hours off.
        now = _seconds_of(self.headers.get("date", ""))
        return min(max(0.0, until - (time() if now is None else now)), _LONGEST_WAIT_SECONDS)

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
        self._headers_until = Until()
        guarded = Guarded(resolve)
        self._open = httpcore.ConnectionPool(network_backend=Timed(guarded, self._headers_until), **options)
        system = httpcore.SyncBackend()
        self._trusted = httpcore.ConnectionPool(network_backend=Timed(system, self._headers_until), **options)
        self._hub = admit(access.hub, (access.hub,)).origin
        self._permits: dict[str, str] = {}

    def close(self) -> None:
        """End every connection."""
        self._open.close()
        self._trusted.close()

    def permit(self, base: str, authorization: str) -> None:
        """From now on send this with every URL below `base`, and with no other that it sends on to."""
        self._permits[f"{base}/"] = authorization

    @contextmanager
    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        may_leave: bool = True,
    ) -> Iterator[Answer]:
        """GET `url`, following where it sends on. `may_leave` False: not to another origin.

        The hub's token goes to the hub's own origin alone, what was permitted to what it was permitted for. Raises
        Forbidden, RemoteFailed, Dropped.
        """
        first: Place | None = None
        before: Place | None = None
        for _ in range(MAX_REDIRECTS + 1):
            place = admit(url, self.access.hosts)
            first = first or place
            if not may_leave and place.origin != first.origin:
                raise RemoteFailed(f"{shown(first.host)} sends on to another server, where it should not.")
            if before is not None and place.trusted and not before.trusted:
                # What is the operator's own is asked by us, and by nobody on the internet through us.
                raise Forbidden(f"{shown(before.host)} sends on to a server that only its operator is to name.")
            before = place
            secret = self._secret_for(url, place)
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

    def _secret_for(self, url: str, place: Place) -> dict[str, str]:
        for base, authorization in self._permits.items():
            if url.startswith(base):
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
            httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=target),
            headers=[
                ("Host", place.origin.partition("://")[2]),
                ("User-Agent", "quantry"),
                ("Accept", "*/*"),
                ("Accept-Encoding", "identity"),
                *headers.items(),
            ],
            extensions={"timeout": timeout},
        )
        with _as_dropped(), self._headers_until.within(_HEADERS_SECONDS):
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


def _seconds_of(date: str) -> float | None:
    """A date of HTTP in seconds since the epoch; None for what is none."""
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


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
