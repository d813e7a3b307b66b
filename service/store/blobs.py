"""Blobs: files named by their sha256 in one folder. Server process only; knows no SQL, no names and no GGUF.

A blob comes in as a temp file on the same file system: space checked, written and hashed, size and digest checked,
fsync, chmod 0444, rename, fsync of the folder. The caller then writes its row. It goes the other way round: row
first, then `sweep`. A failed fsync is never tried again: the kernel has dropped the pages, a second one would lie.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.domain.errors import BlobCorrupt, BlobNotFound, DigestMismatch, DiskFull, TooLarge
from service.domain.names import parse_digest

_CHUNK_BYTES = 1024 * 1024
_SPACE_CHECK_BYTES = 64 * 1024 * 1024
_BLOB_NAME = re.compile(r"sha256-([0-9a-f]{64})")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobStore:
    """The folder `root`: `sha256-<64 hex>` files, and `incoming/` for files on their way in.

    Methods block on the disk and may be called from any thread. Other than their own errors they raise DiskFull
    when there is no room, and OSError when the disk fails.
    """

    def __init__(self, root: Path, reserve_bytes: int) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.reserve_bytes = reserve_bytes
        # Guards the moment between "is it there, is it old" and the rename or unlink that follows from the answer.
        self._lock = threading.Lock()
        self._used_at: dict[str, float] = {}  # digest -> monotonic seconds; file times are not safe from clock jumps

    def start(self) -> int:
        """Make the folders and remove every temp file that a crash has left. Returns how many.

        Call it once, under the lock of the home and before anything is written.
        """
        with _disk_errors():
            for folder in (self.root, self.incoming):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _fsync_folder(folder.parent)
            leftovers = list(os.scandir(self.incoming))
            for entry in leftovers:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            return len(leftovers)

    def path(self, digest: str) -> Path:
        """Where the blob lies or would lie. Raises InvalidName for anything but a digest."""
        return self.root / f"sha256-{parse_digest(digest).removeprefix('sha256:')}"

    def has(self, digest: str) -> bool:
        """True when the blob's file is there."""
        return _size(self.path(digest)) is not None

    def size(self, digest: str) -> int:
        """Bytes of the blob's file. Raises BlobNotFound."""
        size_bytes = _size(self.path(digest))
        if size_bytes is None:
            raise BlobNotFound(f"No blob {digest}; upload or import it again.")
        return size_bytes

    def total_bytes(self) -> int:
        """Bytes of all blobs, referred to or not; incoming files do not count."""
        return sum(size_bytes for _, size_bytes, _ in self._files())

    def free_bytes(self) -> int:
        """Bytes the disk can still take from this process."""
        figures = os.statvfs(self.root)
        return figures.f_bavail * figures.f_frsize

    def check_space(self, bytes_needed: int) -> None:
        """Raise DiskFull, with the figures, when `bytes_needed` would eat into the reserve."""
        free_bytes = self.free_bytes()
        if free_bytes - bytes_needed < self.reserve_bytes:
            raise DiskFull(
                f"Not enough disk space: {bytes_needed} bytes are needed beside a reserve of {self.reserve_bytes}, "
                f"and {free_bytes} are free. Delete models that are no longer used, or add space."
            )

    def commit(self, temp: Path, digest: str, size_bytes: int, *, replace: bool = False) -> None:
        """Make the file `temp`, hashed by its writer, the blob `digest`; on disk for good when this returns.

        A blob of that size that is already there stays, unless `replace` (a corrupt one is being mended). The temp
        file is gone afterwards, whatever happened. Raises DigestMismatch when it is not `size_bytes` long.
        """
        target = self.path(digest)
        assert temp.parent == self.incoming, "a blob comes in through the incoming folder"
        try:
            with _disk_errors():
                _seal(temp, size_bytes)
                with self._lock:
                    self._place(temp, target, size_bytes, replace)
                    self._used_at[digest] = time.monotonic()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)

    def open_upload(
        self, digest: str, size_bytes: int | None = None, *, limit_bytes: int | None = None, replace: bool = False
    ) -> Upload:
        """Begin to receive the blob `digest`.

        `size_bytes` is the announced length, if there is one. Raises TooLarge when it is over `limit_bytes` and
        DiskFull when it does not fit. Nothing is written for a blob that is already there, unless `replace`: a
        corrupt one is being mended.
        """
        if size_bytes is not None and limit_bytes is not None and size_bytes > limit_bytes:
            raise TooLarge(f"The upload is {size_bytes} bytes and the limit is {limit_bytes}; raise it or send less.")
        if not replace and self._touch(digest, size_bytes):
            return Upload(self, digest, size_bytes, limit_bytes, temp=None)
        self.check_space(size_bytes or 0)
        temp = self.incoming / f"upload-{secrets.token_hex(8)}"
        return Upload(self, digest, size_bytes, limit_bytes, temp=temp, replace=replace)

    def verify(self, digest: str) -> bool:
        """Read the whole blob again: True when its bytes still have its digest. Raises BlobNotFound."""
        hasher = hashlib.sha256()
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            raise BlobNotFound(f"No blob {digest}; upload or import it again.") from error
        try:
            while chunk := os.read(descriptor, _CHUNK_BYTES):
                hasher.update(chunk)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False  # bytes that cannot be read are not the ones that came in
        finally:
            os.close(descriptor)
        return f"sha256:{hasher.hexdigest()}" == digest

    def sweep(self, keep: frozenset[str], grace_seconds: float) -> list[str]:
        """Unlink the blobs that are not in `keep` and have not been used for `grace_seconds`. Returns their digests.

        `keep` holds what rows and running jobs refer to. The grace period covers what came in after it was gathered.
        """
        removed = []
        for digest, _, _ in list(self._files()):
            if digest in keep:
                continue
            with self._lock:
                if self._is_older(digest, grace_seconds):
                    with suppress(FileNotFoundError):
                        os.unlink(self.path(digest))
                    self._used_at.pop(digest, None)
                    removed.append(digest)
        with self._lock:
            oldest = time.monotonic() - grace_seconds
            self._used_at = {digest: used_at for digest, used_at in self._used_at.items() if used_at > oldest}
        return removed

    def discard(self, digest: str) -> None:
        """Unlink a blob that nobody can want: its row is gone, and its content was refused for good."""
        with self._lock:
            with suppress(FileNotFoundError):
                os.unlink(self.path(digest))
            self._used_at.pop(digest, None)

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """(digest, bytes, modification time) of every blob."""
        with os.scandir(self.root) as entries:
            for entry in entries:
                match = _BLOB_NAME.fullmatch(entry.name)
                if match is None:
                    continue
                with suppress(FileNotFoundError):  # swept meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield f"sha256:{match[1]}", status.st_size, status.st_mtime

    def _is_older(self, digest: str, grace_seconds: float) -> bool:
        path = self.path(digest)
        used_at = self._used_at.get(digest)
        if used_at is not None and time.monotonic() - used_at < grace_seconds:
            return False
        try:
            age_seconds = time.time() - os.lstat(path).st_mtime
        except FileNotFoundError:
            return False
        if age_seconds < 0 < grace_seconds:
            os.utime(path)  # the clock went back: let the grace period begin today
            return False
        return age_seconds >= grace_seconds

    def _touch(self, digest: str, size_bytes: int | None) -> bool:
        """True when the blob is there, with that size if one is given; it is then safe from `sweep` for a while."""
        path = self.path(digest)
        with self._lock:
            found_bytes = _size(path)
            if found_bytes is None or size_bytes not in (None, found_bytes):
                return False
            os.utime(path, follow_symlinks=False)
            self._used_at[digest] = time.monotonic()
            return True

    def _place(self, temp: Path, target: Path, size_bytes: int, replace: bool) -> None:
        found_bytes = _size(target)
        if found_bytes == size_bytes and not replace:
            os.utime(target, follow_symlinks=False)
            # Whoever renamed it may have crashed before this.
            _fsync_folder(self.root)
            return
        os.rename(temp, target)
        try:
            _fsync_folder(self.root)
        except OSError:
            # A later attempt must find nothing here: it would take the file for a finished one.
            if found_bytes is None:
                with suppress(OSError):
                    os.unlink(target)
            raise


