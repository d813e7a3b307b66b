"""Typed access to values of JSON files that anyone may have written: what is of another type is an InvalidModel.

Runs in job children. Depth, size and number of values were bounded when the file was read (`checkpoints.Files.json`).
"""

from __future__ import annotations

from typing import Any

from service.domain.errors import InvalidModel


def mapping(value: object, what: str) -> dict[str, Any]:
    """An object; a missing one (null) is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(what, "an object")
    return value


def sequence(value: object, what: str) -> list[Any]:
    """A list; a missing one (null) is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(what, "a list")
    return value


def text(value: object, what: str) -> str:
    """A text, which may hold any letters."""
    if not isinstance(value, str):
        raise _wrong(what, "a text")
    return value


def number(value: object, what: str) -> int:
    """A whole number from 0 up to 2^31 - 1, the ids that llama.cpp has."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise _wrong(what, "a whole number from 0 on")
    return value


def flag(value: object, what: str, default: bool = False) -> bool:
    """True or false; `default` for a missing one (null)."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(what, "true or false")
    return value


def _wrong(what: str, wanted: str) -> InvalidModel:
    return InvalidModel(f"The tokenizer's files are damaged: {what} is not {wanted}. Download them again.")
