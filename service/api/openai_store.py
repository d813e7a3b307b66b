"""Responses that are kept for `previous_response_id` and for looking at: in memory, bounded in number, bytes and age.

One event loop uses it. What one key has left, another does not see. Nothing survives the server.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from service.api.openai_items import Item, shown
from service.domain.errors import ResponseNotFound


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it was sent, the whole conversation before it, and its own items."""

    body: dict[str, Any]
    input: tuple[Item, ...]
    output: tuple[Item, ...]

    @property
    def conversation(self) -> tuple[Item, ...]:
        """What the next request goes on from."""
        return (*self.input, *self.output)


class ResponseStore:
    """Keeps the latest responses; the oldest go first. Each is counted with all of its conversation."""

    def __init__(
        self,
        *,
        most: int = 1000,
        most_bytes: int = 64 << 20,
        seconds: float = 86400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._clock = clock
        # By owner and id, oldest first: the response, its size, and when it is too old.
        self._kept: OrderedDict[tuple[str, str], tuple[StoredResponse, int, float]] = OrderedDict()
        self._bytes = 0

    def put(self, owner: str, response: StoredResponse) -> None:
        """Keep a response, and let go of the oldest ones that there is no room for."""
        size = len(msgspec.json.encode([response.body, *map(shown, response.conversation)]))
        self._kept[owner, response.body["id"]] = response, size, self._clock() + self._seconds
        self._bytes += size
        self._drop()

    def get(self, owner: str, response_id: str) -> StoredResponse:
        """A response of the owner's; ResponseNotFound where there is none, or no longer."""
        self._drop()
        found = self._kept.get((owner, response_id))
        if found is None:
            raise _missing(response_id)
        return found[0]

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response of the owner's; raises as `get`."""
        self._drop()
        if (owner, response_id) not in self._kept:
            raise _missing(response_id)
        self._forget((owner, response_id))

    def item(self, owner: str, item_id: str) -> Item | None:
        """An item that one of the owner's responses has made or read."""
        self._drop()
        for (kept_owner, _), (response, _, _) in reversed(self._kept.items()):
            if kept_owner == owner:
                for item in reversed(response.conversation):
                    if item.id == item_id:
                        return item
        return None

    def _drop(self) -> None:
        now = self._clock()
        while self._kept:
            key, (_, _, until) = next(iter(self._kept.items()))
            if len(self._kept) <= self._most and self._bytes <= self._most_bytes and now < until:
                return
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        _, size, _ = self._kept.pop(key)
        self._bytes -= size


def _missing(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(
        f"There is no response {response_id[:100]!r} here: it was not stored, is too old, or is another key's; "
        "send the conversation itself."
    )
