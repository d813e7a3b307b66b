"""How much may still come into the store: the disk's reserve, the quota, and what counts against it. Server process.

Bytes of files are counted as they lie, also of those on their way in; what is only announced counts for nobody else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.domain.errors import DiskFull, QuotaExceeded
from service.store.files import blobs_in


class Space:
    """The part of the blob store that knows its folders and what they hold. Methods block on the disk."""

    def __init__(self, root: Path, reserve_bytes: int, quota_bytes: int | None, other_bytes: Callable[[], int]) -> None:
        """At least `reserve_bytes` of the disk stay free, and the store takes `quota_bytes` at most (None: no quota).

        `other_bytes` counts what lies elsewhere and belongs to the quota as well: transfers under way.
        """
        self.root = root
        self.incoming = root / "incoming"
        self.quarantine = root / "quarantine"
        self.reserve_bytes = reserve_bytes
        self.quota_bytes = quota_bytes
        self._other_bytes = other_bytes

    def total_bytes(self) -> int:
        """Bytes of all blobs in the store, referred to or not; incoming and quarantined files do not count."""
        return sum(status.st_size for _, status in blobs_in(self.root))

    def taken_bytes(self) -> int:
        """What counts against the quota: files here and transfers under way, but no hard links to files elsewhere."""
        folders = (self.root, self.quarantine)
        kept = sum(status.st_size for folder in folders for _, status in blobs_in(folder) if status.st_nlink == 1)
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
