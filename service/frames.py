"""The only format between processes: msgpack frames behind a 4-byte big-endian length. No pickle, ever.

Shared by worker children and job children; knows nothing of what the frames say.
"""

from __future__ import annotations

import asyncio
import struct
from typing import BinaryIO, Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")

T = TypeVar("T")


class FrameTooLarge(Exception):
    """The other side announced a frame over the limit: it is broken or hostile, hang up."""


class FrameReader(Generic[T]):
    """Decodes frames of one tagged union."""

    def __init__(self, kind: type[T]) -> None:
        """`kind` is the type (or union) every frame must have."""
        self._decoder = msgspec.msgpack.Decoder(kind)

    async def read(self, stream: asyncio.StreamReader) -> T | None:
        """The next frame, or None at the end of the stream (a frame cut short counts as the end)."""
        try:
            size = _size(await stream.readexactly(_LENGTH.size))
            return self._decoder.decode(await stream.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def read_blocking(self, stream: BinaryIO) -> T | None:
        """As `read`, from a blocking stream in a child."""
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        size = _size(head)
        body = stream.read(size)
        return self._decoder.decode(body) if len(body) == size else None


_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """A message as bytes on the wire."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def _size(head: bytes) -> int:
    size: int = _LENGTH.unpack(head)[0]
    if size > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {size} bytes")
    return size
