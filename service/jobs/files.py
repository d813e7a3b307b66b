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


def copy_and_sync(
    source: int, target: Path, size_bytes: int, progress: Callable[[int], None], *, offset: int = 0
) -> str | None:
    """Copy `size_bytes` of an open file, from its byte `offset` on, to `target`, which must not exist and is on disk
    when this returns. The digest; None when there are fewer bytes. `progress` hears how many were copied.
    """
    hasher = hashlib.sha256()
    copied = 0
    with target.open("xb", buffering=0) as output:
        while copied < size_bytes:
            chunk = os.pread(source, min(_CHUNK_BYTES, size_bytes - copied), offset + copied)
            if not chunk:
                return None
            hasher.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[output.write(rest) :]
            copied += len(chunk)
            progress(copied)
        os.fsync(output.fileno())
    return f"sha256:{hasher.hexdigest()}"


def keep_readable(path: Path, keep: str) -> None:
    """Let the file be read as `keep` too: the server moves `path` once it knows of it. Nothing for an empty `keep`."""
    if not keep:
        return
    try:
        os.link(path, keep)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, keep)
