"""The lock on a home folder: two servers never work on one store. Server process only; knows no store."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from service.domain.errors import Conflict

LOCK_FILE = "server.lock"
# What network file systems without a lock service say.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


class HomeLock:
    """A held lock. It goes with `release`, at the end of a `with` block, or when the process ends, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another server have the home. The file stays: removing it would let two hold different files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_home(path: Path) -> HomeLock:
    """Take the lock of the existing folder `path`, without waiting.

    Children do not inherit it. Raises Conflict when another process holds it, or the file system keeps no locks.
    """
    descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(
            "Another quantry server works on this home; stop it, or give this one a home of its own (QUANTRY_HOME)."
        ) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise Conflict(
                "The file system of the home keeps no locks, so two servers could work on it at once; give this one a "
                "home on a disk of this machine (QUANTRY_HOME)."
            ) from error
        raise
    return HomeLock(descriptor)
