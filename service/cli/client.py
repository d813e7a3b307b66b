"""The REST API as this command needs it: typed answers in, one kind of failure out. Knows HTTP, and no terminal.

Every request has a timeout. The proxies of the environment are not used for a server on this machine.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from service.api.shapes import ErrorBody
from service.cli.events import ServerEvent, events
from service.cli.failures import REMEDIES, CommandFailed, ExitCode

Shape = TypeVar("Shape", bound=BaseModel)
Params = Mapping[str, str | int]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0  # an import is answered within QUANTRY_IMPORT_WAIT_SECONDS, at most 300
LONG_SECONDS = 960.0  # a generation may wait for its turn and for a load: 300 and 600 by default
VERIFY_SECONDS = 3600.0  # a whole file is read
# The server says something every 15 seconds: silence four times as long is a connection that is gone.
SILENCE_SECONDS = 60.0


class ConnectionLost(Exception):
    """The stream broke before its end; it may be resumed."""


def is_local(url: str) -> bool:
    """True when the server is on this machine, going by its address."""
    host = httpx.URL(url).host
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ref_path(ref: str) -> str:
    """A model reference as one part of a path."""
    return quote(ref, safe="")


class Client:
    """A connection to one server. Every method raises CommandFailed with the server's own words."""

    def __init__(self, url: str, api_key: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        """`transport` replaces the network."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise CommandFailed(
                "invalid_url",
                f"{url!r} is no address of a server.",
                remedy="write it like http://127.0.0.1:8080, in --url or QUANTRY_URL",
                exit_code=ExitCode.USAGE,
            )
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not is_local(self.url),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def is_local(self) -> bool:
        """Whether the server can read the files of this machine."""
        return is_local(self.url)

    # --- one answer ----------------------------------------------------------------------------------------------

    def get(self, shape: type[Shape], path: str, params: Params | None = None) -> Shape:
        """GET, as `shape`."""
        return read(shape, self.send("GET", path, params=params))

    def post(
        self, shape: type[Shape], path: str, body: Mapping[str, Any] | None = None, *, seconds: float = ANSWER_SECONDS
    ) -> Shape:
        """POST a JSON body, as `shape`."""
        return read(shape, self.send("POST", path, body=body, seconds=seconds))

    def delete(self, shape: type[Shape], path: str) -> Shape:
        """DELETE, as `shape`."""
        return read(shape, self.send("DELETE", path))

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Mapping[str, Any] | None = None,
        content: Iterator[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
        allow: tuple[int, ...] = (),
    ) -> httpx.Response:
        """One request, its answer read whole. `allow`: statuses of failures that are answers here."""
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            response = self._http.request(
                method, path, params=params, json=body, content=content, headers=headers, timeout=timeout
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_success or response.status_code in allow:
            return response
        raise refusal(response)

    def download(self, path: str, target: Path, params: Params | None = None) -> int:
        """GET raw bytes into a file, which is there whole or not at all; how many. OSError when it cannot be."""
        partial = target.with_name(f".{target.name}.part")
        try:
            with partial.open("wb") as file:
                received = self._copy(path, params, file)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return received

    def _copy(self, path: str, params: Params | None, file: BinaryIO) -> int:
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        received = 0
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                for chunk in response.iter_bytes():
                    received += file.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return received

    @contextmanager
    def receive(
        self, path: str, *, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """GET raw bytes: the status, and the bytes as they come."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        try:
            with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response.status_code, response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    # --- streams -------------------------------------------------------------------------------------------------

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Iterator[Iterator[ServerEvent]]:
        """The events of an answer, as they come; leaving the block hangs up, which the server takes as a cancel.

        ConnectionLost when the connection breaks once it has begun.
        """
        timeout = httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS)
        began = False
        try:
            with self._http.stream(method, path, json=body, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                began = True
                yield events(response.iter_bytes())
        except httpx.TransportError as error:
            if began:
                raise ConnectionLost(str(error)) from error
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> CommandFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CommandFailed(
                "unreachable",
                f"No quantry server answers at {self.url}.",
                remedy="start one with `quantry serve`, or name another with --url",
                exit_code=ExitCode.UNREACHABLE,
            )
        if isinstance(error, httpx.TimeoutException):
            return CommandFailed(
                "timeout",
                f"The server at {self.url} did not answer in time.",
                remedy="try again; `quantry jobs` and `quantry ps` show what it is busy with",
                exit_code=ExitCode.UNREACHABLE,
            )
        return CommandFailed(
            "connection_lost",
            f"The connection to {self.url} broke before the answer came.",
            remedy="try again; the server's log says more if it happens twice",
            exit_code=ExitCode.UNREACHABLE,
        )


def read(shape: type[Shape], response: httpx.Response) -> Shape:
    """An answer's body as `shape`."""
    try:
        return shape.model_validate_json(response.content)
    except ValidationError:
        raise _foreign(response) from None


def refusal(response: httpx.Response) -> CommandFailed:
    """What the server said no with."""
    try:
        error = ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        return _foreign(response)
    remedy = REMEDIES.get(error.code)
    wait = response.headers.get("Retry-After")
    if remedy is None and wait is not None and wait.isdecimal():
        remedy = f"try again in {wait} s"
    return CommandFailed(error.code, error.message, remedy=remedy)


def failure_of(event: ServerEvent) -> CommandFailed:
    """The error that came in a stream."""
    try:
        error = ErrorBody.model_validate_json(event.data).error
    except ValidationError:
        return CommandFailed("bad_answer", "The stream ended with an error that could not be read.")
    return CommandFailed(error.code, error.message, remedy=REMEDIES.get(error.code))


def parse(shape: type[Shape], event: ServerEvent) -> Shape:
    """An event's data as `shape`."""
    try:
        return shape.model_validate_json(event.data)
    except ValidationError:
        raise CommandFailed(
            "bad_answer",
            f"The server sent an event {event.kind!r} that this version of quantry cannot read.",
            remedy="compare `quantry version` with the version of the server",
        ) from None


def text_of(event: ServerEvent) -> str:
    """The text of a `token` event."""
    try:
        return str(json.loads(event.data)["text"])
    except (ValueError, KeyError, TypeError):
        return ""


def _foreign(response: httpx.Response) -> CommandFailed:
    return CommandFailed(
        "bad_answer",
        f"What answers at {response.request.url.scheme}://{response.request.url.netloc.decode()} does not speak as "
        f"quantry does (HTTP {response.status_code}).",
        remedy="name the address of a quantry server with --url, and compare `quantry version` with its version",
    )
