"""Blobs: files named by their sha256 in one folder. Server process only; knows no SQL, no names and no GGUF.

A blob comes in as a temp file on the same file system: space checked, written and hashed, size and digest checked,
fsync, chmod 0444, rename, fsync of the folder. The caller then writes its row. It goes the other way round: row
first, then `sweep`. A failed fsync is never tried again: the kernel has dropped the pages, a second one would lie.
A file that turned out damaged is set aside in `quarantine/`, where nothing finds it.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.domain.catalog import Outside
from service.domain.errors import BlobCorrupt, BlobNotFound, DigestMismatch, DiskFull, QuotaExceeded, TooLarge
from service.domain.names import parse_digest
from service.store.outside import OutsideFiles

_CHUNK_BYTES = 1024 * 1024
_SPACE_CHECK_BYTES = 64 * 1024 * 1024
_BLOB_NAME = re.compile(r"sha256-([0-9a-f]{64})")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobStore:
    """The folder `root`: `sha256-<64 hex>` files, `incoming/` for files on their way in, `quarantine/` for bad ones.

    Methods block on the disk and may be called from any thread. Other than their own errors they raise DiskFull
    when there is no room, and OSError when the disk fails.
    """

    def __init__(
        self,
        root: Path,
        reserve_bytes: int,
        *,
        quota_bytes: int | None = None,
        other_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """At least `reserve_bytes` of the disk stay free, and the store takes `quota_bytes` at most (None: no quota).

        `other_bytes` counts what lies elsewhere and belongs to the quota as well: transfers under way.
        """
        self.root = root
        self.incoming = root / "incoming"
        self.quarantine = root / "quarantine"
        self.outside = OutsideFiles()
        self.reserve_bytes = reserve_bytes
        self.quota_bytes = quota_bytes
        self._other_bytes = other_bytes
        # Guards the moment between "is it there, is it old" and the rename or unlink that follows from the answer.
        self._lock = threading.Lock()
        self._used_at: dict[str, float] = {}  # digest -> monotonic seconds; file times are not safe from clock jumps

    def start(self) -> int:
        """Make the folders and remove every temp file that a crash has left. Returns how many.

        Call it once, under the lock of the home and before anything is written.
        """
        with disk_errors():
            for folder in (self.root, self.incoming, self.quarantine):
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
        """Where the blob lies or would lie. Raises InvalidName for anything but a digest.

        One that was adopted where it is lies outside of the store, unless its bytes have come into it since.
        """
        inside = self._inside(digest)
        adopted = self.outside.get(digest)
        return Path(adopted.path) if adopted is not None and _size(inside) is None else inside

    def has(self, digest: str) -> bool:
        """True when the blob's file is there; an adopted one only while it looks as it did."""
        return self._found_bytes(digest) is not None

    def size(self, digest: str) -> int:
        """Bytes of the blob's file. Raises BlobNotFound."""
        size_bytes = self._found_bytes(digest)
        if size_bytes is None:
            raise BlobNotFound(f"No blob {digest}; upload or import it again.")
        return size_bytes

    def is_inside(self, digest: str) -> bool:
        """True when the blob's file is there and lies in the store itself."""
        return _size(self._inside(digest)) is not None

    def total_bytes(self) -> int:
        """Bytes of all blobs in the store, referred to or not; incoming and quarantined files do not count."""
        return sum(status.st_size for _, status in _blobs_in(self.root))

    def taken_bytes(self) -> int:
        """What counts against the quota: files here and transfers under way, but no hard links to files elsewhere."""
        folders = (self.root, self.quarantine)
        kept = sum(status.st_size for folder in folders for _, status in _blobs_in(folder) if status.st_nlink == 1)
        return kept + self.incoming_bytes() + self._other_bytes()

    def incoming_bytes(self) -> int:
        """Bytes of the files on their way in."""
        found = 0
        with os.scandir(self.incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # committed meanwhile
                    found += entry.stat(follow_symlinks=False).st_size
        return found

    def free_bytes(self) -> int:
        """Bytes the disk can still take from this process."""
        figures = os.statvfs(self.root)
        return figures.f_bavail * figures.f_frsize

    def room_bytes(self) -> int:
        """Bytes that may still come in: what the disk holds beside the reserve, within the quota. May be negative."""
        room = self.free_bytes() - self.reserve_bytes
        return room if self.quota_bytes is None else min(room, self.quota_bytes - self.taken_bytes())

    def check_space(self, bytes_needed: int) -> None:
        """Raise DiskFull, with the figures, when `bytes_needed` would eat into the reserve.

        And QuotaExceeded when they would go over the quota.
        """
        free_bytes = self.free_bytes()
        if free_bytes - bytes_needed < self.reserve_bytes:
            raise DiskFull(
                f"Not enough disk space: {bytes_needed} bytes are needed beside a reserve of {self.reserve_bytes}, "
                f"and {free_bytes} are free. Delete models that are no longer used, or add space."
            )
        if self.quota_bytes is not None and (taken_bytes := self.taken_bytes()) + bytes_needed > self.quota_bytes:
            raise QuotaExceeded(
                f"The store's quota is {self.quota_bytes} bytes: {taken_bytes} are taken, and {bytes_needed} more are "
                "needed. Prune or delete what is no longer used, or raise QUANTRY_STORE_QUOTA_BYTES."
            )

    def commit(self, temp: Path, digest: str, size_bytes: int, *, replace: bool = False, linked: bool = False) -> None:
        """Make the file `temp`, hashed by its writer, the blob `digest`; on disk for good when this returns.

        A blob of that size that is already there stays, unless `replace` (a corrupt one is being mended); one that was
        quarantined goes. The temp file is gone afterwards, whatever happened. `linked`: it is a hard link to a file of
        somebody else's, whose mode stays as it is. Raises DigestMismatch when it is not `size_bytes` long.
        """
        target = self._inside(digest)
        assert temp.parent == self.incoming, "a blob comes in through the incoming folder"
        try:
            with disk_errors():
                _seal(temp, size_bytes, linked=linked)
                with self._lock:
                    self._place(temp, target, size_bytes, replace)
                    self._used_at[digest] = time.monotonic()
                self.outside.forget(digest)
                self.drop_quarantined(digest)
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
        try:
            return self.matches(self.path(digest), digest)
        except FileNotFoundError as error:
            raise BlobNotFound(f"No blob {digest}; upload or import it again.") from error

    def matches(self, path: Path, digest: str) -> bool:
        """Whether the bytes of that file have the digest. Raises FileNotFoundError; a symbolic link counts as none."""
        hasher = hashlib.sha256()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
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
        removed = [
            digest
            for digest, _ in _blobs_in(self.root)
            if digest not in keep and self.remove_unused(digest, grace_seconds)
        ]
        for digest, _ in _blobs_in(self.quarantine):
            if digest not in keep:
                self.drop_quarantined(digest)
        with self._lock:
            oldest = time.monotonic() - grace_seconds
            self._used_at = {digest: used_at for digest, used_at in self._used_at.items() if used_at > oldest}
            for digest in self.outside.digests() - keep - self._used_at.keys():
                self.outside.forget(digest)
        return removed

    def is_idle(self, digest: str, seconds: float) -> bool:
        """Whether nobody has asked for the blob's file for that long: `remove_unused` would take it."""
        with self._lock:
            return self._is_older(digest, seconds)

    def remove_unused(self, digest: str, grace_seconds: float) -> bool:
        """Unlink a blob without a row that has not been used for `grace_seconds`; whether that was so."""
        with self._lock:
            if not self._is_older(digest, grace_seconds):
                return False
            with suppress(FileNotFoundError):
                os.unlink(self._inside(digest))
            self._used_at.pop(digest, None)
            return True

    def discard(self, digest: str) -> None:
        """Unlink a blob that nobody can want: its row is gone, and its content was refused for good."""
        with self._lock:
            with suppress(FileNotFoundError):
                os.unlink(self._inside(digest))
            self._used_at.pop(digest, None)

    # --- files outside, and damaged ones -------------------------------------------------------------------------

    def refer(self, digest: str, file: Outside) -> None:
        """Let a file outside of the store be the blob; `sweep` leaves it alone, as it leaves every file out there."""
        with self._lock:
            self.outside.set(digest, file)
            self._used_at[digest] = time.monotonic()

    def where(self, digest: str) -> Path | None:
        """The file with the blob's bytes, good or bad: in the store, outside, or in quarantine; None: there is none."""
        for path in (self.path(digest), self._quarantined(digest)):
            if _size(path) is not None:
                return path
        return None

    def set_aside(self, digest: str) -> bool:
        """Move the blob's file to the quarantine; False when there is none in the store."""
        with self._lock, disk_errors():
            try:
                os.rename(self._inside(digest), self._quarantined(digest))
            except FileNotFoundError:
                return False
            _fsync_folder(self.quarantine)
            _fsync_folder(self.root)
            return True

    def restore(self, digest: str) -> bool:
        """Move a quarantined file back whose bytes were found to be right after all; whether there was one.

        What is in its place stays.
        """
        with self._lock, disk_errors():
            if _size(self._inside(digest)) is not None or _size(self._quarantined(digest)) is None:
                return False
            os.rename(self._quarantined(digest), self._inside(digest))
            self._used_at[digest] = time.monotonic()
            _fsync_folder(self.root)
            return True

    def drop_quarantined(self, digest: str) -> bool:
        """Unlink the quarantined file of a blob that is mended or gone; whether there was one."""
        try:
            os.unlink(self._quarantined(digest))
        except FileNotFoundError:
            return False
        return True

    def quarantined(self) -> dict[str, os.stat_result]:
        """The files in quarantine, by digest."""
        return dict(_blobs_in(self.quarantine))

    def stored(self) -> dict[str, os.stat_result]:
        """The files of the store itself, by digest."""
        return dict(_blobs_in(self.root))

    def _inside(self, digest: str) -> Path:
        return self.root / _file_name(digest)

    def _quarantined(self, digest: str) -> Path:
        return self.quarantine / _file_name(digest)

    def _found_bytes(self, digest: str) -> int | None:
        inside = _size(self._inside(digest))
        return self.outside.size(digest) if inside is None else inside

    def _is_older(self, digest: str, grace_seconds: float) -> bool:
        path = self._inside(digest)
        used_at = self._used_at.get(digest)
        if used_at is not None and time.monotonic() - used_at < grace_seconds:
            return False
        try:
            age_seconds = time.time() - os.lstat(path).st_mtime
        except FileNotFoundError:
            return False
        if age_seconds < 0 < grace_seconds:
            _touch(path)  # the clock went back: let the grace period begin today
            return False
        return age_seconds >= grace_seconds

    def _touch(self, digest: str, size_bytes: int | None) -> bool:
        """True when the blob is there, with that size if one is given; it is then safe from `sweep` for a while."""
        with self._lock:
            found_bytes = self._found_bytes(digest)
            if found_bytes is None or size_bytes not in (None, found_bytes):
                return False
            if _size(path := self._inside(digest)) is not None:
                _touch(path)
            self._used_at[digest] = time.monotonic()
            return True

    def _place(self, temp: Path, target: Path, size_bytes: int, replace: bool) -> None:
        found_bytes = _size(target)
        if found_bytes == size_bytes and not replace:
            _touch(target)
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
        # The length may be unknown, and others write too: keep the reserve free and the quota all along.
        if chunk_bytes > self._allowed_bytes:
            self._store.check_space(chunk_bytes)
            self._allowed_bytes = max(chunk_bytes, min(_SPACE_CHECK_BYTES, self._store.room_bytes()))
        self._allowed_bytes -= chunk_bytes

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


@contextmanager
def disk_errors() -> Iterator[None]:
    """An OSError for want of room becomes DiskFull."""
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


def _file_name(digest: str) -> str:
    return f"sha256-{parse_digest(digest).removeprefix('sha256:')}"


def _blobs_in(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(digest, status) of every regular file there that has the name of a blob."""
    with os.scandir(folder) as entries:
        for entry in list(entries):
            match = _BLOB_NAME.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # swept meanwhile
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield f"sha256:{match[1]}", status


def _touch(path: Path) -> None:
    """Begin the grace period anew; a file that is somebody else's as well keeps its times."""
    if os.lstat(path).st_nlink == 1:
        os.utime(path, follow_symlinks=False)


def _seal(temp: Path, size_bytes: int, *, linked: bool) -> None:
    """Check the length, fsync, make it read-only. The file was made by a child that had read untrusted bytes."""
    # Without waiting: a named pipe would never open.
    descriptor = os.open(temp, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            raise DigestMismatch(f"The file is {status.st_size} bytes and not {size_bytes}; make or send it again.")
        os.fsync(descriptor)
        if not linked:
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
