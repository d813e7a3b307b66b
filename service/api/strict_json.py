"""Whether a body is strict JSON of bounded depth, told before any parser that recurses or guesses sees it.

Server process; blocks for milliseconds a megabyte, in linear time whatever the bytes. Knows no field and no route.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

import msgspec

from service.api.responses import field_path
from service.domain.errors import InvalidParameter, MalformedBody, QuantryError

MAX_JSON_DEPTH = 32

# Strings, closed or not, and everything else that is no bracket. Possessive, and an open string runs to the end:
# each byte is looked at once, whatever the body holds.
_NO_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[^"{}\[\]]++', re.DOTALL)


def check_json(body: bytes) -> None:
    """Raise MalformedBody unless `body` is strict JSON of at most `MAX_JSON_DEPTH` levels.

    Strict: no lone surrogates, no invalid UTF-8. The depth is counted before any parser recurses. A body that is wrong
    only for a number that no field can hold (NaN, Infinity, 1e400) raises InvalidParameter with that field.
    """
    depth = 0
    for byte in _NO_BRACKETS.sub(b"", body):
        if byte in b"[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise MalformedBody(f"The body is nested deeper than {MAX_JSON_DEPTH} levels; send flatter JSON.")
        else:
            depth -= 1
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _refusal(body) from None


class _Boundless:
    """Stands for a number that is none, or that no field can hold."""


_BOUNDLESS = _Boundless()


def _refusal(body: bytes) -> QuantryError:
    """What is wrong with a body that is no strict JSON; one lenient parse and one walk find a number at fault."""
    try:
        value = json.loads(body.decode(), parse_constant=lambda _: _BOUNDLESS, parse_float=_bounded, parse_int=_bounded)
    except ValueError:
        value = None
    path = _find_boundless(value, ())
    if path is None:
        return MalformedBody("The body is no valid JSON; send one JSON object in UTF-8.")
    if not path:
        return MalformedBody("The body must be one JSON object.")
    param = field_path(path)
    return InvalidParameter(f"{param}: this is no finite number; send one within the limits of the field.", param=param)


def _bounded(digits: str) -> float | _Boundless:
    value = float(digits)
    return value if isfinite(value) else _BOUNDLESS


def _find_boundless(value: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
    """Where the first number at fault lies; the depth of `value` has been bounded before."""
    if isinstance(value, _Boundless):
        return path
    if isinstance(value, dict):
        members: Any = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    else:
        return None
    for key, member in members:
        found = _find_boundless(member, (*path, key))
        if found is not None:
            return found
    return None
