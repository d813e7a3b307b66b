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
_READ_BYTES = 256 * 1024
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
        self._ahead = bytearray()
        self._start = 0  # of what is not decoded yet in `_ahead`

    async def read(self, stream: asyncio.StreamReader) -> T | None:
        """The next message; None at the end of the stream, also for a frame cut short by the other side's death.

        Reads ahead, so one reader belongs to one stream. Raises BadFrame for what is no message.
        """
        while True:
            # Most reads bring whole frames, several at a time when the loop is late.
            start, size = self._start, len(self._ahead) - self._start
            if size >= _LENGTH.size:
                end = start + _LENGTH.size + _body_length(self._ahead, start)
                if end <= len(self._ahead):
                    body = self._ahead[start + _LENGTH.size : end]
                    self._start = end
                    return self._decode(body)
            try:
                more = await stream.read(_READ_BYTES)
            except ConnectionError:
                return None
            if not more:
                return None
            del self._ahead[:start]
            self._ahead += more
            self._start = 0

    def read_blocking(self, stream: BinaryIO) -> T | None:
        """As `read`, from a blocking stream."""
        prefix = stream.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            return None
        size = _body_length(prefix)
        body = stream.read(size)
        return self._decode(body) if len(body) == size else None

    def _decode(self, body: bytes | bytearray) -> T:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as problem:
            raise BadFrame(str(problem)) from problem


def _body_length(data: bytes | bytearray, offset: int = 0) -> int:
    size = int(_LENGTH.unpack_from(data, offset)[0])
    if size > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    return size
