"""Files that can be computed again and cost hours: log-probabilities, checkpoints, sensitivities. Server process only.

Each has a name of its kind and a hash of everything that its content depends on, so that a file found is a file that
fits. Children read and write them; the server only names and prunes them. They survive restarts.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

_MAX_AGE_SECONDS = 30 * 86400.0
_KEY_LENGTH = 32


def key_of(*parts: object) -> str:
    """A hash of these values, equal for equal values."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_KEY_LENGTH]


class DerivedFiles:
    """The folder `root`. Methods block on the disk; any thread may call them."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """`prune` keeps at most `max_bytes`."""
        self.root = root
        self._max_bytes = max_bytes

    def start(self) -> None:
        """Make the folder."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, kind: str, *depends_on: object) -> Path:
        """Where the file of this kind that depends on these values lies or would lie."""
        return self.root / f"{kind}-{key_of(*depends_on)}"

    def use(self, paths: Collection[Path]) -> None:
        """Note that these are of use now: the least recently used go first."""
        for path in paths:
            with suppress(OSError):
                os.utime(path)

    def prune(self, keep: Collection[Path] = ()) -> int:
        """Remove what nobody has used for a month, then the least recently used beyond the limit; how many.

        What is in `keep`, or begins with the name of one in it (a file on its way to that name), stays.
        """
        kept_names = tuple(path.name for path in keep)
        files = sorted(self._files(), key=lambda file: file[1])
        total_bytes = sum(size_bytes for _, _, size_bytes in files)
        oldest = time.time() - _MAX_AGE_SECONDS
        removed = 0
        for path, used_at, size_bytes in files:
            if used_at > oldest and total_bytes <= self._max_bytes:
                break
            if kept_names and path.name.startswith(kept_names):
                continue
            with suppress(OSError):
                path.unlink()
                total_bytes -= size_bytes
                removed += 1
        return removed

    def discard(self, paths: Collection[Path]) -> None:
        """Remove these, and what was on its way to their names."""
        names = tuple(path.name for path in paths)
        if names:
            for path, _, _ in self._files():
                if path.name.startswith(names):
                    with suppress(OSError):
                        path.unlink()

    def _files(self) -> list[tuple[Path, float, int]]:
        """(path, time of use, bytes) of every file."""
        found = []
        with suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found.append((Path(entry.path), status.st_mtime, status.st_size))
        return found
