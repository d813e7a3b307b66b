"""Uploads in pieces: a blob that comes in over many requests, and goes on where it stood. Server process only.

Each has a folder among the partials with one file, `of-<bytes of the whole>`; how long that is says how far it is, also
after a restart. Pieces come in order, one writer at a time. The running hash is kept in memory; where it is not, it
catches up by reading what is there. What is whole goes the way of all blobs (`BlobStore.commit`).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.domain.errors import Conflict, DigestMismatch, RangeNotSatisfiable, TooLarge
from service.domain.names import parse_digest
from service.store.blobs import BlobStore
from service.store.files import disk_errors
from service.store.partials import Partials
from service.store.uploads import allowance

KIND = "upload"
_FILE = re.compile(r"of-([0-9]{1,18})")
_READ_BYTES = 1 << 20
# A hash that lags behind reads this much for each write: it has caught up well before the end of a long upload.
_CATCH_UP_BYTES = 8 << 20
_HASHES_KEPT = 256


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an upload is: the first `received_bytes` of `size_bytes` are here."""

    received_bytes: int
    size_bytes: int


@dataclass(slots=True)
class _Hash:
    """The hash of the first `hashed_bytes`."""

    hasher: Any = field(default_factory=hashlib.sha256)
    hashed_bytes: int = 0


class PiecewiseUploads:
    """The uploads in pieces of one home. Methods block on the disk; any thread may call them."""

    def __init__(self, blobs: BlobStore, partials: Partials) -> None:
        self._blobs = blobs
        self._partials = partials
        self._lock = threading.Lock()
        self._busy: set[str] = set()  # digests with a piece on its way
        self._hashes: OrderedDict[str, _Hash] = OrderedDict()

    def standing(self, digest: str) -> Standing | None:
        """How far the upload of that blob is; None when none has begun. Raises InvalidName."""
        found = _find(self._folder(digest))
        return None if found is None else found[1]

    def begin(
        self,
        digest: str,
        size_bytes: int,
        start: int | None,
        stop: int = 0,
        *,
        limit_bytes: int | None = None,
        replace: bool = False,
    ) -> Piece:
        """Begin the piece [`start`, `stop`) of a blob of `size_bytes`; `start` None: no bytes, where the upload stands.

        `replace`: a damaged blob is being mended. Raises TooLarge over `limit_bytes`, DiskFull, Conflict while another
        piece of the same blob is on its way or when another length was announced, RangeNotSatisfiable when the upload
        stands elsewhere.
        """
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise TooLarge(f"The upload is {size_bytes} bytes and the limit is {limit_bytes}; raise it or send less.")
        folder = self._folder(digest)
        with ExitStack() as undo:
            self._take(digest)
            undo.callback(self._release, digest)
            standing = self._agreed(folder, size_bytes)
            if start is not None and start != standing.received_bytes:
                raise RangeNotSatisfiable(
                    f"The upload stands at byte {standing.received_bytes} and the piece begins at {start}; go on from "
                    "where it stands.",
                    param="Content-Range",
                )
            self._blobs.check_space(size_bytes - standing.received_bytes)
            undo.enter_context(self._partials.using(folder))
            with disk_errors():
                descriptor = _open(folder / f"of-{size_bytes}", is_whole=standing.received_bytes == size_bytes)
            undo.callback(os.close, descriptor)
            stop = standing.received_bytes if start is None else stop
            return Piece(self, digest, folder, descriptor, standing, stop, replace=replace, release=undo.pop_all())

    def abort(self, digest: str) -> bool:
        """Drop what has come in of a blob; whether there was something. Raises Conflict while a piece is on its way."""
        folder = self._folder(digest)
        self._take(digest)
        try:
            found = _find(folder)
            if found is not None:
                self._drop(digest, folder)
            return found is not None
        finally:
            self._release(digest)

    def _agreed(self, folder: Path, size_bytes: int) -> Standing:
        """How far it is, when it has begun with that length. Raises Conflict."""
        found = _find(folder)
        if found is None:
            return Standing(0, size_bytes)
        standing = found[1]
        if standing.size_bytes != size_bytes:
            raise Conflict(
                f"This upload was begun as one of {standing.size_bytes} bytes; go on with that, or abort it first.",
                param="Content-Range",
            )
        if standing.received_bytes > size_bytes:  # nothing of ours has written that
            self._partials.discard(folder)
            return Standing(0, size_bytes)
        return standing

    def _hash_of(self, digest: str, received_bytes: int) -> _Hash:
        with self._lock:
            known = self._hashes.get(digest)
            if known is None or known.hashed_bytes > received_bytes:
                known = self._hashes[digest] = _Hash()
            self._hashes.move_to_end(digest)
            while len(self._hashes) > _HASHES_KEPT:
                self._hashes.popitem(last=False)
            return known

    def _drop(self, digest: str, folder: Path) -> None:
        self._partials.discard(folder)
        with self._lock:
            self._hashes.pop(digest, None)

    def _take(self, digest: str) -> None:
        with self._lock:
            if digest in self._busy:
                raise Conflict("Another piece of this upload is on its way; ask where it stands when that has ended.")
            self._busy.add(digest)

    def _release(self, digest: str) -> None:
        with self._lock:
            self._busy.discard(digest)

    def _folder(self, digest: str) -> Path:
        return self._partials.path(KIND, parse_digest(digest))


