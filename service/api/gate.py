"""The gate before every route: a sane Host, no foreign Origin, a known key. ASGI, on the routed path.

Works on `scope["path"]`, the very path the router matches, and never on a URL rebuilt from the Host header:
that is how other servers were led past their authentication (CVE-2026-48710).
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.auth import admit, check_key
from service.domain.errors import Forbidden

_HOST = re.compile(r"([a-z0-9](?:[a-z0-9._-]{0,252})|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")


class Gate:
    """Refuses what may not come in. Without keys only loopback names are a Host, which stops DNS rebinding."""

    def __init__(self, app: ASGIApp, *, api_key_hashes: tuple[bytes, ...], allowed_hosts: tuple[str, ...]) -> None:
        self._app = app
        self._keys = api_key_hashes
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or raise Forbidden or Unauthorized."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            headers: list[tuple[bytes, bytes]] = list(scope["headers"])
            host = self._check_host(headers)
            _check_origin(headers, host)
            admit(scope, check_key(scope["path"], headers, self._keys))
        await self._app(scope, receive, send)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> str:
        values = [value for name, value in headers if name == b"host"]
        host = values[0].decode("latin-1").lower() if len(values) == 1 else ""
        match = _HOST.fullmatch(host)
        if match is None:
            raise Forbidden("The Host header is missing or malformed; send one host name, with a port if need be.")
        name = match.group(1)
        if _LOOPBACK.fullmatch(name) or name in self._allowed_hosts or (self._keys and not self._allowed_hosts):
            return host
        raise Forbidden("This server does not answer to that Host; add the name to QUANTRY_ALLOWED_HOSTS.")


def _check_origin(headers: list[tuple[bytes, bytes]], host: str) -> None:
    for name, value in headers:
        if name == b"origin":
            scheme, separator, origin = value.decode("latin-1").lower().partition("://")
            # The scheme may differ behind a proxy that ends TLS; the host and port may not.
            if not separator or scheme not in ("http", "https") or origin != host:
                raise Forbidden("Web pages of other origins may not call this server; call it from its own origin.")
