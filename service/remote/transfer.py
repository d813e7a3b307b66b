"""One file from elsewhere into a file here: parallel ranges, resumed after a crash, hashed while it grows. In children.

    connections.py ──bytes──> partial.py <──hash, note, report── the thread that called `fetch`

What counts in the end is the digest: a file with a wrong one is removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import DigestMismatch, DiskFull, InvalidModel, RemoteFailed
from service.domain.remote import RemoteFile
from service.remote.connections import Connections, Standing, StartAnew, check_size, host_of
from service.remote.guard import Network
from service.remote.partial import Partial, Shortened, forget
from service.remote.patience import Pace

_SAVE_EVERY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.05
_HASH_SECONDS = 0.25  # at a time: where the hash is slower than the line, progress is to be told and noted all the same
_FRESH_STARTS = 3

Progress = Callable[[int, int | None], None]
"""`(bytes that are there, bytes in all or None)`; called from one thread."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What lies there now."""

    digest: str
    size_bytes: int


def fetch(network: Network, file: RemoteFile, path: Path, pace: Pace, progress: Progress) -> Fetched:
    """Leave the whole file at `path`, fsynced. A later call with the same file and path goes on where this one ended.

    Raises DigestMismatch (and nothing is left), InvalidModel for what does not begin as it should, RemoteFailed,
    RemoteRefused, ModelNotFound, Forbidden, DiskFull, OSError.
    """
    ranges = True
    for _ in range(_FRESH_STARTS):
        try:
            return _Transfer(network, file, path, pace, progress, ranges=ranges).run()
        except StartAnew as again:
            forget(path)
            ranges = ranges and again.ranges
        except Shortened:
            forget(path)
    raise RemoteFailed(f"{host_of(file)} changes the file while it is fetched; try again later.")


class _Transfer:
    """One attempt at a file."""

    def __init__(
        self, network: Network, file: RemoteFile, path: Path, pace: Pace, progress: Progress, *, ranges: bool
    ) -> None:
        self._file = file
        self._pace = pace
        self._progress = progress
        self._ranges = ranges
        self._what = file.digest or file.git_oid or file.url
        self._partial = Partial(path)
        self._connections = Connections(network, file, self._partial, pace, ranges=ranges)

    def run(self) -> Fetched:
        """Fetch what is missing."""
        check_size(self._file.size_bytes, self._pace)
        self._recall()
        was_whole = self._is_whole()
        if not was_whole:
            self._check_room()
        self._partial.open(to_read=was_whole and self._partial.path.exists())
        try:
            if not was_whole:
                self._fill()
            self._hash_all()
            standing, size = self._connections.standing(), self._partial.hashed
            if size != standing.size:
                raise DigestMismatch(f"{host_of(self._file)} sent {size} bytes of {standing.size}; pull it again.")
            if not was_whole:
                self._partial.resize(size)
                self._save(standing)
            self._progress(size, size)
            return Fetched(self._checked(), size)
        except DigestMismatch:
            forget(self._partial.path)
            raise
        finally:
            if self._connections.stop():
                self._partial.close()

    def _recall(self) -> None:
        """Take up what an earlier run has left, if it belongs to this file."""
        if not self._ranges:
            forget(self._partial.path)
            return
        is_checked = self._file.digest is not None or self._file.git_oid is not None
        state = self._partial.recall(self._what, self._file.size_bytes, is_checked=is_checked)
        if state is not None:
            self._connections.settle(state.size, state.validator)

    def _fill(self) -> None:
        if self._file.size_bytes is not None:
            self._partial.resize(self._file.size_bytes)
        self._connections.start()
        saved_at = time.monotonic()
        is_wide = False
        while True:
            standing = self._connections.standing(_LOOK_EVERY_SECONDS)
            self._hash()
            self._progress(self._partial.total, standing.size)
            if standing.problem is not None:
                with suppress(OSError):  # a full disk is told by the problem itself
                    self._save_what_can_be(standing)
                raise standing.problem
            if self._partial.is_whole(standing.size) or self._connections.are_over():
                return
            if standing.is_settled and standing.by_ranges and not is_wide:
                if standing.size is not None:
                    self._partial.resize(standing.size)
                self._connections.widen()
                is_wide = True
            if time.monotonic() - saved_at >= _SAVE_EVERY_SECONDS:
                self._save_what_can_be(standing)
                saved_at = time.monotonic()

    def _hash(self) -> bool:
        """Hash for a while; whether nothing is left. Raises InvalidModel when it does not begin as it should."""
        if self._pace.begins_with and self._partial.begins_with(self._pace.begins_with) is False:
            forget(self._partial.path)
            raise InvalidModel(
                f"{host_of(self._file)} does not send a GGUF file at that address; look at it in a browser."
            )
        return self._partial.hash_on(_HASH_SECONDS)

    def _hash_all(self) -> None:
        while not self._hash():
            self._progress(self._partial.total, self._connections.standing().size)

    def _checked(self) -> str:
        digest, expected = self._partial.digest(), self._file.digest
        if expected is not None and digest != expected:
            raise DigestMismatch(
                f"What {host_of(self._file)} sent has the digest {digest} and not {expected}; nothing of it is kept. "
                "Pull it again."
            )
        if self._file.git_oid is not None and self._partial.git_oid() != self._file.git_oid:
            raise DigestMismatch(f"What {host_of(self._file)} sent is not what it lists; nothing of it is kept.")
        return digest

    def _save_what_can_be(self, standing: Standing) -> None:
        if standing.by_ranges and standing.is_settled:
            self._save(standing)

    def _save(self, standing: Standing) -> None:
        self._partial.save(self._what, standing.size, standing.validator)

    def _is_whole(self) -> bool:
        return self._partial.is_whole(self._connections.standing().size)

    def _check_room(self) -> None:
        size = self._connections.standing().size
        if size is None:
            return
        figures = os.statvfs(self._partial.path.parent)
        free, needed = figures.f_bavail * figures.f_frsize, size - self._partial.total
        if needed > free:
            raise DiskFull(
                f"Not enough disk space: {needed} bytes are still to come and {free} are free. Delete models that are "
                "no longer used, or add space."
            )
