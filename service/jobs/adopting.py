"""Adopting a file where it lies, in the job's child: its bytes are hashed there and never written.

A hard link leaves a second name for them in the store's incoming folder; a reference leaves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from service.domain.errors import InvalidParameter
from service.domain.jobs import Adoption
from service.jobs.limits import limit_memory
from service.jobs.outbox import Outbox
from service.jobs.server_paths import MODEL_PATHS, unreadable

_CHUNK_BYTES = 1024 * 1024
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EROFS})


def adopt(source: Path, target: Path, adoption: Adoption, outbox: Outbox) -> tuple[Path, str, int]:
    """Hash the file as step 0: (where its bytes are read from now on, digest, bytes).

    Raises InvalidParameter for what is no readable file, cannot be linked, or changes meanwhile.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise unreadable(source, MODEL_PATHS) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise unreadable(source, MODEL_PATHS)
        path = source
        if adoption is Adoption.LINK:
            _link(source, target)
            path = target
        limit_memory(before.st_size)
        digest = _hash(descriptor, before.st_size, outbox)
        if _look(os.fstat(descriptor)) != _look(before) or _look(os.lstat(path)) != _look(before):
            raise InvalidParameter(
                f"{source.name[:80]!r} changed while it was read; adopt it when it is complete.", param="path"
            )
        return path, digest, before.st_size
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        raise InvalidParameter(
            "The file cannot be linked into the store: it is on another file system, or the server may not write to "
            "it. Adopt it with reference, or copy it.",
            param="adopt",
        ) from error


def _hash(descriptor: int, size_bytes: int, outbox: Outbox) -> str:
    hasher = hashlib.sha256()
    done = 0
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        hasher.update(chunk)
        done += len(chunk)
        outbox.progress(0, min(1.0, done / max(1, size_bytes)), f"{done} of {size_bytes} bytes")
    return f"sha256:{hasher.hexdigest()}"


def _look(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
