"""An archive that somebody has sent: which members of an OCI layout it holds, and where. Reads headers and small texts.

Nothing is unpacked: a member is a run of bytes of the archive, and its name is a key to look it up, never a path.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from service.domain.errors import InvalidModel, InvalidParameter
from service.store.bundles import tar

LAYOUT = "oci-layout"
INDEX = "index.json"
_WANTED = re.compile(rf"{LAYOUT}|{re.escape(INDEX)}|blobs/sha256/[0-9a-f]{{64}}")
_MAX_MEMBERS = 20_000
_MAX_ATTRIBUTES_BYTES = 64 << 10
# What compressed files begin with, and what undoes it.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}
# pax attributes that change what a member is or where it lies; all others are of no account here.
_REFUSED_ATTRIBUTES = ("path", "linkpath", "GNU.sparse.", "hdrcharset", "SCHILY.realsize")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a member lie in the archive."""

    offset: int
    size_bytes: int


class Archive:
    """A tar archive, open for reading; use it in a `with` block. Methods block on the disk."""

    def __init__(self, path: str) -> None:
        """Raises InvalidParameter for what is no readable file, InvalidModel for what is no archive."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            raise _unreadable() from None
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable()
            self.size_bytes = status.st_size
            self.modified_ns = status.st_mtime_ns
            self.members = self._scan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The bytes of a member. Raises InvalidModel when there is none, or more than `limit_bytes` of it."""
        place = self.members.get(name)
        if place is None:
            raise InvalidModel(f"The archive has no {name}: it is no OCI image layout, or not whole. Get it again.")
        if place.size_bytes > limit_bytes:
            raise InvalidModel(
                f"{name} in the archive is larger than {limit_bytes} bytes; such a text is none of ours."
            )
        content = os.pread(self._descriptor, place.size_bytes, place.offset)
        if len(content) != place.size_bytes:
            raise InvalidModel("The archive became shorter while it was read; get it again.")
        return content

    def pread(self, place: Place, start: int, length: int) -> bytes:
        """Up to `length` bytes of a member from its byte `start` on; none past its end."""
        return os.pread(self._descriptor, min(length, place.size_bytes - start), place.offset + start)

    def _scan(self) -> dict[str, Place]:
        self._check_not_compressed()
        found: dict[str, Place] = {}
        position, attributed_bytes = 0, None
        for _ in range(_MAX_MEMBERS):
            block = os.pread(self._descriptor, tar.BLOCK_BYTES, position)
            header = tar.read_header(block) if block else None
            if header is None:
                return found
            start = position + tar.BLOCK_BYTES
            size_bytes = header.size_bytes
            if header.kind == tar.FILE and attributed_bytes is not None:
                size_bytes = attributed_bytes
            if size_bytes > self.size_bytes - start:
                raise InvalidModel("The archive ends in the middle of a member; get it again.")
            if header.kind in (tar.ATTRIBUTES, tar.GLOBAL_ATTRIBUTES):
                attributed_bytes = self._attributed_bytes(header, start)
            else:
                attributed_bytes = None
                name = header.name.removeprefix("./")
                if header.kind == tar.FILE and _WANTED.fullmatch(name):
                    if name in found:
                        raise InvalidModel(f"The archive has two members {name}; make it anew.")
                    found[name] = Place(start, size_bytes)
            position = start + size_bytes + tar.padding(size_bytes)
        raise InvalidModel(f"The archive has more than {_MAX_MEMBERS} members; such an archive is no bundle.")

    def _attributed_bytes(self, header: tar.Header, start: int) -> int | None:
        """The size that pax attributes give the next member, if they do."""
        if header.size_bytes > _MAX_ATTRIBUTES_BYTES:
            raise InvalidModel("The attributes of a member of the archive are too long; make it anew.")
        attributes = tar.read_attributes(os.pread(self._descriptor, header.size_bytes, start))
        size = attributes.get("size")
        if any(key.startswith(_REFUSED_ATTRIBUTES) for key in attributes) or (
            size is not None and (header.kind != tar.ATTRIBUTES or not re.fullmatch(r"[0-9]{1,18}", size, re.ASCII))
        ):
            raise InvalidModel("The archive renames members or holds sparse files; make it anew with plain ones.")
        return None if size is None else int(size)

    def _check_not_compressed(self) -> None:
        begin = os.pread(self._descriptor, 8, 0)
        for magic, (name, remedy) in _COMPRESSED.items():
            if begin.startswith(magic):
                raise InvalidModel(f"The file is compressed with {name}; uncompress it first ({remedy}).")


def _unreadable() -> InvalidParameter:
    return InvalidParameter(
        "That is no file that the server can read; give the absolute path of a .tar file there, or upload it.",
        param="path",
    )
