"""Answers, and parts of them, that are kept for as long as what they were worked out from is the same. Any thread."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_MOST_PARTS = 50_000  # a part of a list takes a few kilobytes

Part = TypeVar("Part")


class LastAnswer:
    """An answer that took long to work out, for as long as what it was worked out from is the same."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._body: bytes | None = None

    def get(self, key: Hashable) -> bytes | None:
        """The answer for `key`, if that was the last one. The first member of a key is None where none can be kept."""
        return self._body if key == self._key else None

    def keep(self, key: tuple[object, ...], body: bytes) -> bytes:
        """Keep this one instead."""
        if key[0] is not None:
            self._key, self._body = key, body
        return body


class Parts:
    """Parts of a long answer, each with what it was worked out from: after a change only what changed is done again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[object, Any]] = {}

    def get(self, key: Hashable, made_from: object, make: Callable[[], Part]) -> Part:
        """The part called `key`, made anew unless it was made from equal values."""
        known = self._known.get(key)
        if known is not None and known[0] == made_from:
            part: Part = known[1]
            return part
        if len(self._known) >= _MOST_PARTS:
            self._known = {}
        part = make()
        self._known[key] = (made_from, part)
        return part
