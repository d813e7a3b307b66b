"""What a stored file says of itself, beyond what the catalogue keeps: a short-lived child reads it. Server process.

Long arrays (the words of a vocabulary) are read only where asked for, and not remembered.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from service.children import child_argv
from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.jobs.one_answer import answer_of

_AT_A_TIME = 2
_REMEMBERED = 64
_SECONDS = 30.0
_MOST_BYTES = 512 << 20  # a header has 256 MiB at most


class Described(msgspec.Struct, frozen=True):
    """Keys and values in the file's order, arrays None unless asked for; and the tensors."""

    metadata: dict[str, Any] = {}
    tensors: list[TensorInfo] = []
    error: str | None = None

    def text(self, key: str) -> str | None:
        """A value that is a text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None


class Descriptions:
    """Descriptions of files by the digest of their blobs, the latest few remembered."""

    def __init__(self, argv: tuple[str, ...] = child_argv("service.gguf.describe")) -> None:
        """`argv` starts the child; the path is put behind it."""
        self._argv = argv
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._known: dict[str, Described] = {}

    async def of(self, digest: str, path: Path, *, arrays: bool = False) -> Described:
        """What the file says. Raises InvalidModel, DeadlineExceeded, JobChildDied."""
        if not arrays and digest in self._known:
            return self._known[digest]
        async with self._turns:
            found = await self._read(path, arrays=arrays)
        if not arrays:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[digest] = found
        return found

    async def _read(self, path: Path, *, arrays: bool) -> Described:
        output = await answer_of(
            (*self._argv, str(path), *(["--arrays"] if arrays else [])),
            None,
            _SECONDS,
            late=f"The file was not read within {_SECONDS:g} seconds; try again when the disk is less busy.",
            died="The process that reads the file's header was killed; try again.",
            most_bytes=_MOST_BYTES,
        )
        found = await asyncio.to_thread(msgspec.json.decode, output, type=Described)
        if found.error is not None:
            raise InvalidModel(found.error)
        return found
