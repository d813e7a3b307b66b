"""What has come in of files that are not whole yet: chunks of uploads, downloads. Server process; children write here.

Each transfer has a folder of its own, named by a hash of what it is to bring, so that a later one of the same goes on
where an earlier one ended. Unlike `incoming/` they survive restarts; what nobody goes on with is pruned by age. The
folder lies beside the blobs on their file system: a file that has become whole is moved to `incoming/` by renaming it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.store.derived import key_of


class Partials:
    """The folder `root`. Methods block on the disk; any thread may call them."""

    def __init__(self, root: Path, max_age_seconds: float) -> None:
        """`prune` removes what has not been used for `max_age_seconds`."""
        self.root = root
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()  # between "is it used, is it old" and the removal that follows
        self._in_use: Counter[Path] = Counter()

    def start(self) -> None:
        """Make the folder."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, kind: str, *depends_on: object) -> Path:
        """The folder of the transfer of this kind that brings what these values say; made when it is missing."""
        path = self.path(kind, *depends_on)
        with self._lock:
            path.mkdir(mode=0o700, exist_ok=True)
            os.utime(path)
        return path

    def path(self, kind: str, *depends_on: object) -> Path:
        """Where that folder is or would be."""
        return self.root / f"{kind}-{key_of(*depends_on)}"

    @contextmanager
    def using(self, folder: Path) -> Iterator[Path]:
        """Make sure of the folder, and keep `prune` off it while the block runs."""
        with self._lock:
            folder.mkdir(mode=0o700, exist_ok=True)
            os.utime(folder)
            self._in_use[folder] += 1
        try:
            yield folder
        finally:
            with self._lock:
                self._in_use[folder] -= 1
                if not self._in_use[folder]:
                    del self._in_use[folder]

    def total_bytes(self) -> int:
        """Bytes on disk of all that lies here: files of a download are as large as they will be before they are."""
        return sum(_bytes_on_disk(path) for path in self.root.rglob("*"))

    def discard(self, folder: Path) -> None:
        """Remove a transfer: it is done, or nobody wants it any more."""
        assert folder.parent == self.root, "only what lies here"
        shutil.rmtree(folder, ignore_errors=True)

    def prune(self) -> int:
        """Remove what nobody has gone on with for long and nobody is `using`; how many."""
        return sum(self.discard_idle(path, self._max_age_seconds) for path in list(self.root.iterdir()))

    def idle(self, age_seconds: float | None = None) -> dict[Path, int]:
        """What `prune` would remove, by another age if one is given, and the bytes of each."""
        age = self._max_age_seconds if age_seconds is None else age_seconds
        paths = sorted(self.root.iterdir()) if self.root.exists() else []
        idle = [path for path in paths if path not in self._in_use and _used_at(path) < time.time() - age]
        return {path: sum(_bytes_on_disk(file) for file in path.rglob("*")) for path in idle}

    def discard_idle(self, folder: Path, age_seconds: float | None = None) -> bool:
        """Remove a transfer that nobody has gone on with for that long and nobody is `using`; whether it was so."""
        age = self._max_age_seconds if age_seconds is None else age_seconds
        with self._lock:
            if folder in self._in_use or _used_at(folder) >= time.time() - age:
                return False
            self.discard(folder)
            return True


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
