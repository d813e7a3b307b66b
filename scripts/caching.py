"""Where built and fetched files are kept between clones, and how they get there whole.

Used by the scripts that run before anything is installed: standard library only. Nothing here knows
what the files are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

LOCK_TIMEOUT_SECONDS = 45 * 60
"""Longer than any build: a second `make` waits for the first one instead of building beside it."""

_LOCK_POLL_SECONDS = 0.5
_HASH_CHUNK_BYTES = 1 << 20


class CacheError(Exception):
    """A fetch or build cannot go on; the message says what to do about it."""


def repository_root() -> Path:
    """The clone that these scripts lie in."""
    return Path(__file__).resolve().parent.parent


def cache_root() -> Path:
    """`$QUANTRY_WHEEL_CACHE`, else `$XDG_CACHE_HOME/quantry`, else `~/.cache/quantry`."""
    chosen = os.environ.get("QUANTRY_WHEEL_CACHE", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    return base / "quantry"


def pins(section: str) -> dict[str, str]:
    """One section of `scripts/pins.toml`."""
    with (repository_root() / "scripts" / "pins.toml").open("rb") as file:
        return {key: str(value) for key, value in tomllib.load(file)[section].items()}


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def say(text: str) -> None:
    """One line for the person who waits. Standard output is kept for the path that is the answer."""
    print(text, file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """Lets SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that children end and scratch folders go."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _unwind)


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def fail(error: Exception) -> NoReturn:
    """Ends the script with the error's own words, without a stack trace."""
    say(f"error: {error}")
    raise SystemExit(1)


@contextmanager
def lock(path: Path, timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel drops it when the process ends, however it ends.

    Raises CacheError when another process still holds it after `timeout_seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        deadline = time.monotonic() + timeout_seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("waiting for another build of the same thing to finish ...")
                    told = True
                if time.monotonic() > deadline:
                    raise CacheError(
                        f"another build has held its lock for {timeout_seconds:.0f} s; end that build and try again"
                    ) from None
                time.sleep(_LOCK_POLL_SECONDS)
        yield


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty scratch folder at `folder`, removed at the end. The caller holds a lock, so an older one is a leftover
    of a process that was killed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, final: Path) -> None:
    """Renames a finished file or folder into place; a reader sees all of it or nothing of it.

    The caller holds the lock, so an older folder in the way is a leftover and is moved aside first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(staged, final)
