"""Sending a file's bytes: a small one whole, a large one in pieces that go on where a run before has ended."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from service.api.catalogue_shapes import BlobShape
from service.cli.client import Client, read
from service.cli.failures import CommandFailed, ExitCode
from service.cli.progress import transfer
from service.cli.session import Session

# A file that is larger is sent in pieces of this.
PIECE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_UPLOAD_SECONDS = 300.0  # for each chunk, and for the answer after the last
# What may pass: the line dropped, the server starts again, or it still holds the piece that broke off.
PASSING = frozenset({"connection_lost", "timeout", "unreachable", "shutting_down", "conflict", "busy"})
TRIES = 8  # without a byte more
PAUSE_SECONDS = 0.5  # before the second try; then twice as long each time

Advance = Callable[[int], None]


def upload_blob(session: Session, client: Client, path: Path) -> str:
    """Send a file's bytes unless the server has them; its digest."""
    try:
        size_bytes = path.stat().st_size
        hasher = hashlib.sha256()
        with transfer(session, "hashing", size_bytes) as advance:
            for chunk in chunks(path):
                hasher.update(chunk)
                advance(len(chunk))
    except OSError:
        raise no_file(path) from None
    digest = f"sha256:{hasher.hexdigest()}"
    if client.send("HEAD", f"/v1/blobs/{digest}", allow=(404,)).status_code != 404:
        return digest
    with transfer(session, "sending", size_bytes) as advance:
        if size_bytes > PIECE_BYTES:
            _send_pieces(client, digest, path, size_bytes, advance)
        else:
            headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
            content = _counted(chunks(path), advance)
            answer = client.send(
                "PUT", f"/v1/blobs/{digest}", content=content, headers=headers, seconds=_UPLOAD_SECONDS
            )
            digest = read(BlobShape, answer).digest
    return digest


def retrying(attempt: Callable[[], bool], position: Callable[[], int]) -> None:
    """Run `attempt` until it says that all is done. What may pass is tried again, `TRIES` times without a byte more.

    `position` says how far it is.
    """
    tries, furthest = 0, -1
    while True:
        try:
            if attempt():
                return
        except CommandFailed as failure:
            if failure.problem.code not in PASSING:
                raise
            tries = tries + 1 if position() <= furthest else 1
            if tries >= TRIES:
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (tries - 1))
        furthest = max(furthest, position())


def chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start` up to `stop`, piece by piece."""
    with path.open("rb") as file:
        file.seek(start)
        while stop is None or start < stop:
            chunk = file.read(_CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - start))
            if not chunk:
                return
            start += len(chunk)
            yield chunk


def no_file(path: Path) -> CommandFailed:
    """The failure for a path that nothing can be read at."""
    return CommandFailed(
        "no_file",
        f"There is no file {str(path)!r} that can be read here.",
        remedy="check the path; a model is one .gguf file",
        exit_code=ExitCode.USAGE,
    )


def _send_pieces(client: Client, digest: str, path: Path, size_bytes: int, advance: Advance) -> None:
    sender = _Sender(client, digest, path, size_bytes, advance)
    retrying(sender.send_one, lambda: sender.offset)


class _Sender:
    """Sends one piece after the other, each from where the server says that the upload stands."""

    def __init__(self, client: Client, digest: str, path: Path, size_bytes: int, advance: Advance) -> None:
        self.offset = 0
        self._client = client
        self._url = f"/v1/blobs/{digest}"
        self._path = path
        self._size_bytes = size_bytes
        self._advance = advance
        self._shown = 0
        self._knows = False

    def send_one(self) -> bool:
        """Send the next piece; True when the blob is there."""
        if not self._knows:
            answer = self._client.send("HEAD", self._url, allow=(404,))
            if answer.status_code != 404:
                return True
            self._stand_at(answer.headers.get("Upload-Offset", "0"))
        stop = min(self.offset + PIECE_BYTES, self._size_bytes)
        span = "*" if stop == self.offset else f"{self.offset}-{stop - 1}"
        headers = {"Content-Range": f"bytes {span}/{self._size_bytes}", "Content-Length": str(stop - self.offset)}
        self._knows = False  # until it has been answered
        content = _counted(chunks(self._path, self.offset, stop), self._count)
        answer = self._client.send(
            "PATCH", self._url, content=content, headers=headers, seconds=_UPLOAD_SECONDS, allow=(408, 416)
        )
        if answer.status_code in (200, 201):
            return True
        self._stand_at(answer.headers.get("Upload-Offset", "0"))
        return False

    def _stand_at(self, offset: str) -> None:
        self.offset = int(offset) if offset.isdecimal() else 0
        self._knows = True
        self._count(self.offset - self._shown)

    def _count(self, sent_bytes: int) -> None:
        self._shown += sent_bytes
        self._advance(sent_bytes)


def _counted(content: Iterator[bytes], advance: Advance) -> Iterator[bytes]:
    for chunk in content:
        yield chunk
        advance(len(chunk))
