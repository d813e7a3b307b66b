"""Blobs whose bytes lie outside of the store: files adopted where they are. Server process only; never writes to them.

What is kept of each is where it lies and how it looked when its bytes were last hashed. A file that looks otherwise is
not taken for the blob until it has been hashed again.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from service.domain.catalog import Outside


class OutsideFiles:
    """The adopted files by digest, as the catalogue has them. Safe from any thread: each change is one assignment."""

    def __init__(self) -> None:
        self._files: dict[str, Outside] = {}

    def set(self, digest: str, file: Outside) -> None:
        """Let the blob `digest` lie in this file."""
        self._files[digest] = file

    def forget(self, digest: str) -> None:
        """The blob is gone, or lies in the store by now."""
        self._files.pop(digest, None)

    def get(self, digest: str) -> Outside | None:
        """The file that holds the blob, whatever has become of it."""
        return self._files.get(digest)

    def digests(self) -> frozenset[str]:
        """Every blob that lies outside."""
        return frozenset(self._files)

    def size(self, digest: str) -> int | None:
        """Bytes of the file that holds the blob; None when there is none, or it looks otherwise than it did."""
        file = self._files.get(digest)
        return file.size_bytes if file is not None and looks_of(Path(file.path)) == file else None


def looks_of(path: Path) -> Outside | None:
    """How the regular file `path` looks now; None when there is none. A symbolic link is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Outside(str(path), status.st_size, status.st_mtime_ns)
