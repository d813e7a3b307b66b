"""What has come in of files that are not whole yet: chunks of uploads, downloads. Server process; children write here.

Each transfer has a folder of its own, named by a hash of what it is to bring, so that a later one of the same goes on
where an earlier one ended. Unlike `incoming/` they survive restarts; what nobody goes on with is pruned by age. The
folder lies beside the blobs on their file system: a file that has become whole is moved to `incoming/` by renaming it.
A child `hold`s the folder that it works in: nobody else writes there, and nobody removes it, until the child is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.store.derived import key_of

_LOOK_EVERY_SECONDS = 0.2
_NAME = re.compile(r"[a-z]+-[0-9a-f]+")


class Partials:
    """The folder `root`. Methods block on the disk; any thread may call them."""

    def __init__(self, root: Path, max_age_seconds: float) -> None:
        """`prune` removes what has not been used for `max_age_seconds`."""
        self.root = root
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()  # between "is it used, is it old" and the removal that follows
        self._in_use: Counter[Path] = Counter()
        self._used_at: dict[Path, float] = {}  # monotonic seconds; file times are not safe from clock jumps

    def start(self) -> None:
        """Make the folder."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, kind: str, *depends_on: object) -> Path:
        """The folder of the transfer of this kind that brings what these values say; made when it is missing."""
        path = self.path(kind, *depends_on)
        with self._lock:
            path.mkdir(mode=0o700, exist_ok=True)
            os.utime(path)
            self._used_at[path] = time.monotonic()
        return path

    def path(self, kind: str, *depends_on: object) -> Path:
        """Where that folder is or would be."""
        return self.root / folder_name(kind, *depends_on)

    @contextmanager
    def using(self, folder: Path) -> Iterator[Path]:
        """Make sure of the folder, and keep `prune` off it while the block runs."""
        with self._lock:
            folder.mkdir(mode=0o700, exist_ok=True)
            os.utime(folder)
            self._in_use[folder] += 1
        try:
            yield folder
        finally:
            with self._lock:
                self._used_at[folder] = time.monotonic()
                self._in_use[folder] -= 1
                if not self._in_use[folder]:
                    del self._in_use[folder]

    def total_bytes(self) -> int:
        """Bytes on disk of all that lies here: files of a download are as large as they will be before they are."""
        return sum(map(_bytes_on_disk, _files_in(self.root)))

    def discard(self, folder: Path) -> None:
        """Remove a transfer: it is done, or nobody wants it any more."""
        assert folder.parent == self.root, "only what lies here"
        shutil.rmtree(folder, ignore_errors=True)
        self._used_at.pop(folder, None)

    def end(self, name: str, *, keep: bool) -> None:
        """A child that held the folder of this name has ended: remove it, unless it is to be gone on with.

        One that nothing has come to is removed as well, and none that another child holds.
        """
        if _NAME.fullmatch(name) is None:
            raise ValueError("no name of a transfer's folder")
        folder = self.root / name
        if keep and not _is_empty(folder):
            self._used_at[folder] = time.monotonic()
        elif _discard_unless_held(folder):
            self._used_at.pop(folder, None)

    def prune(self) -> int:
        """Remove what nobody has gone on with for long and nobody is `using` or holds; how many."""
        return sum(self.discard_idle(path, self._max_age_seconds) for path in list(self.root.iterdir()))

    def idle(self, age_seconds: float | None = None) -> dict[Path, int]:
        """What `prune` would remove, by another age if one is given, and the bytes of each."""
        age = self._max_age_seconds if age_seconds is None else age_seconds
        paths = sorted(self.root.iterdir()) if self.root.exists() else []
        idle = [path for path in paths if self._is_idle(path, age)]
        return {path: sum(map(_bytes_on_disk, _files_in(path))) for path in idle if not _is_held(path)}

    def discard_idle(self, folder: Path, age_seconds: float | None = None) -> bool:
        """Remove a transfer that nobody has gone on with for that long and nobody uses or holds; whether it was so."""
        age = self._max_age_seconds if age_seconds is None else age_seconds
        with self._lock:
            if not self._is_idle(folder, age) or not _discard_unless_held(folder):
                return False
            self._used_at.pop(folder, None)
            return True

    def _is_idle(self, folder: Path, age_seconds: float) -> bool:
        """Whether nobody uses it, nor has for that long by the clock of the files and by that of this process."""
        used_at = self._used_at.get(folder)
        is_young = used_at is not None and time.monotonic() - used_at < age_seconds
        return not is_young and folder not in self._in_use and _modified_at(folder) < time.time() - age_seconds


def folder_name(kind: str, *depends_on: object) -> str:
    """What the folder of a transfer is called."""
    return f"{kind}-{key_of(*depends_on)}"


@contextmanager
def hold(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Make sure of the folder and have it to oneself while the block runs; for children.

    `waiting` is called a few times a second while another process has it. The lock goes with the process, however that
    ends.
    """
    descriptor = None
    while descriptor is None:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        descriptor = _locked(folder)
        if descriptor is None:
            waiting()
            time.sleep(_LOOK_EVERY_SECONDS)
    try:
        os.utime(folder)
        yield
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """An open descriptor that holds the folder; None when another process has it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another one may lie there by now: this one was removed between the two calls.
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _discard_unless_held(folder: Path) -> bool:
    try:
        descriptor = _locked(folder)
    except NotADirectoryError:  # none of ours
        return False
    if descriptor is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    return True


def _is_held(folder: Path) -> bool:
    try:
        descriptor = _locked(folder)
    except NotADirectoryError:
        return False
    if descriptor is None:
        return folder.exists()
    os.close(descriptor)
    return False


def _is_empty(folder: Path) -> bool:
    return not any(_bytes_on_disk(path) for path in folder.glob("*"))


def _modified_at(folder: Path) -> float:
    """The latest modification of a folder or a file in it, in seconds since the epoch."""
    latest = 0.0
    for path in (folder, *_files_in(folder)):
        with suppress(FileNotFoundError):
            latest = max(latest, path.lstat().st_mtime)
    return latest


def _files_in(folder: Path) -> Iterator[Path]:
    """Everything below it that is there; what others remove meanwhile is no error, as it is with `rglob`."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _bytes_on_disk(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
