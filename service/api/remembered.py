"""Answers, and parts of them, that are kept for as long as what they were worked out from is the same. Any thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import NamedTuple

_MOST_BYTES = 128 << 20  # ten levels of a model, with what else could be made of it, take some 20 KiB

_OVERHEAD_BYTES = 500  # of a part, beside its bytes

Part = tuple[bytes, ...]


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


class _Known(NamedTuple):
    made_from: object
    part: Part
    size_bytes: int


class Parts:
    """Parts of long answers, encoded, each with what it was made from: after a change only what changed is done again.

    They take a bounded number of bytes; those that were not asked for the longest go first.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._size_bytes = 0
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, made_from: object) -> Part | None:
        """The part called `key`, if it was made from an equal value."""
        with self._lock:
            known = self._known.get(key)
            if known is None or known.made_from != made_from:
                return None
            self._known.move_to_end(key)
            return known.part

    def keep(self, key: Hashable, made_from: object, part: Part) -> None:
        """Keep this one, in the place of another of that key."""
        size_bytes = _OVERHEAD_BYTES + sum(map(len, part))
        with self._lock:
            if (old := self._known.pop(key, None)) is not None:
                self._size_bytes -= old.size_bytes
            self._known[key] = _Known(made_from, part, size_bytes)
            self._size_bytes += size_bytes
            while self._size_bytes > self._most_bytes:
                _, oldest = self._known.popitem(last=False)
                self._size_bytes -= oldest.size_bytes
