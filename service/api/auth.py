"""Who may call what, and who called: keys, compared as hashes in constant time; what is not listed here is denied.

Beyond this module a key is known by its id, a part of its hash.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from service.domain.errors import Unauthorized

# Answered without a key: load balancers ask these and hold no secrets. Matched whole, against the routed path.
PUBLIC_PATHS = frozenset({"/health", "/ready"})

# Where the gate leaves the id of the key in a request's ASGI scope, and its length in hexadecimal digits.
_KEY_ID = "quantry.key_id"
_KEY_ID_LENGTH = 16

_HINT = "send Authorization: Bearer <key> or X-API-Key: <key>, with a key from QUANTRY_API_KEYS."


def hash_key(key: str) -> bytes:
    """What the server keeps of a key. Keys are long and random, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def hash_keys(keys: Iterable[str]) -> tuple[bytes, ...]:
    """`hash_key` of each."""
    return tuple(hash_key(key) for key in keys)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `salt` keeps the caches of different keys apart, `name` is whose turn it is when requests wait."""

    salt: str
    name: str


def check_key(path: str, headers: Iterable[tuple[bytes, bytes]], known: tuple[bytes, ...]) -> str:
    """The id of the key that the request carries; empty when `path` is public or no keys are set.

    Raises Unauthorized for any other request. `headers` are ASGI's: lower-case names, raw values.
    """
    if not known or path in PUBLIC_PATHS:
        return ""
    given = _given_key(headers)
    if given is None:
        raise Unauthorized(f"This server asks for a key: {_HINT}")
    hashed = hashlib.sha256(given).digest()
    # Every known key is compared, so that the time taken tells nothing of which one was near.
    matches = [hmac.compare_digest(hashed, key) for key in known]
    if not any(matches):
        raise Unauthorized(f"That key is not known here: {_HINT}")
    return hashed.hex()[:_KEY_ID_LENGTH]


def admit(scope: MutableMapping[str, Any], key_id: str) -> None:
    """Note in an ASGI scope which key opened the gate."""
    scope[_KEY_ID] = key_id


def caller(scope: MutableMapping[str, Any]) -> Caller:
    """Who sent the request of an ASGI scope: its key where keys are set, else the address it came from."""
    key_id = scope.get(_KEY_ID, "")
    peer = scope.get("client")
    return Caller(salt=key_id, name=key_id or (peer[0] if peer else ""))


def _given_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    found = dict(headers)
    authorization = found.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return found.get(b"x-api-key")
