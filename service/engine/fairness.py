"""Whose turn it is: a queue for each client, and the client that has been served least goes first. Pure.

The count of served tokens is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
(2024): a client that comes (back) starts level with the least served one that is there, so that idling earns no credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeVar


class Queued(Protocol):
    """What can wait: it belongs to a client."""

    client: str


Item = TypeVar("Item", bound=Queued)


class FairQueue(dict[str, "deque[Item]"]):
    """Waiting items by client, each client's in order of arrival. Only clients with waiting items are in it."""

    def __init__(self) -> None:
        super().__init__()
        self._served: dict[str, float] = {}
        self._present: dict[str, int] = {}  # items of a client that wait or run

    def enter(self, client: str) -> None:
        """An item of this client has come to stay until `leave`; call it before `push`."""
        count = self._present.get(client, 0)
        if count == 0:
            floor = min((self._served[other] for other in self._present), default=0.0)
            self._served[client] = max(self._served.get(client, 0.0), floor)
        self._present[client] = count + 1

    def leave(self, client: str) -> None:
        """An item of this client has gone for good."""
        self._present[client] -= 1
        if self._present[client] == 0:
            del self._present[client]
            floor = min((self._served[other] for other in self._present), default=None)
            if floor is None:
                self._served.clear()
            elif self._served[client] <= floor:
                del self._served[client]

    def charge(self, client: str, tokens: int) -> None:
        """This client has been served."""
        self._served[client] += tokens

    def push(self, item: Item, *, front: bool = False) -> None:
        """Let an item wait behind (or before) the others of its client."""
        queue = self.setdefault(item.client, deque())
        if front:
            queue.appendleft(item)
        else:
            queue.append(item)

    def discard(self, item: Item) -> bool:
        """Take an item out; False when it does not wait."""
        queue = self.get(item.client)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self[item.client]
        return True

    def in_turn(self) -> Iterator[Item]:
        """Every waiting item, those of the least served client first; items may be taken out meanwhile."""
        for client in sorted(self, key=lambda name: self._served[name]):
            yield from tuple(self[client])
