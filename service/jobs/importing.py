"""The steps of an import, in the job's child: copy while hashing or convert, check, plan every level, load.

The header is checked before the copy as well: a file of 40 GB that is none should not be copied first.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

from service.domain.catalog import FileFacts, LevelPlan
from service.domain.errors import InvalidParameter
from service.domain.jobs import Adoption, MadeFile
from service.domain.names import parse_ref
from service.domain.quants import QUANTIZATIONS
from service.gguf.files import facts, read_header
from service.gguf.header import Header
from service.gguf.legacy import is_legacy
from service.jobs.adopting import adopt
from service.jobs.files import copy_and_sync
from service.jobs.intake import Kind, Source, Taken, check_unconverted, is_piece, make_gguf, what_is, whole_file
from service.jobs.limits import lift_memory_limit, limit_file_size, limit_memory
from service.jobs.messages import ImportTask, Made
from service.jobs.outbox import Outbox
from service.jobs.server_paths import MODEL_PATHS, unreadable
from service.jobs.smoke import smoke_check
from service.llama.backend import build
from service.quantization.plan import plan_levels
from service.store.naming import check_label


def import_file(task: ImportTask, outbox: Outbox) -> None:
    """Do the task and send one `Made`.

    Raises InvalidModel, LabelMismatch, InvalidParameter, NotSupported, DiskFull, OSError.
    """
    started_at = time.monotonic()
    source: Source = task.files or Path(task.source)
    taken: Taken | None = None
    step = 1
    path = Path(task.target)
    kind = _kind(source, task)
    if kind is not Kind.GGUF:
        taken = _make(source, task, outbox)
        digest, size_bytes = taken.digest, taken.size_bytes
    elif task.digest is None and task.adopt is not Adoption.COPY:
        path, digest, size_bytes = adopt(whole_file(source), path, task.adopt, outbox)
    elif task.digest is None:
        digest, size_bytes = _copy(whole_file(source), path, task, outbox)
    else:
        step = 0
        path, digest = Path(task.source), task.digest
        size_bytes = path.stat().st_size
        limit_memory(size_bytes)
    convert_to = None if kind is Kind.CHECKPOINT else task.convert_to
    file = examine(path, digest, size_bytes, task.name, step, outbox, convert_to=convert_to)
    made = Made(
        step + EXAMINE_STEPS - 1,
        replace(file, duration_seconds=time.monotonic() - started_at),
        build().name,
        converted_from=None if taken is None else taken.converted_from,
        lossy_source=taken is not None and taken.lossy_source,
    )
    outbox.send(made)


def _kind(source: Source, task: ImportTask) -> Kind:
    """As `what_is`, but one file that is none of a model is left to what reads it next, which says so."""
    if not isinstance(source, Path) or source.is_dir():
        return what_is(source, tuple(map(Path, task.within)))
    if is_legacy(source):
        return Kind.LEGACY
    # An upload lies alone, whatever it is a piece of.
    return Kind.SPLIT if task.digest is None and is_piece(source) else Kind.GGUF


def _make(source: Source, task: ImportTask, outbox: Outbox) -> Taken:
    """Convert, join or upgrade, as step 0. Memory is limited afterwards as for a copy."""
    limit_memory(0)
    within = tuple(map(Path, task.within))
    try:
        taken = make_gguf(
            source,
            Path(task.target),
            task.convert_to,
            lambda fraction, detail: outbox.progress(0, fraction, detail),
            name=task.name,
            within=within,
        )
    finally:
        lift_memory_limit()
    limit_memory(taken.size_bytes)
    return taken


EXAMINE_STEPS = 3
"""Steps that `examine` takes: check, plan, load."""


def examine(
    path: Path, digest: str, size_bytes: int, name: str, step: int, outbox: Outbox, *, convert_to: str | None = None
) -> MadeFile:
    """Everything that is asked of a GGUF file before it may become a variant, as steps from number `step` on.

    `name` is the reference that it is to have, `convert_to` what was asked for where nothing is converted; memory has
    been limited by the caller and is not when this returns. Raises InvalidModel, LabelMismatch, NotSupported.
    """
    outbox.progress(step, 0.0)
    header, found = _check(path, name, convert_to)
    plans = _plan(path, header, step + 1, outbox)
    outbox.progress(step + 2, 0.0)
    lift_memory_limit()
    verdict = smoke_check(path, size_bytes)
    return MadeFile(str(path), digest, size_bytes, replace(found, template_verdict=verdict), plans)


def _copy(source: Path, target: Path, task: ImportTask, outbox: Outbox) -> tuple[str, int]:
    """Copy and hash: (digest, bytes). Raises InvalidParameter for what is no readable file, or changes meanwhile."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(source, MODEL_PATHS) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise unreadable(source, MODEL_PATHS)
        limit_memory(before.st_size)
        limit_file_size(before.st_size)
        _check(source, task.name, task.convert_to)
        size = before.st_size

        def report(copied: int) -> None:
            outbox.progress(0, copied / size, f"{copied} of {size} bytes")

        digest = copy_and_sync(descriptor, target, size, report)
        after = os.fstat(descriptor)
        if digest is None or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidParameter(
                f"{source.name[:80]!r} changed while it was copied; import it when it is complete.", param="path"
            )
        return digest, before.st_size
    finally:
        os.close(descriptor)


def _check(path: Path, name: str, convert_to: str | None) -> tuple[Header, FileFacts]:
    header = read_header(path)
    found = facts(header)
    check_label(parse_ref(name), found.quantization)
    check_unconverted(found.quantization, convert_to)
    return header, found


def _plan(path: Path, header: Header, step: int, outbox: Outbox) -> tuple[LevelPlan, ...]:
    plans: list[LevelPlan] = []
    for count, label in enumerate(QUANTIZATIONS, start=1):
        plans += plan_levels(path, header, (label,))
        outbox.progress(step, count / len(QUANTIZATIONS), label)
    return tuple(plans)
