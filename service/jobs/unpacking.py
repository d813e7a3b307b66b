"""Taking a bundle apart, in the job's child: each file copied out and hashed, then checked as where it comes in alone.

Where the files lie in the archive has been found by the server; no name in the archive is looked at here.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from service.domain.errors import DigestMismatch, InvalidParameter
from service.jobs.adapting import examine_adapter
from service.jobs.files import copy_and_sync, keep_readable
from service.jobs.importing import EXAMINE_STEPS, examine
from service.jobs.limits import lift_file_limit, lift_memory_limit, limit_file_size, limit_memory
from service.jobs.messages import AdapterMade, BundlePart, BundleTask, Calibrated, Made, Message, Outcome, PartKind
from service.jobs.outbox import Outbox
from service.llama.backend import build
from service.quantization.importance import facts
from service.quantization.importance_files import read_importance

# What copying, checking, planning and loading a file take of its step.
_SHARES = (0.6, 0.05, 0.2, 0.15)


def unpack(task: BundleTask, outbox: Outbox) -> None:
    """Do the task. Raises InvalidModel, DigestMismatch, LabelMismatch, InvalidParameter, OSError."""
    for number, part in enumerate(task.parts):
        progress = _PartOutbox(outbox, number)
        started_at = time.monotonic()
        if not part.stored:
            limit_file_size(part.size_bytes)
            copy_out(task, part, progress)
            lift_file_limit()
            keep_readable(Path(part.target), part.keep)
        limit_memory(part.size_bytes)
        outcome = _examined(part, number, progress)
        if isinstance(outcome, Made):
            file = replace(outcome.file, duration_seconds=time.monotonic() - started_at)
            outcome = Made(number, file, outcome.llama_build)
        lift_memory_limit()
        outbox.send(outcome)


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


def _examined(part: BundlePart, number: int, outbox: Outbox) -> Outcome:
    """What the file is found to be."""
    path = Path(part.stored or part.target)
    match part.kind:
        case PartKind.MODEL:
            return Made(number, examine(path, part.digest, part.size_bytes, part.name, 1, outbox), build().name)
        case PartKind.ADAPTER:
            found = examine_adapter(path, [Path(base) for base in part.bases], 1, outbox)
            return AdapterMade(number, str(path), part.digest, part.size_bytes, found)
        case PartKind.IMPORTANCE:
            return Calibrated(number, str(path), part.digest, part.size_bytes, facts(read_importance(path)))


def copy_out(task: BundleTask, part: BundlePart, outbox: Outbox) -> None:
    """The bytes of a part to its target, when they have its digest. Raises DigestMismatch, InvalidParameter."""
    try:
        descriptor = os.open(task.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidParameter("The bundle cannot be read any more; bring it again.", param="path") from error
    try:
        found = os.fstat(descriptor)
        if (found.st_size, found.st_mtime_ns) != (task.archive_bytes, task.modified_ns):
            raise InvalidParameter("The bundle changed while it was read; start again when it is whole.", param="path")

        def report(copied: int) -> None:
            outbox.progress(0, copied / part.size_bytes, f"{copied} of {part.size_bytes} bytes")

        digest = copy_and_sync(descriptor, Path(part.target), part.size_bytes, report, offset=part.offset)
        if digest is None:
            raise DigestMismatch("The bundle ended early; get it again.")
        if digest != part.digest:
            raise DigestMismatch(f"The bytes of {part.digest} in the bundle are others; get it again.")
    finally:
        os.close(descriptor)
