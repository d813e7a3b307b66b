"""A job's child makes way for inference: it is stopped while texts are being generated, but for a share of the time.

    running ──someone generates──> stopped ──17 s──> running for 3 s ──> stopped ...
       ^                              └──nobody has for a second──> running

Server process. The lowest priority alone is not enough: each step of a worker waits for its slowest thread, so that a
job on one core takes the worker's other core too, and a stream lost 37 % of its pace (docs/measurements.md). Whole
seconds at a time, because a worker needs about one to see that its cores are free again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.jobs.child import Child

_POLL_SECONDS = 0.1
_QUIET_SECONDS = 1.0  # between two requests of one conversation the job need not wake up
_STOPPED_SECONDS = 17.0
_RUNNING_SECONDS = 3.0


async def make_way(child: Child, is_serving: Callable[[], bool]) -> None:
    """Stop and continue `child` as inference comes and goes, until this task is cancelled; it then runs."""
    served_at = -_QUIET_SECONDS
    turns_at = time.monotonic()
    try:
        while True:
            now = time.monotonic()
            if is_serving():
                served_at = now
            if now - served_at >= _QUIET_SECONDS:
                child.go_on()
                turns_at = now  # the next text finds it at the beginning of its pause
            elif (now - turns_at) % (_STOPPED_SECONDS + _RUNNING_SECONDS) < _STOPPED_SECONDS:
                child.pause()
            else:
                child.go_on()
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        child.go_on()
