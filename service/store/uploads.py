"""One blob on its way in, in one go: written as it comes, hashed on the way, committed when whole. Server process.

Knows of the store only what `Receiver` says. Uploads over several requests are `piecewise`.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from service.domain.errors import BlobCorrupt, DigestMismatch, TooLarge
from service.store.files import disk_errors, write_all

# Others write too: after so many bytes the room is looked at again, and after a part of what is left of it.
_SPACE_CHECK_BYTES = 64 * 1024 * 1024
_SHARE_OF_ROOM = 8


class Receiver(Protocol):
    """Where an upload goes."""

    def check_space(self, bytes_needed: int) -> None:
        """Raise DiskFull or QuotaExceeded when there is no room for so many bytes."""

    def room_bytes(self) -> int:
        """Bytes that may still come in."""

    def hold(self, digest: str, size_bytes: int | None = None) -> bool:
        """Whether the blob is there, with that size; it is then safe from the sweep for a while."""

    def commit(self, temp: Path, digest: str, size_bytes: int, *, replace: bool = False) -> None:
        """Make the file the blob."""


def allowance(receiver: Receiver, chunk_bytes: int) -> int:
    """How many bytes may be written before the room is asked for again. Raises DiskFull, QuotaExceeded for a chunk."""
    receiver.check_space(chunk_bytes)
    return max(chunk_bytes, min(_SPACE_CHECK_BYTES, receiver.room_bytes() // _SHARE_OF_ROOM))


class Upload:
    """One blob on its way in: `write` chunks in order, then `finish`; or `abort`. One thread at a time.

        open ──finish──> finished
          └──abort, or any error──> aborted    (nothing is left on disk)

    The end of a `with` block aborts what is not finished.
    """

    def __init__(
        self,
        store: Receiver,
        digest: str,
        size_bytes: int | None,
        limit_bytes: int | None,
        *,
        temp: Path | None,
        replace: bool = False,
    ) -> None:
        self.digest = digest
        self.received_bytes = 0
        self._store = store
        self._size_bytes = size_bytes
        self._limit_bytes = limit_bytes
        self._hasher = hashlib.sha256()
        self._allowed_bytes = 0  # that may be written before it is asked again
        self._replace = replace
        self._temp = temp  # None: the blob is already there
        self._descriptor: int | None = None
        self._open = True
        if temp is not None:
            with disk_errors():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(temp, flags, 0o600)

    @property
    def exists(self) -> bool:
        """True when the blob was already there: the bytes are checked and not written."""
        return self._temp is None

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises TooLarge over the limit or the announced length, and DiskFull."""
        assert self._open, "the upload has ended"
        try:
            self.received_bytes += len(chunk)
            self._check_length()
            self._hasher.update(chunk)
            if self._descriptor is not None:
                self._check_space(len(chunk))
                with disk_errors():
                    write_all(self._descriptor, chunk)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> None:
        """Check the digest and commit. Raises DigestMismatch, and then nothing is left."""
        assert self._open, "the upload has ended"
        try:
            if self._size_bytes is not None and self.received_bytes != self._size_bytes:
                raise DigestMismatch(
                    f"The upload ended after {self.received_bytes} of {self._size_bytes} bytes; send it again."
                )
            found = f"sha256:{self._hasher.hexdigest()}"
            if found != self.digest:
                raise DigestMismatch(f"The bytes received have the digest {found}; send the file that was hashed.")
            if self._temp is None:
                if not self._store.hold(self.digest, self.received_bytes):
                    raise BlobCorrupt(f"The stored blob {self.digest} was damaged or deleted meanwhile; send it again.")
            else:
                self._close()
                self._store.commit(self._temp, self.digest, self.received_bytes, replace=self._replace)
        except BaseException:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Drop what has come in. Does nothing after the end."""
        self._open = False
        self._close()
        if self._temp is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._temp)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self.abort()

    def _check_length(self) -> None:
        if self._limit_bytes is not None and self.received_bytes > self._limit_bytes:
            raise TooLarge(f"The upload is over the limit of {self._limit_bytes} bytes; raise it or send less.")
        if self._size_bytes is not None and self.received_bytes > self._size_bytes:
            raise TooLarge(f"The upload is longer than the {self._size_bytes} bytes announced; announce its length.")

    def _check_space(self, chunk_bytes: int) -> None:
        # The length may be unknown, and others write too: keep the reserve free and the quota all along.
        if chunk_bytes > self._allowed_bytes:
            self._allowed_bytes = allowance(self._store, chunk_bytes)
        self._allowed_bytes -= chunk_bytes

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