class Piece:
    """One piece on its way in: `write` its bytes in order, `finish`, and in any case `close`.

        open ──close──> closed            (what has come in stays)
          └──finish──> whole ──close──> gone    (the blob is committed; the caller enters its row before it closes)

    Safe when a thread that writes is left behind: `close` waits for it.
    """

    def __init__(
        self,
        uploads: PiecewiseUploads,
        digest: str,
        folder: Path,
        descriptor: int,
        standing: Standing,
        stop: int,
        *,
        replace: bool,
        release: ExitStack,
    ) -> None:
        self.digest = digest
        self.size_bytes = standing.size_bytes
        self.received_bytes = standing.received_bytes
        self._stop = stop
        self._uploads = uploads
        self._folder = folder
        self._descriptor = descriptor
        self._replace = replace
        self._release = release
        self._hash = uploads._hash_of(digest, standing.received_bytes)
        self._allowed_bytes = 0  # that may be written before the room is looked at again
        self._lock = threading.Lock()
        self._open = True
        self._whole = False

    @property
    def standing(self) -> Standing:
        """How far the upload is with what this piece has brought."""
        return Standing(self.received_bytes, self.size_bytes)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises TooLarge past the end of the piece, DiskFull; what has come in stays."""
        with self._lock:
            assert self._open, "the piece has ended"
            if self.received_bytes + len(chunk) > self._stop:
                raise TooLarge("The body is longer than its Content-Range says; send what it says.")
            self._check_space(len(chunk))
            with disk_errors():
                written = 0
                while written < len(chunk):
                    rest = memoryview(chunk)[written:]
                    written += os.pwrite(self._descriptor, rest, self.received_bytes + written)
            if self._hash.hashed_bytes == self.received_bytes:
                self._hash.hasher.update(chunk)
                self._hash.hashed_bytes += len(chunk)
            else:
                self._catch_up(self._hash.hashed_bytes + _CATCH_UP_BYTES)
            self.received_bytes += len(chunk)

    def finish(self) -> bool:
        """Have what came on disk for good. When that is all of it, check the digest, commit the blob: whether it was.

        Raises DigestMismatch, and then nothing is left of the upload.
        """
        with self._lock:
            assert self._open, "the piece has ended"
            if self.received_bytes < self.size_bytes:
                with disk_errors():
                    os.fsync(self._descriptor)
                return False
            self._catch_up(self.size_bytes)
            found = f"sha256:{self._hash.hasher.hexdigest()}"
            if found != self.digest or self._hash.hashed_bytes != self.size_bytes:
                self._uploads._drop(self.digest, self._folder)
                raise DigestMismatch(f"The bytes received have the digest {found}; send the file that was hashed.")
            self._commit()
            self._whole = True
            return True

    def close(self) -> None:
        """Let go of the upload; once it is whole, of its folder as well. Does nothing the second time."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            if self._whole:
                self._uploads._drop(self.digest, self._folder)
            self._release.close()

    def _commit(self) -> None:
        store = self._uploads._blobs
        whole = self._folder / f"of-{self.size_bytes}"
        temp = store.incoming / f"upload-{secrets.token_hex(8)}"
        with disk_errors():
            try:
                # A second name, so that a crash before the end of the commit leaves all that has come in.
                os.link(whole, temp, follow_symlinks=False)
            except OSError:  # a file system without hard links
                os.rename(whole, temp)
        store.commit(temp, self.digest, self.size_bytes, replace=self._replace)

    def _catch_up(self, until: int) -> None:
        """Hash what is in the file and has not been hashed, up to byte `until`."""
        known = self._hash
        while known.hashed_bytes < until:
            chunk = os.pread(self._descriptor, min(_READ_BYTES, until - known.hashed_bytes), known.hashed_bytes)
            if not chunk:
                return
            known.hasher.update(chunk)
            known.hashed_bytes += len(chunk)

    def _check_space(self, chunk_bytes: int) -> None:
        # Others write too: keep the reserve free all along.
        if chunk_bytes > self._allowed_bytes:
            self._allowed_bytes = allowance(self._uploads._blobs, chunk_bytes)
        self._allowed_bytes -= chunk_bytes


def _find(folder: Path) -> tuple[Path, Standing] | None:
    """The file of an upload, and how far it is."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            match = _FILE.fullmatch(entry.name)
            if match is not None and entry.is_file(follow_symlinks=False):
                return Path(entry.path), Standing(entry.stat(follow_symlinks=False).st_size, int(match[1]))
    return None


def _open(path: Path, *, is_whole: bool) -> int:
    # What is whole may be a blob already, by its other name: it is never opened for writing.
    flags = os.O_RDONLY if is_whole and path.exists() else os.O_RDWR | os.O_CREAT
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
