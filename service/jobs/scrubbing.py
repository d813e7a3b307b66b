"""Old blobs read again in the background: small jobs, one at a time, when there is nothing else to do. Server process.

Each blob has its turn once in so many days, the one whose bytes were read longest ago first. The reading itself is a
job like any other that verifies, at the lowest priority; here is only decided when there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from service.domain.errors import QuantryError
from service.domain.jobs import Job, VerifySpec
from service.jobs.queue import JobQueue
from service.jobs.runner import JobRunner
from service.store.blob_table import StoredBlob
from service.store.catalog import Catalog

LOOK_SECONDS = 60.0
_MOST_BLOBS = 64  # in one job
_MOST_BYTES = 16 << 30
_DAY_SECONDS = 86400.0

_log = structlog.get_logger("care")


async def scrub(
    catalog: Catalog, queue: JobQueue, runner: JobRunner, *, days: float, is_serving: Callable[[], bool]
) -> None:
    """Verify what has not been read for `days`, for ever; 0: nothing. Ends when it is cancelled."""
    while days > 0:
        try:
            if not is_serving() and not await asyncio.to_thread(queue.has_active):
                job = await verify_oldest(catalog, runner, days)
                if job is not None:
                    _log.info("verifying old blobs", job=job.id, blobs=len(job.steps))
        except QuantryError as problem:
            _log.warning("old blobs were not verified; trying again", problem=problem.message)
        except Exception:
            _log.exception("old blobs were not verified; trying again")
        await asyncio.sleep(LOOK_SECONDS)


async def verify_oldest(catalog: Catalog, runner: JobRunner, days: float) -> Job | None:
    """Queue a job for the blobs whose turn it is; None when it is nobody's."""
    due = await asyncio.to_thread(catalog.blobs_to_verify, days * _DAY_SECONDS, _MOST_BLOBS)
    chosen = within(due, _MOST_BYTES)
    return await runner.submit_verify(VerifySpec(digests=tuple(chosen))) if chosen else None


def within(due: list[StoredBlob], most_bytes: int) -> list[str]:
    """The first of these blobs that are so large together, and at least one; their digests. Pure."""
    chosen: list[str] = []
    for blob in due:
        most_bytes -= blob.size_bytes
        if chosen and most_bytes < 0:
            break
        chosen.append(blob.digest)
    return chosen
