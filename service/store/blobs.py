"""Blobs: files named by their sha256 in one folder. Server process only; knows no SQL, no names and no GGUF.

A blob comes in as a temp file on the same file system: space checked, written and hashed, size and digest checked,
fsync, chmod 0444, rename, fsync of the folder. The caller then writes its row. It goes the other way round: row
first, then `sweep`. A failed fsync is never tried again: the kernel has dropped the pages, a second one would lie.
A file that turned out damaged is set aside in `quarantine/`, where nothing finds it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.domain.catalog import Outside
from service.domain.errors import BlobNotFound, TooLarge
from service.store.files import blobs_in, disk_errors, file_name, fsync_folder, matches, seal, size_of, touch
from service.store.outside import OutsideFiles, looks_of
from service.store.space import Space
from service.store.uploads import Upload


class BlobStore(Space):
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
        """As `Space`; without more there is no quota."""
        super().__init__(root, reserve_bytes, quota_bytes, other_bytes)
        self.outside = OutsideFiles()
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
                fsync_folder(folder.parent)
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
        return Path(adopted.path) if adopted is not None and size_of(inside) is None else inside

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
        return size_of(self._inside(digest)) is not None

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
                seal(temp, size_bytes, linked=linked)
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
        if not replace and self.hold(digest, size_bytes):
            return Upload(self, digest, size_bytes, limit_bytes, temp=None)
        self.check_space(size_bytes or 0)
        temp = self.incoming / f"upload-{secrets.token_hex(8)}"
        return Upload(self, digest, size_bytes, limit_bytes, temp=temp, replace=replace)

    def hold(self, digest: str, size_bytes: int | None = None) -> bool:
        """Whether the blob is there, with that size if one is given; it is then safe from `sweep` for a while."""
        with self._lock:
            found_bytes = self._found_bytes(digest)
            if found_bytes is None or size_bytes not in (None, found_bytes):
                return False
            if size_of(path := self._inside(digest)) is not None:
                touch(path)
            self._used_at[digest] = time.monotonic()
            return True

    def verify(self, digest: str) -> bool:
        """Read the whole blob again: True when its bytes still have its digest. Raises BlobNotFound."""
        try:
            return matches(self.path(digest), digest)
        except FileNotFoundError as error:
            raise BlobNotFound(f"No blob {digest}; upload or import it again.") from error

    def sweep(self, keep: frozenset[str], grace_seconds: float) -> list[str]:
        """Unlink the blobs that are not in `keep` and have not been used for `grace_seconds`. Returns their digests.

        `keep` holds what rows and running jobs refer to. The grace period covers what came in after it was gathered.
        """
        removed = [
            digest
            for digest, _ in blobs_in(self.root)
            if digest not in keep and self.remove_unused(digest, grace_seconds)
        ]
        for digest, _ in blobs_in(self.quarantine):
            if digest not in keep:
                self.drop_quarantined(digest)
        with self._lock:
            oldest = time.monotonic() - grace_seconds
            self._used_at = {digest: used_at for digest, used_at in self._used_at.items() if used_at > oldest}
            for digest in self.outside.digests() - keep - self._used_at.keys():
                self.outside.forget(digest)
        return removed

    def used_within(self, seconds: float) -> frozenset[str]:
        """The blobs that this process has taken in or was asked for in that time, whatever the wall clock says."""
        with self._lock:
            oldest = time.monotonic() - seconds
            return frozenset(digest for digest, used_at in self._used_at.items() if used_at > oldest)

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
            if looks_of(path) is not None:
                return path
        return None

    def set_aside(self, digest: str) -> bool:
        """Move the blob's file to the quarantine; False when there is none in the store."""
        with self._lock, disk_errors():
            try:
                os.rename(self._inside(digest), self._quarantined(digest))
            except FileNotFoundError:
                return False
            fsync_folder(self.quarantine)
            fsync_folder(self.root)
            return True

    def restore(self, digest: str) -> bool:
        """Move a quarantined file back whose bytes were found to be right after all; whether there was one.

        What is in its place stays.
        """
        with self._lock, disk_errors():
            if size_of(self._inside(digest)) is not None or size_of(self._quarantined(digest)) is None:
                return False
            os.rename(self._quarantined(digest), self._inside(digest))
            self._used_at[digest] = time.monotonic()
            fsync_folder(self.root)
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
        return dict(blobs_in(self.quarantine))

    def stored(self) -> dict[str, os.stat_result]:
        """The files of the store itself, by digest."""
        return dict(blobs_in(self.root))

    def _inside(self, digest: str) -> Path:
        return self.root / file_name(digest)

    def _quarantined(self, digest: str) -> Path:
        return self.quarantine / file_name(digest)

    def _found_bytes(self, digest: str) -> int | None:
        inside = size_of(self._inside(digest))
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
            touch(path)  # the clock went back: let the grace period begin today
            return False
        return age_seconds >= grace_seconds

    def _place(self, temp: Path, target: Path, size_bytes: int, replace: bool) -> None:
        found_bytes = size_of(target)
        if found_bytes == size_bytes and not replace:
            touch(target)
            # Whoever renamed it may have crashed before this.
            fsync_folder(self.root)
            return
        os.rename(temp, target)
        try:
            fsync_folder(self.root)
        except OSError:
            # A later attempt must find nothing here: it would take the file for a finished one.
            if found_bytes is None:
                with suppress(OSError):
                    os.unlink(target)
            raise
