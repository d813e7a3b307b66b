"""How long a server that is busy or gone is waited for, and how fast and over what bytes may come. In children."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from service.domain.errors import RemoteFailed
from service.domain.reach import shown
from service.remote.guard import Dropped

T = TypeVar("T")
_DUE = struct.Struct("<d")  # seconds of the machine's monotonic clock

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
    """Lets bytes pass at most at a pace that all threads share, and all processes that name the same file."""

    def __init__(
        self,
        bytes_per_second: int,
        shared: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """0: at any pace. `shared` is made when it is missing, and must not outlive the machine's running time: its
        clock begins anew with that.
        """
        self._pace = bytes_per_second
        self._shared = shared if bytes_per_second > 0 else None
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
            self._due = self._book(now, count / self._pace)
            wait = self._due - now
        self._sleep(wait)
        return wait

    def _book(self, now: float, seconds: float) -> float:
        """When the next bytes are due."""
        if self._shared is None:
            return max(self._due, now) + seconds
        descriptor = os.open(self._shared, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            written = os.pread(descriptor, _DUE.size, 0)
            before = _DUE.unpack(written)[0] if len(written) == _DUE.size else 0.0
            due = max(float(before), now) + seconds
            os.pwrite(descriptor, _DUE.pack(due), 0)
            return due
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a file is fetched. `limit_bytes`: no file is larger. `begins_with`: else it is refused at once."""

    connections: int = 4
    stall_seconds: float = 30.0
    limiter: Limiter = field(default_factory=lambda: Limiter(0))
    patience: Patience = field(default_factory=Patience)
    limit_bytes: int = 1 << 50
    begins_with: bytes = b""
    piece_bytes: int | None = None  # of one request; None: as suits the file
