"""How many cores other processes leave to this one, from the kernel's counters. The edge beside governor.py.

Runs in a worker, on the engine's thread. Linux only: elsewhere, and where the counters are hidden, it knows nothing and
says so.
"""

from __future__ import annotations

import os
import time

_INTERVAL_SECONDS = 0.25
_STAT = "/proc/stat"
_LINE_BYTES = 160  # more than the line of a core can take; the cores come first
_IDLE_FIELDS = (3, 4)  # idle, iowait
_CPU_FIELDS = 8  # user ... steal; guest time is in user already


class Neighbours:
    """Reads the counters at most every quarter of a second; a few microseconds a reading.

    Make it before the model is loaded: the first step then knows what was free meanwhile.
    """

    def __init__(self) -> None:
        self._file = -1
        self._names: frozenset[bytes] = frozenset()
        self._bytes = 0
        if hasattr(os, "sched_getaffinity"):
            self._names = frozenset(b"cpu%d" % core for core in os.sched_getaffinity(0))
            self._bytes = _LINE_BYTES * (2 + max(os.sched_getaffinity(0)))
            try:
                self._file = os.open(_STAT, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._file = -1
        self._ticks = float(os.sysconf("SC_CLK_TCK")) if self._file >= 0 else 0.0
        self._read_at = 0.0
        self._busy = self._own = 0.0
        self._free: float | None = None
        if self._file >= 0:
            self._busy, self._own, self._read_at = self._busy_seconds(), time.process_time(), time.monotonic()

    def free_cores(self, now: float) -> float | None:
        """Cores of this process's set that others left free in the last quarter of a second or more.

        `now` is `time.monotonic()`. None when unknown. Time that a hypervisor took counts as taken by others.
        """
        passed = now - self._read_at
        if self._file < 0 or passed < _INTERVAL_SECONDS:
            return self._free
        busy, own = self._busy_seconds(), time.process_time()
        if busy == 0.0:  # a sandbox that hides the counters shows zeros
            self.close()
            self._free = None
            return None
        others = max(0.0, (busy - self._busy) - (own - self._own))
        self._free = max(0.0, len(self._names) - others / passed)
        self._busy, self._own, self._read_at = busy, own, now
        return self._free

    def close(self) -> None:
        """Close the counters' file; nothing is known afterwards."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _busy_seconds(self) -> float:
        ticks = 0
        for line in os.pread(self._file, self._bytes, 0).split(b"\n"):
            name, *fields = line.split()[: _CPU_FIELDS + 1] or [b""]
            if not name.startswith(b"cpu"):
                break
            if name in self._names:
                ticks += sum(int(value) for place, value in enumerate(fields) if place not in _IDLE_FIELDS)
        return ticks / self._ticks
