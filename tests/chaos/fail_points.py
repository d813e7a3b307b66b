"""Places where a process can be made to end by SIGKILL, or a call to the disk to fail, from outside of the product.

Each has a name: the operation under way, the call, and what it is done to, e.g. `import: fsync temp` or
`tag: before INSERT tags`. Nothing in `service/` knows of this; the calls are wrapped where Python reaches the system.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

ON_PATHS = ("open", "rename", "replace", "unlink", "link", "mkdir", "rmdir", "utime", "chmod", "truncate")
ON_DESCRIPTORS = ("read", "write", "fsync", "fdatasync", "fchmod", "ftruncate", "pwrite", "pread")
_STATEMENT = re.compile(r"\s*(\w+)(?:\s+OR\s+\w+)?(?:\s+(?:INTO|FROM))?(?:\s+\"?(\w+))?")


class FailPoints:
    """Watches the calls of this process to the disk under `home`, and to the database.

    `acts` is asked at every point, with its name and how often it was passed: it may kill, or raise.
    """

    def __init__(self, home: Path, acts: Callable[[str, int], None]) -> None:
        self._home = os.path.realpath(home)
        self._acts = acts
        self._originals: list[tuple[Any, str, Any]] = []
        self.operation = "start"
        self.passed: Counter[str] = Counter()

    def reach(self, what: str) -> None:
        """Something happens next."""
        name = f"{self.operation}: {what}"
        self.passed[name] += 1
        self._acts(name, self.passed[name])

    def watch(self, engine: Engine | None = None) -> None:
        """From now on."""
        for name in ON_PATHS:
            self._wrap(os, name, self._kind_of_path)
        for name in ON_DESCRIPTORS:
            self._wrap(os, name, lambda arguments: self._kind_of(arguments[0]))
        self._originals.append((io, "open", io.open))
        io.open = self._open  # type: ignore[assignment]
        if engine is None:
            return
        for name, word in (("before_cursor_execute", "before"), ("after_cursor_execute", "after")):
            event.listen(engine, name, self._statement(word))
        commit = engine.dialect.do_commit

        def committed(connection: Any) -> None:
            self.reach("before COMMIT")
            commit(connection)
            self.reach("after COMMIT")

        engine.dialect.do_commit = committed  # type: ignore[method-assign]

    def stop(self) -> None:
        """No more; the engine is not to be used any longer."""
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def _wrap(self, owner: Any, name: str, kind_of: Callable[[tuple[Any, ...]], str | None]) -> None:
        original = getattr(owner, name)
        self._originals.append((owner, name, original))

        def wrapped(*arguments: Any, **options: Any) -> Any:
            kind = kind_of(arguments)
            if kind is not None:
                self.reach(f"{name} {kind}")
            return original(*arguments, **options)

        setattr(owner, name, wrapped)

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        kind = self._kind(file)
        if kind is None:
            return self._originals_open(file, mode, buffering, *more, **options)
        self.reach(f"open {kind}")
        if buffering == 0:
            watched = _Watched(file, mode.replace("b", ""))
            watched.points, watched.kind = self, kind
            return watched
        return self._originals_open(file, mode, buffering, *more, **options)

    @property
    def _originals_open(self) -> Any:
        return next(original for owner, name, original in self._originals if owner is io)

    def _statement(self, word: str) -> Callable[..., None]:
        def happens(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            match = _STATEMENT.match(statement)
            verb, table = (match[1].upper(), match[2] or "") if match else ("?", "")
            if verb != "SELECT":
                self.reach(f"{word} {verb} {table}".rstrip())

        return happens

    def _kind_of_path(self, arguments: tuple[Any, ...]) -> str | None:
        """Of the first of its paths that is under the home: a link or a rename may come from elsewhere."""
        paths = [argument for argument in arguments[:2] if isinstance(argument, str | os.PathLike)]
        return next(filter(None, map(self._kind, paths)), None) if paths else self._kind(arguments[0])

    def _kind_of(self, descriptor: Any) -> str | None:
        try:
            return self._kind(os.readlink(f"/proc/self/fd/{int(descriptor)}"))
        except (OSError, ValueError, TypeError):
            return None

    def _kind(self, path: Any) -> str | None:
        """What lies there: `temp`, `blob`, ...; None for what is not under the home."""
        if isinstance(path, int):
            return self._kind_of(path)
        try:
            place = os.path.realpath(os.path.dirname(os.fspath(path)) or ".")
        except TypeError:
            return None
        name = os.path.basename(os.fspath(path))
        full = os.path.join(place, name)
        if not isinstance(full, str) or not full.startswith(self._home):
            return None
        parts = full[len(self._home) :].strip("/").split("/")
        if len(parts) == 1:
            return f"the folder {parts[0] or 'home'}"
        if name.startswith("sha256-") and parts[0] == "blobs":
            return "blob" if len(parts) == 2 else f"blob in {parts[1]}"
        if len(parts) == 2 and os.path.isdir(full):
            return f"the folder {parts[1] if parts[0] == 'blobs' else parts[0] + ' of one'}"
        if parts[0] == "partial" and name.endswith((".ranges", ".new")):
            return "ranges"
        return {"incoming": "temp"}.get(parts[-2], parts[0])


class _Watched(io.FileIO):
    """A file opened without a buffer: its writes count."""

    points: FailPoints
    kind: str

    def write(self, data: Any, /) -> int:
        """As `FileIO`."""
        self.points.reach(f"write {self.kind}")
        return super().write(data)

    def readinto(self, buffer: Any, /) -> int:
        """As `FileIO`."""
        self.points.reach(f"read {self.kind}")
        return super().readinto(buffer)

    def read(self, size: int = -1, /) -> bytes:
        """As `FileIO`."""
        self.points.reach(f"read {self.kind}")
        return super().read(size)


def killing(name: str, count: int) -> Callable[[str, int], None]:
    """SIGKILL to this process where it passes that point for the `count`-th time."""

    def act(passing: str, times: int) -> None:
        if passing == name and times == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def failing(name: str, count: int, code: int = errno.EIO) -> Callable[[str, int], None]:
    """The call fails there, that once."""

    def act(passing: str, times: int) -> None:
        if passing == name and times == count:
            raise OSError(code, os.strerror(code))

    return act
