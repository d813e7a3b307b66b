"""Who may call what: keys, compared as hashes in constant time; everything is denied that is not listed here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from service.domain.errors import Unauthorized

# Answered without a key: load balancers ask these and hold no secrets. Matched whole, against the routed path.
PUBLIC_PATHS = frozenset({"/health", "/ready"})

_HINT = "send Authorization: Bearer <key> or X-API-Key: <key>, with a key from QUANTRY_API_KEYS."


def hash_key(key: str) -> bytes:
    """What the server keeps of a key. Keys are long and random, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def hash_keys(keys: Iterable[str]) -> tuple[bytes, ...]:
    """`hash_key` of each."""
    return tuple(hash_key(key) for key in keys)


def check_key(path: str, headers: Iterable[tuple[bytes, bytes]], known: tuple[bytes, ...]) -> None:
    """Raise Unauthorized unless `path` is public, no keys are set, or the request carries a known key.

    `headers` are ASGI's: lower-case names, raw values.
    """
    if not known or path in PUBLIC_PATHS:
        return
    given = _given_key(headers)
    if given is None:
        raise Unauthorized(f"This server asks for a key: {_HINT}")
    hashed = hashlib.sha256(given).digest()
    # Every known key is compared, so that the time taken tells nothing of which one was near.
    matches = [hmac.compare_digest(hashed, key) for key in known]
    if not any(matches):
        raise Unauthorized(f"That key is not known here: {_HINT}")


def _given_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    found = dict(headers)
    authorization = found.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return found.get(b"x-api-key")
