"""A cursor over the bytes of a GGUF header: every number, length and count is checked before it is used.

Runs in child processes, on bytes that a stranger chose. Nothing but InvalidModel escapes. Knows how numbers and strings
are written, not what they say.
"""

from __future__ import annotations

import mmap
import struct

from service.domain.errors import InvalidModel
from service.gguf.header import MAX_HEADER_BYTES

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Every method leaves `position` behind what it read, or raises InvalidModel. `end` is where the header must."""

    def __init__(self, data: mmap.mmap | bytes, file_size: int, position: int) -> None:
        """`data` holds at least min(file_size, MAX_HEADER_BYTES) bytes."""
        self.data = data
        self.file_size = file_size
        self.end = min(file_size, len(data), MAX_HEADER_BYTES)
        self.position = position

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes and say where they start."""
        start = self.position
        if size > self.end - start:
            if self.end < self.file_size:
                raise InvalidModel(
                    f"The header is larger than {MAX_HEADER_BYTES // 2**20} MiB at {what}; the file is corrupt or "
                    "hostile, get it from its publisher again."
                )
            raise InvalidModel(
                f"The file ends inside its header: {what} needs {size} bytes at byte {start} and "
                f"{self.end - start} are left, so at least {size - (self.end - start)} are missing. It is truncated "
                "or corrupt: download it again."
            )
        self.position = start + size
        return start

    def u32(self, what: str) -> int:
        """The next number of 32 bits; `what` it is goes into the error."""
        value: int = _U32.unpack_from(self.data, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """The next number of 64 bits."""
        value: int = _U64.unpack_from(self.data, self.take(8, what))[0]
        return value

    def check_count(self, what: str, count: int, limit: int, smallest_bytes: int) -> None:
        """Refuse more than `limit` things, and more than fit into the rest at `smallest_bytes` each."""
        if count > limit:
            raise InvalidModel(f"The header announces {count} {what}; {limit} are allowed. The file is corrupt.")
        if count * smallest_bytes > self.end - self.position:
            raise InvalidModel(
                f"The header announces {count} {what}, more than the rest of the file can hold. It is truncated or "
                "corrupt: download it again."
            )

    def string(self, what: str, limit: int) -> bytes:
        """A string of at most `limit` bytes."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise InvalidModel(f"The length of {what} is {length} bytes; {limit} are allowed. The file is corrupt.")
        start = self.take(length, what)
        return bytes(self.data[start : start + length])

    def name(self, what: str, limit: int) -> str:
        """A string that becomes a name: valid UTF-8 without control characters, as it ends up in llama.cpp's log."""
        raw = self.string(what, limit)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidModel(f"The bytes of {what} are no valid UTF-8; the file is corrupt.") from None
        if not text or not text.isprintable():
            raise InvalidModel(f"The text of {what} is empty or holds control characters; the file is corrupt.")
        return text


def shown(name: str) -> str:
    """A name from the file for an error message: short, quoted, escaped."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
