"""Reading blobs again, in the job's child: bytes against their names, and nothing of what they mean.

What was read is not left in the page cache, where it would push out the models that are being served; and what lay
there before is dropped first, so that it is the disk that is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from itertools import groupby

from service.jobs.messages import BlobToRead, Verified, VerifyTask
from service.jobs.outbox import Outbox

_CHUNK_BYTES = 1024 * 1024
_FORGET_BYTES = 32 * _CHUNK_BYTES
_TELL_SECONDS = 10.0


def verify(task: VerifyTask, outbox: Outbox) -> None:
    """Read every blob of the task; a damaged one is told at once, intact ones a few at a time."""
    for step, group in groupby(task.blobs, key=lambda blob: blob.step):
        _verify_step(step, list(group), outbox)


def _verify_step(step: int, blobs: list[BlobToRead], outbox: Outbox) -> None:
    total_bytes = max(1, sum(blob.size_bytes for blob in blobs))
    before, told_at = 0, time.monotonic()
    intact: list[str] = []
    for number, blob in enumerate(blobs, start=1):
        place = f", file {number} of {len(blobs)}" if len(blobs) > 1 else ""

        def report(read_bytes: int, before: int = before, place: str = place) -> None:
            done = before + read_bytes
            outbox.progress(step, min(1.0, done / total_bytes), f"{done} of {total_bytes} bytes{place}")

        if is_intact(blob, report):
            intact.append(blob.digest)
        else:
            outbox.send(Verified(step - 1, damaged=(blob.digest,)))
        before += blob.size_bytes
        if time.monotonic() - told_at >= _TELL_SECONDS and number < len(blobs):
            outbox.send(Verified(step - 1, intact=tuple(intact)))
            intact, told_at = [], time.monotonic()
    outbox.send(Verified(step, intact=tuple(intact)))


def is_intact(blob: BlobToRead, report: Callable[[int], None]) -> bool:
    """Whether a regular file of that length with that digest can be read there; `report` hears of the bytes read."""
    try:
        descriptor = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ELOOP, errno.EIO, errno.ENOTDIR, errno.EACCES):
            return False
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != blob.size_bytes:
            return False
        return _digest(descriptor, report) == blob.digest
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise
        return False  # bytes that cannot be read are not the ones that came in
    finally:
        os.close(descriptor)


def _digest(descriptor: int, report: Callable[[int], None]) -> str:
    hasher = hashlib.sha256()
    read_bytes = forgotten = 0
    _forget(descriptor, 0, 0)
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        hasher.update(chunk)
        read_bytes += len(chunk)
        report(read_bytes)
        if read_bytes - forgotten >= _FORGET_BYTES:
            _forget(descriptor, forgotten, read_bytes - forgotten)
            forgotten = read_bytes
    _forget(descriptor, forgotten, 0)
    return f"sha256:{hasher.hexdigest()}"


def _forget(descriptor: int, start: int, length: int) -> None:
    """Drop pages that nobody has mapped; where the system has no such call, they stay."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        advise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
