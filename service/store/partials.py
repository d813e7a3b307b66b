"""What has come in of files that are not whole yet: chunks of uploads, downloads. Server process; children write here.

Each transfer has a folder of its own, named by a hash of what it is to bring, so that a later one of the same goes on
where an earlier one ended. Unlike `incoming/` they survive restarts; what nobody goes on with is pruned by age. The
folder lies beside the blobs on their file system: a file that has become whole is moved to `incoming/` by renaming it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from service.store.derived import key_of


class Partials:
    """The folder `root`. Methods block on the disk; any thread may call them."""

    def __init__(self, root: Path, max_age_seconds: float) -> None:
        """`prune` removes what has not been used for `max_age_seconds`."""
        self.root = root
        self._max_age_seconds = max_age_seconds

    def start(self) -> None:
        """Make the folder."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, kind: str, *depends_on: object) -> Path:
        """The folder of the transfer of this kind that brings what these values say; made when it is missing."""
        path = self.root / f"{kind}-{key_of(*depends_on)}"
        path.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        return path

    def total_bytes(self) -> int:
        """Bytes on disk of all that lies here: files of a download are as large as they will be before they are."""
        return sum(_bytes_on_disk(path) for path in self.root.rglob("*"))

    def discard(self, folder: Path) -> None:
        """Remove a transfer: it is done, or nobody wants it any more."""
        assert folder.parent == self.root, "only what lies here"
        shutil.rmtree(folder, ignore_errors=True)

    def prune(self, keep: Collection[Path] = ()) -> int:
        """Remove what nobody has gone on with for long, except what is in `keep`; how many."""
        oldest = time.time() - self._max_age_seconds
        old = [path for path in self.root.iterdir() if path not in keep and _used_at(path) < oldest]
        for path in old:
            self.discard(path)
        return len(old)


def _used_at(folder: Path) -> float:
    """The latest modification of a folder or a file in it, in seconds since the epoch."""
    latest = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            latest = max(latest, path.lstat().st_mtime)
    return latest


def _bytes_on_disk(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
