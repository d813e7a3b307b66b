"""What is there of one file that comes from elsewhere: its bytes, which of them, and their hash. In children.

    file.part           as long as it will be, with holes
    file.part.ranges    which bytes of it are there; written after they are on disk

Any thread may write; one hashes what is there without a gap from the first byte on. Knows no network.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from service.remote.ranges import Ranges

_CHUNK_BYTES = 1024 * 1024


class State(msgspec.Struct):
    """The file of ranges. `what` is what the bytes belong to: a digest, else the URL."""

    what: str
    size: int | None
    validator: str | None
    done: list[tuple[int, int]]


class Partial:
    """A file that is coming."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashed = 0
        """Bytes that the hash is of."""
        self._lock = threading.Lock()
        self._done = Ranges()
        self._round = 0  # counts the times that the whole file began to come
        self._hashed_of = 0  # the round that is hashed
        self._hasher = hashlib.sha256()
        self._descriptor = -1

    # --- what an earlier run has left ----------------------------------------------------------------------------

    def recall(self, what: str, size: int | None, *, is_checked: bool) -> State | None:
        """Take up what is there if it belongs to `what`; else it is removed, and None.

        Where nothing checks what the bytes come to (`is_checked`), they count only with a validator to ask again with.
        """
        try:
            state = msgspec.json.decode(_sidecar(self.path).read_bytes(), type=State)
            length = self.path.lstat().st_size
        except (OSError, msgspec.MsgspecError):
            forget(self.path)
            return None
        belongs = state.what == what and (is_checked or state.validator is not None)
        if not belongs or state.size is None or size not in (None, state.size):
            forget(self.path)
            return None
        if not all(0 <= start <= stop <= min(length, state.size) for start, stop in state.done):
            forget(self.path)
            return None
        self._done = Ranges(state.done)
        return state

    def save(self, what: str, size: int | None, validator: str | None) -> None:
        """Note which bytes are there."""
        with self._lock:
            state = State(what, size, validator, self._done.listed())
        # Bytes first: what is said to be there must be there after a power cut as well.
        os.fdatasync(self._descriptor)
        temp = _new_sidecar(self.path)
        temp.write_bytes(msgspec.json.encode(state))
        temp.replace(_sidecar(self.path))

    # --- bytes ---------------------------------------------------------------------------------------------------

    def open(self, *, to_read: bool) -> None:
        """Raises OSError. `to_read`: the whole file is there, and may be a blob by another name already."""
        flags = os.O_RDONLY if to_read else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """No thread writes any more."""
        os.close(self._descriptor)

    def resize(self, size: int) -> None:
        """Make it so long: what has not come is a hole."""
        os.ftruncate(self._descriptor, size)

    def write(self, chunk: bytes, at: int) -> None:
        """Bytes that have come. Raises OSError."""
        rest, to = memoryview(chunk), at
        while rest:
            written = os.pwrite(self._descriptor, rest, to)
            rest, to = rest[written:], to + written
        with self._lock:
            self._done.add(at, at + len(chunk))

    def begin_anew(self) -> None:
        """The whole file comes from its first byte on."""
        with self._lock:
            self._done = Ranges()
            self._round += 1

    @property
    def total(self) -> int:
        """How many bytes are there."""
        with self._lock:
            return self._done.total

    def is_whole(self, size: int | None) -> bool:
        """Whether all bytes of a file of `size` are there; None: nobody knows how many they are."""
        with self._lock:
            return size is not None and self._done.front >= size

    def missing(self, size: int, coming: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """What is not there of `size` bytes and is not `coming`, in order."""
        with self._lock:
            return Ranges([*self._done.listed(), *coming]).missing(size)

    # --- the hash ------------------------------------------------------------------------------------------------

    def hash_on(self, seconds: float) -> bool:
        """Hash what is there without a gap, for so long at most; whether nothing is left. One thread calls this."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                front, number = self._done.front, self._round
            if number != self._hashed_of:
                self._hasher, self.hashed, self._hashed_of = hashlib.sha256(), 0, number
            if self.hashed >= front:
                return True
            if time.monotonic() >= until:
                return False
            chunk = os.pread(self._descriptor, min(_CHUNK_BYTES, front - self.hashed), self.hashed)
            if not chunk:
                raise Shortened
            self._hasher.update(chunk)
            self.hashed += len(chunk)

    def begins_with(self, expected: bytes) -> bool | None:
        """Whether these are the first bytes; None while they have not come."""
        with self._lock:
            if self._done.front < len(expected):
                return None
        return os.pread(self._descriptor, len(expected), 0) == expected

    def digest(self) -> str:
        """The digest of what has been hashed, "sha256:<64 hex>"."""
        return f"sha256:{self._hasher.hexdigest()}"

    def git_oid(self) -> str:
        """The name that git has for what has been hashed."""
        hasher = hashlib.sha1(b"blob %d\0" % self.hashed, usedforsecurity=False)
        at = 0
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, at):
            hasher.update(chunk)
            at += len(chunk)
        return hasher.hexdigest()


class Shortened(Exception):
    """Someone has cut the file."""


def forget(path: Path) -> None:
    """Remove a file, and what is known of it."""
    for name in (path, _sidecar(path), _new_sidecar(path)):
        with suppress(FileNotFoundError):
            os.unlink(name)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".ranges")


def _new_sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".new")
