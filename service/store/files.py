"""What the store does to single files and folders: names of blobs, lengths, sealing, fsync. Server process only.

Free functions on paths, without a lock and without a memory; who may call them when is for the store to know.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.domain.errors import DigestMismatch, DiskFull
from service.domain.names import parse_digest

_CHUNK_BYTES = 1024 * 1024
_BLOB_NAME = re.compile(r"sha256-([0-9a-f]{64})")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors() -> Iterator[None]:
    """An OSError for want of room becomes DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull("The disk is full; delete models that are no longer used, or add space.") from error
        raise


def size_of(path: Path) -> int | None:
    """Bytes of a regular file; None for anything else, and for a symbolic link."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def file_name(digest: str) -> str:
    """What the file of a blob is called. Raises InvalidName for anything but a digest: no other name becomes a path."""
    return f"sha256-{parse_digest(digest).removeprefix('sha256:')}"


def matches(path: Path, digest: str) -> bool:
    """Whether the bytes of that file have the digest.

    Raises FileNotFoundError; a symbolic link, a pipe or a device counts as none.
    """
    hasher = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            hasher.update(chunk)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False  # bytes that cannot be read are not the ones that came in
    finally:
        os.close(descriptor)
    return f"sha256:{hasher.hexdigest()}" == digest


def blobs_in(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(digest, status) of every regular file there that has the name of a blob."""
    with os.scandir(folder) as entries:
        for entry in list(entries):
            match = _BLOB_NAME.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # swept meanwhile
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield f"sha256:{match[1]}", status


def touch(path: Path) -> None:
    """Begin the grace period anew; a file that is somebody else's as well keeps its times."""
    if os.lstat(path).st_nlink == 1:
        os.utime(path, follow_symlinks=False)


def seal(temp: Path, size_bytes: int, *, linked: bool) -> None:
    """Check the length, fsync, make it read-only. The file was made by a child that had read untrusted bytes."""
    # Without waiting: a named pipe would never open.
    descriptor = os.open(temp, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            raise DigestMismatch(f"The file is {status.st_size} bytes and not {size_bytes}; make or send it again.")
        os.fsync(descriptor)
        if not linked:
            os.fchmod(descriptor, 0o444)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Have the names in a folder on disk for good."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, chunk: bytes) -> None:
    """Write the whole chunk, however little the system takes at once."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
