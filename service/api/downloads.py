"""Files on their way out: whole or a range, read in threads as the client takes them, cut when it stops. Knows HTTP.

Not Starlette's FileResponse: that cuts no slow reader, and parses as many ranges as a client sends (CVE-2025-62727).
"""

from __future__ import annotations

import errno
import os
import stat
from asyncio import to_thread
from bisect import bisect_right
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from starlette.responses import Response

from service.api.ranges import may_resume, names_tag, parse_range
from service.api.responses import Dialect, error_response
from service.api.streams import EventStream
from service.domain.errors import BlobCorrupt, BlobNotFound, QuantryError, RangeNotSatisfiable

_READ_BYTES = 1 << 20
# What a client must take within the stall timeout, to be no slow reader.
_FRAME_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file of so many bytes."""

    path: Path
    size_bytes: int


class Content:
    """Texts and files, one after the other, as one run of bytes. The files are held open until `close`."""

    def __init__(self, parts: Sequence[bytes | FilePart]) -> None:
        """Raises BlobNotFound for a file that is not there, BlobCorrupt for one of another size. Blocks."""
        self._starts: list[int] = []
        self._parts: list[tuple[bytes | int, int]] = []  # bytes or a descriptor, and how many bytes
        self.size_bytes = 0
        try:
            for part in parts:
                held, size = (part, len(part)) if isinstance(part, bytes) else (_open(part), part.size_bytes)
                self._starts.append(self.size_bytes)
                self._parts.append((held, size))
                self.size_bytes += size
        except BaseException:
            self.close()
            raise

    def read(self, start: int, length: int) -> bytes:
        """At least one and at most `length` bytes from `start` on, which is before the end. Blocks on the disk.

        Raises BlobCorrupt when the disk does not give them.
        """
        index = bisect_right(self._starts, start) - 1
        held, size = self._parts[index]
        offset = start - self._starts[index]
        length = min(length, size - offset)
        if isinstance(held, bytes):
            return held[offset : offset + length]
        try:
            found = os.pread(held, length, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            found = b""
        if not found:
            raise BlobCorrupt("The file on disk is damaged; verify its variant.")
        return found

    def close(self) -> None:
        """Let go of the files. Does nothing the second time."""
        parts, self._parts = self._parts, []
        for held, _ in parts:
            if isinstance(held, int):
                os.close(held)


@dataclass(frozen=True, slots=True)
class Download:
    """What is sent: its entity tag (with quotes), what it is called and what may be kept of it."""

    tag: str
    file_name: str
    cache_control: str
    media_type: str = "application/octet-stream"

    def headers(self, size_bytes: int) -> dict[str, str]:
        """Those of the whole."""
        return {
            "ETag": self.tag,
            "Accept-Ranges": "bytes",
            "Content-Length": str(size_bytes),
            "Content-Disposition": f'attachment; filename="{self.file_name}"',
            "Content-Type": self.media_type,
            "Cache-Control": self.cache_control,
        }


def answer(request: Request, content: Content, download: Download, *, stall_seconds: float) -> Response:
    """`content` as the request's headers ask for it: 200, 206, 304 or 416. Closes it once it is sent, or is not.

    One range is answered with 206; several, or a Range under an If-Range of another file, with the whole.
    """
    sending = False
    try:
        size_bytes = content.size_bytes
        headers = download.headers(size_bytes)
        if names_tag(request.headers.get("If-None-Match"), download.tag):
            return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
        if request.method == "HEAD":
            return Response(headers=headers)
        asked = request.headers.get("Range") if may_resume(request.headers.get("If-Range"), download.tag) else None
        try:
            part = parse_range(asked, size_bytes)
        except RangeNotSatisfiable as error:
            return error_response(error, Dialect.NATIVE, headers={"Content-Range": f"bytes */{size_bytes}"})
        start, stop = part or (0, size_bytes)
        if part is not None:
            headers |= {
                "Content-Length": str(stop - start),
                "Content-Range": f"bytes {start}-{stop - 1}/{size_bytes}",
            }
        sending = True
        return _FileStream(content, start, stop, 200 if part is None else 206, headers, stall_seconds)
    finally:
        if not sending:
            content.close()


class _FileStream(EventStream):
    """Bytes [start, stop) of a content."""

    media_type = "application/octet-stream"

    def __init__(
        self, content: Content, start: int, stop: int, status: int, headers: Mapping[str, str], stall_seconds: float
    ) -> None:
        super().__init__(
            _frames(content, start, stop), close=content.close, stall_seconds=stall_seconds, headers=headers
        )
        self.status_code = status

    def _last_words(self, error: QuantryError, dialect: Dialect) -> bytes:
        return b""  # they would be taken for bytes of the file


async def _frames(content: Content, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    while start < stop:
        block = await to_thread(content.read, start, min(_READ_BYTES, stop - start))
        for offset in range(0, len(block), _FRAME_BYTES):
            yield block[offset : offset + _FRAME_BYTES]
        start += len(block)


def _open(part: FilePart) -> int:
    try:
        descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BlobNotFound("The bytes of this file are gone from this store; bring them again.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != part.size_bytes:
        os.close(descriptor)
        raise BlobCorrupt("The file on disk is not as long as it was; verify its variant.")
    return descriptor
