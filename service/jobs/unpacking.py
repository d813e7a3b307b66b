"""Taking a bundle apart, in the job's child: each file copied out and hashed, then checked as an import is.

Where the files lie in the archive has been found by the server; no name in the archive is looked at here.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

from service.domain.errors import DigestMismatch, InvalidParameter
from service.jobs.importing import EXAMINE_STEPS, examine
from service.jobs.limits import lift_file_limit, limit_file_size, limit_memory
from service.jobs.messages import BundlePart, BundleTask, Made, Message
from service.jobs.outbox import Outbox
from service.llama.backend import build

_CHUNK_BYTES = 1024 * 1024
# What copying, checking, planning and loading a file take of its step.
_SHARES = (0.6, 0.05, 0.2, 0.15)


def unpack(task: BundleTask, outbox: Outbox) -> None:
    """Do the task. Raises InvalidModel, DigestMismatch, LabelMismatch, InvalidParameter, OSError."""
    for number, part in enumerate(task.parts):
        started_at = time.monotonic()
        progress = _PartOutbox(outbox, number)
        path = Path(part.stored or part.target)
        if not part.stored:
            limit_file_size(part.size_bytes)
            _copy(task, part, progress)
            lift_file_limit()
        limit_memory(part.size_bytes)
        made = examine(path, part.digest, part.size_bytes, part.name, 1, progress)
        duration = time.monotonic() - started_at
        outbox.send(Made(number, replace(made, duration_seconds=duration), build().name))


class _PartOutbox(Outbox):
    """The steps of one part, 0 to `EXAMINE_STEPS`, as one step of the job."""

    def __init__(self, outbox: Outbox, number: int) -> None:
        self._outbox = outbox
        self._number = number

    def send(self, message: Message) -> None:
        self._outbox.send(message)

    def progress(self, step: int, fraction: float, detail: str | None = None) -> None:
        step = min(step, EXAMINE_STEPS)
        self._outbox.progress(self._number, sum(_SHARES[:step]) + _SHARES[step] * fraction, detail)


def _copy(task: BundleTask, part: BundlePart, outbox: Outbox) -> None:
    """The bytes of a part to its target, when they have its digest."""
    try:
        descriptor = os.open(task.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidParameter("The bundle cannot be read any more; bring it again.", param="path") from error
    try:
        found = os.fstat(descriptor)
        if (found.st_size, found.st_mtime_ns) != (task.archive_bytes, task.modified_ns):
            raise InvalidParameter("The bundle changed while it was read; start again when it is whole.", param="path")
        hasher = hashlib.sha256()
        copied = 0
        with Path(part.target).open("xb", buffering=0) as output:
            while copied < part.size_bytes:
                chunk = os.pread(descriptor, min(_CHUNK_BYTES, part.size_bytes - copied), part.offset + copied)
                if not chunk:
                    raise DigestMismatch("The bundle ended early; get it again.")
                hasher.update(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[output.write(rest) :]
                copied += len(chunk)
                outbox.progress(0, copied / part.size_bytes, f"{copied} of {part.size_bytes} bytes")
            os.fsync(output.fileno())
        if f"sha256:{hasher.hexdigest()}" != part.digest:
            raise DigestMismatch(f"The bytes of {part.digest} in the bundle are others; get it again.")
    finally:
        os.close(descriptor)
