"""How long a server that is busy or gone is waited for, and how fast bytes may come. In children."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from service.domain.errors import RemoteFailed
from service.domain.remote import shown
from service.remote.guard import Dropped

T = TypeVar("T")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same may be asked again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """`tries` in a row that bring nothing are one too many. Pauses double from the first to the longest."""

    tries: int = 6
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 60.0

    def pause_seconds(self, tries: int, asked_seconds: float | None) -> float:
        """Seconds before the next try, after `tries` in a row; what the server asks for counts up to the longest."""
        own = self.first_pause_seconds * 2.0 ** (tries - 1) * random.uniform(0.75, 1.25)
        return min(self.longest_pause_seconds, max(own, asked_seconds or 0.0))


def insist(ask: Callable[[], T], patience: Patience, host: str) -> T:
    """`ask` until it gives no Dropped. Raises RemoteFailed when patience ends."""
    tries = 0
    while True:
        try:
            return ask()
        except Dropped as problem:
            tries += 1
            if tries >= patience.tries:
                raise gave_up(host, problem) from problem
            time.sleep(patience.pause_seconds(tries, problem.retry_after_seconds))


def gave_up(host: str, problem: Dropped) -> RemoteFailed:
    """The error for a server that was tried often enough."""
    return RemoteFailed(f"{shown(host)} was tried several times and failed: {problem.reason}. Try again later.")


class Limiter:
    """Lets bytes pass at most at a pace that all threads share."""

    def __init__(
        self,
        bytes_per_second: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """0: at any pace."""
        self._pace = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._due = 0.0

    def take(self, count: int) -> float:
        """`count` bytes have come: sleep until they were due. Returns the seconds slept."""
        if self._pace <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._due = max(self._due, now) + count / self._pace
            wait = self._due - now
        self._sleep(wait)
        return wait
