"""What happens to every file that a job's child has written before the server hears of it. In the child."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


def hash_and_sync(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The digest of the file, which is on disk when this returns; `progress` hears how many bytes were read."""
    hasher = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
        os.fsync(file.fileno())
    return f"sha256:{hasher.hexdigest()}"


def keep_readable(path: Path, keep: str) -> None:
    """Let the file be read as `keep` too: the server moves `path` once it knows of it. Nothing for an empty `keep`."""
    if not keep:
        return
    try:
        os.link(path, keep)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, keep)