class Upload:
    """One blob on its way in: `write` chunks in order, then `finish`; or `abort`. One thread at a time.

        open ──finish──> finished
          └──abort, or any error──> aborted    (nothing is left on disk)

    The end of a `with` block aborts what is not finished.
    """

    def __init__(
        self,
        store: BlobStore,
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
        self._unchecked_bytes = 0
        self._replace = replace
        self._temp = temp  # None: the blob is already there
        self._descriptor: int | None = None
        self._open = True
        if temp is not None:
            with _disk_errors():
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
                with _disk_errors():
                    _write_all(self._descriptor, chunk)
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
                if not self._store._touch(self.digest, self.received_bytes):
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
        # The length may be unknown, and others write too: keep the reserve free all along.
        self._unchecked_bytes += chunk_bytes
        if self._unchecked_bytes >= _SPACE_CHECK_BYTES:
            self._store.check_space(self._unchecked_bytes)
            self._unchecked_bytes = 0

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull("The disk is full; delete models that are no longer used, or add space.") from error
        raise


def _size(path: Path) -> int | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _seal(temp: Path, size_bytes: int) -> None:
    """Check the length, fsync, make it read-only. The file was made by a child that had read untrusted bytes."""
    # Without waiting: a named pipe would never open.
    descriptor = os.open(temp, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            raise DigestMismatch(f"The file is {status.st_size} bytes and not {size_bytes}; make or send it again.")
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o444)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
