"""The steps of a pull, in the job's child: look up, fetch, convert, then what every import is asked.

What comes goes into the transfer's folder (`fetching.py`) and stays there until the server has taken the model in: a
later run finds it whole, or goes on where this one ended. A GGUF file is then given to the server as a second name for
the same bytes.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from service.domain.addresses import HubAddress, parse_address
from service.domain.catalog import RemoteOrigin
from service.domain.errors import LabelMismatch
from service.domain.names import parse_ref
from service.domain.quants import find_label
from service.domain.reach import shown
from service.domain.remote import RemoteFile, RemoteLevel
from service.jobs.fetching import Landing, fetch_all, transfer_of
from service.jobs.importing import EXAMINE_STEPS, examine
from service.jobs.intake import Kind, check_unconverted, make_gguf, what_is
from service.jobs.limits import lift_file_limit, limit_memory, stay_in_the_background
from service.jobs.messages import Made, NamedPath, PullTask
from service.jobs.outbox import Outbox
from service.llama.backend import build
from service.remote.guard import Network
from service.remote.lookup import Found, look_up
from service.remote.transfer import Fetched

_LOOK_UP, _FETCH, _CONVERT, _EXAMINE = range(4)
_MAGIC = b"GGUF"
_LOWEST = 19  # niceness


def pull(task: PullTask, outbox: Outbox) -> None:
    """Do the task and send one `Made`.

    Raises what `look_up` and `fetch` raise, InvalidModel, NotSupported, LabelMismatch, DiskFull, OSError.
    """
    started_at = time.monotonic()
    network = Network(task.access)
    try:
        outbox.progress(_LOOK_UP, 0.0)
        found = look_up(task.source, network, memory_bytes=task.memory_bytes)
        level = found.level
        _check_name(task.name, level)
        convert_to = None if level.converts else task.convert_to
        if (label := find_label(level.level)) is not None:
            check_unconverted(label, convert_to)
        outbox.progress(_LOOK_UP, 1.0, _summary(level))
        with transfer_of(Path(task.transfers), level.files, _FETCH, outbox) as folder:
            stored = _stored(task, level)
            files = () if stored is not None else _fetched(task, network, level, folder, outbox)
            network.close()
            # What comes now computes: it is to leave the cores to inference.
            if task.niceness > 0:
                stay_in_the_background(_LOWEST)
            outbox.progress(_FETCH, 1.0, "already there" if stored is not None else _summary(level))
            path, digest, size_bytes, converted_from, lossy = _gguf(task, stored, files, outbox)
            limit_memory(size_bytes)
            file = examine(path, digest, size_bytes, task.name, _EXAMINE, outbox, convert_to=convert_to)
            duration = time.monotonic() - started_at
            outbox.send(
                Made(
                    _EXAMINE + EXAMINE_STEPS - 1,
                    replace(file, duration_seconds=duration),
                    build().name,
                    remote=_origin(task.source, found),
                    converted_from=converted_from,
                    lossy_source=lossy,
                )
            )
    finally:
        network.close()


def _gguf(
    task: PullTask, stored: tuple[Path, str, int] | None, files: tuple[tuple[NamedPath, Fetched], ...], outbox: Outbox
) -> tuple[Path, str, int, str | None, bool]:
    """The GGUF file: as it was stored, as it came, or made of what came."""
    if stored is not None:
        return *stored, None, False
    named = tuple(name for name, _ in files)
    whole = Path(named[0].path) if len(named) == 1 else named
    if what_is(whole) is Kind.GGUF:
        outbox.progress(_CONVERT, 1.0, "not needed")
        path, fetched = Path(named[0].path), files[0][1]
        target = Path(task.target)
        _give(path, target)
        return target, fetched.digest, fetched.size_bytes, None, False
    lift_file_limit()
    taken = make_gguf(
        whole,
        Path(task.target),
        task.convert_to,
        lambda fraction, detail: outbox.progress(_CONVERT, fraction, detail),
        name=task.name,
    )
    return Path(task.target), taken.digest, taken.size_bytes, taken.converted_from, taken.lossy_source


def _give(path: Path, target: Path) -> None:
    """A second name for the file, so that nothing is lost if the server goes down before it is a blob."""
    with suppress(FileNotFoundError):
        os.unlink(target)
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        os.rename(path, target)  # a file system without second names


def _fetched(
    task: PullTask, network: Network, level: RemoteLevel, folder: Path, outbox: Outbox
) -> tuple[tuple[NamedPath, Fetched], ...]:
    """Every file of the level, by the name that it has within its checkpoint or its split."""
    landing = Landing(folder, Path(task.target).parent, task.room_bytes, _FETCH, b"" if level.converts else _MAGIC)
    landed = fetch_all(level.files, landing, network, task.access, outbox)
    return tuple(
        (NamedPath(_name_of(file, level), str(path)), fetched)
        for file, (path, fetched) in zip(level.files, landed, strict=True)
    )


def _stored(task: PullTask, level: RemoteLevel) -> tuple[Path, str, int] | None:
    """The blob that the level is, if it is stored and sound."""
    if level.converts or len(level.files) != 1 or not task.blobs:
        return None
    file = level.files[0]
    if file.digest is None or file.digest in task.damaged:
        return None
    path = Path(task.blobs) / f"sha256-{file.digest.removeprefix('sha256:')}"
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return None
    return (path, file.digest, size_bytes) if size_bytes == file.size_bytes else None


def _check_name(name: str, level: RemoteLevel) -> None:
    """Raise LabelMismatch for a name with another level than the file's name has, before the file comes."""
    asked, there = parse_ref(name).label, find_label(level.level)
    if asked is not None and there is not None and not level.converts and asked != there:
        raise LabelMismatch(
            f"The name says {asked} and the file is {there}; leave the level out of the name, or pull {asked}.",
            param="name",
        )


def _origin(source: str, found: Found) -> RemoteOrigin:
    """Where the very same bytes can be fetched again: with the level that was chosen, and its revision."""
    address = parse_address(source)
    if isinstance(address, HubAddress):
        address = replace(address, choice=address.choice or found.level.choice)
    return RemoteOrigin(address.display, found.model.revision, tuple(file.name for file in found.level.files))


def _name_of(file: RemoteFile, level: RemoteLevel) -> str:
    """The name that a file has within its checkpoint or its split."""
    return file.name if level.converts else file.name.rpartition("/")[2]


def _summary(level: RemoteLevel) -> str:
    count = len(level.files)
    return f"{shown(level.level)}, {level.size_bytes} bytes" + (f" in {count} files" if count > 1 else "")
