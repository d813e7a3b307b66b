"""The only format between processes: msgpack frames behind a 4-byte big-endian length. No pickle, ever.

Shared by the server, worker children and job children; knows nothing of what the frames say.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

# Room for 35 plans that each name every tensor of a large mixture model; anything longer is no frame of ours.
MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class BadFrame(Exception):
    """The other side wrote something that is no frame; the connection is of no more use."""


def encode(message: msgspec.Struct) -> bytes:
    """The frame for a message, length first. BadFrame when it is over the limit."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[T]):
    """Decodes frames that are one of a union of tagged structs."""

    def __init__(self, kind: Any) -> None:
        """`kind` is the union, the run-time form of `T`."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    async def read(self, stream: asyncio.StreamReader) -> T | None:
        """The next message; None at the end of the stream, also for a frame cut short by the other side's death.

        Raises BadFrame for what is no message.
        """
        try:
            size = _body_length(await stream.readexactly(_LENGTH.size))
            return self._decode(await stream.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def read_blocking(self, stream: BinaryIO) -> T | None:
        """As `read`, from a blocking stream."""
        prefix = stream.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            return None
        size = _body_length(prefix)
        body = stream.read(size)
        return self._decode(body) if len(body) == size else None

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as problem:
            raise BadFrame(str(problem)) from problem


def _body_length(prefix: bytes) -> int:
    size = int(_LENGTH.unpack(prefix)[0])
    if size > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    return size
