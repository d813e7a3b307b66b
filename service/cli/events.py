"""Server-sent events, read from bytes as they come. Pure: the same events, however the bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its kind, its data (JSON), and the id to resume from when the stream breaks after it."""

    kind: str
    data: str
    id: str | None


def events(chunks: Iterable[bytes]) -> Iterator[ServerEvent]:
    """The events of a stream; comments (the server's heartbeats) are dropped, and so is an event cut off half-way."""
    kind = "message"
    data: list[str] = []
    last_id: str | None = None
    for line in lines(chunks):
        if not line:
            if data:
                yield ServerEvent(kind, "\n".join(data), last_id)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            last_id = value


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, without their ends. Only LF and CRLF end a line: text may hold Unicode's own line ends."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
