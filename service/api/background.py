"""Work that an answer starts and does not wait for. On the event loop of the server process.

Bounded by what is handed in: every piece ends by itself, and the loop's end cancels what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

_log = structlog.get_logger("quantry.background")


class Background:
    """Holds tasks until they end: the loop itself keeps only weak references, and would drop one half-way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> None:
        """Run `work` to its end; what it raises is logged under `name`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background_work_failed", work=task.get_name(), exc_info=task.exception())
