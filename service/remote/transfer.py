"""One file from elsewhere into a file here: parallel ranges, resumed after a crash, hashed while it grows.

    file.part           as long as it will be, with holes
    file.part.ranges    which bytes of it are there; written after they are on disk

A main thread hashes what is there without a gap from the first byte on, stores how far it is and reports it;
connections write where their range belongs. A server without ranges is read as one stream, from the start each time.
What counts in the end is the digest: a file with a wrong one is removed. In children.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from service.domain.errors import DigestMismatch, DiskFull, InvalidModel, ModelNotFound, RemoteFailed, RemoteRefused
from service.domain.remote import RemoteFile, shown
from service.remote.guard import Answer, Dropped, Network
from service.remote.patience import BUSY, Limiter, Patience, gave_up
from service.remote.ranges import Ranges

_CHUNK_BYTES = 1024 * 1024
_SAVE_EVERY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.05
_LEAST_PIECE_BYTES = 1024 * 1024
_LARGEST_PIECE_BYTES = 64 * 1024 * 1024
_FRESH_STARTS = 3
_JOIN_SECONDS = 1.0
# A connection that brings less than this in `stall_seconds` is as good as dead.
_LEAST_BYTES = 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")

Progress = Callable[[int, int | None], None]
"""`(bytes that are there, bytes in all or None)`; called from one thread."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a file is fetched. `limit_bytes`: no file is larger. `begins_with`: else it is refused at once."""

    connections: int = 4
    stall_seconds: float = 30.0
    limiter: Limiter = field(default_factory=lambda: Limiter(0))
    patience: Patience = field(default_factory=Patience)
    limit_bytes: int = 1 << 50
    begins_with: bytes = b""
    piece_bytes: int | None = None  # of one request; None: as suits the file


@dataclass(frozen=True, slots=True)
class Fetched:
    """What lies there now."""

    digest: str
    size_bytes: int


class _State(msgspec.Struct):
    """The file of ranges. `what` is what the bytes belong to: a digest, else the URL."""

    what: str
    size: int | None
    validator: str | None
    done: list[tuple[int, int]]


class _StartAnew(Exception):
    """What is there cannot be gone on with. `ranges` False: the server knows none."""

    def __init__(self, *, ranges: bool = True) -> None:
        super().__init__()
        self.ranges = ranges


def fetch(network: Network, file: RemoteFile, path: Path, pace: Pace, progress: Progress) -> Fetched:
    """Leave the whole file at `path`, fsynced. A later call with the same file and path goes on where this one ended.

    Raises DigestMismatch (and nothing is left), InvalidModel for what does not begin as it should, RemoteFailed,
    RemoteRefused, ModelNotFound, Forbidden, DiskFull, OSError.
    """
    ranges = True
    for _ in range(_FRESH_STARTS):
        try:
            return _Transfer(network, file, path, pace, progress, ranges=ranges).run()
        except _StartAnew as again:
            forget(path)
            ranges = ranges and again.ranges
    raise RemoteFailed(f"{_host(file)} changes the file while it is fetched; try again later.")


def forget(path: Path) -> None:
    """Remove a file, and what is known of it."""
    for name in (path, _sidecar(path)):
        with suppress(FileNotFoundError):
            os.unlink(name)


class _Transfer:
    """One attempt at a file."""

    def __init__(
        self, network: Network, file: RemoteFile, path: Path, pace: Pace, progress: Progress, *, ranges: bool
    ) -> None:
        self._network = network
        self._file = file
        self._path = path
        self._pace = pace
        self._progress = progress
        self._what = file.digest or file.git_oid or file.url
        self._lock = threading.Condition()
        self._by_ranges = ranges
        self._size = file.size_bytes
        self._validator: str | None = None
        self._done = Ranges()
        self._pieces: list[_Piece] = []  # under way
        self._stream_number = 0  # counts the times that the whole file began to come
        self._hashed_of = 0  # the stream that is hashed
        self._is_settled = False  # whether it is known how the server sends, and how much
        self._ended = False  # a stream of unknown length has come to its end
        self._problem: BaseException | None = None
        self._stopping = False
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._saved_at = 0.0
        self._descriptor = -1

    def run(self) -> Fetched:
        """Fetch what is missing."""
        self._check_size(self._size)
        self._recall()
        if not self._is_whole():
            self._check_room()
        # A whole file may have been made read-only already: it is a blob by another name.
        flags = os.O_RDONLY if self._is_whole() and self._path.exists() else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        threads: list[threading.Thread] = []
        try:
            if not self._is_whole():
                self._fill(threads)
            self._hash()
            size = self._hashed
            if not self._is_whole() or size != self._size:
                raise DigestMismatch(f"{_host(self._file)} sent {size} bytes of {self._size}; pull it again.")
            if flags != os.O_RDONLY:
                os.ftruncate(self._descriptor, size)
                self._save()
            self._progress(size, size)
            return Fetched(self._checked(), size)
        except DigestMismatch:
            forget(self._path)
            raise
        finally:
            if self._stop(threads):
                os.close(self._descriptor)

    # --- the main thread -----------------------------------------------------------------------------------------

    def _fill(self, threads: list[threading.Thread]) -> None:
        if self._size is not None:
            os.ftruncate(self._descriptor, self._size)
        self._start(threads)
        saved_at = time.monotonic()
        while True:
            with self._lock:
                self._lock.wait(_LOOK_EVERY_SECONDS)
                there, size, settled, problem = self._done.total, self._size, self._is_settled, self._problem
            self._hash()
            self._progress(there, size)
            if problem is not None:
                self._save_what_can_be()
                raise problem
            if self._is_whole():
                return
            if not any(thread.is_alive() for thread in threads) and not self._has_failed():
                return
            if settled and self._by_ranges and len(threads) < self._pace.connections:
                if size is not None:
                    os.ftruncate(self._descriptor, size)
                while len(threads) < self._pace.connections:
                    self._start(threads)
            if time.monotonic() - saved_at >= _SAVE_EVERY_SECONDS:
                self._save_what_can_be()
                saved_at = time.monotonic()

    def _has_failed(self) -> bool:
        with self._lock:
            return self._problem is not None

    def _start(self, threads: list[threading.Thread]) -> None:
        thread = threading.Thread(target=self._work, name=f"connection-{len(threads)}", daemon=True)
        threads.append(thread)
        thread.start()

    def _stop(self, threads: list[threading.Thread]) -> bool:
        """End the connections; whether all have ended. One that hangs writes no more when it comes back."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in threads)

    def _hash(self) -> None:
        """Hash what is there without a gap. Raises InvalidModel when it does not begin as it should."""
        while True:
            with self._lock:
                front, number = self._done.front, self._stream_number
            if number != self._hashed_of:
                self._hasher, self._hashed, self._hashed_of = hashlib.sha256(), 0, number
            if self._hashed >= front:
                return
            chunk = os.pread(self._descriptor, min(_CHUNK_BYTES, front - self._hashed), self._hashed)
            if not chunk:
                raise _StartAnew  # someone has cut the file
            expected = self._pace.begins_with
            if self._hashed == 0 and front >= len(expected) and not chunk.startswith(expected):
                forget(self._path)
                raise InvalidModel(
                    f"{_host(self._file)} does not send a GGUF file at that address; look at it in a browser."
                )
            self._hasher.update(chunk)
            self._hashed += len(chunk)

    def _checked(self) -> str:
        digest = f"sha256:{self._hasher.hexdigest()}"
        expected = self._file.digest
        if expected is not None and digest != expected:
            raise DigestMismatch(
                f"What {_host(self._file)} sent has the digest {digest} and not {expected}; nothing of it is kept. "
                "Pull it again."
            )
        if self._file.git_oid is not None and self._git_oid() != self._file.git_oid:
            raise DigestMismatch(f"What {_host(self._file)} sent is not what it lists; nothing of it is kept.")
        return digest

    def _git_oid(self) -> str:
        """The name that git has for these bytes."""
        hasher = hashlib.sha1(b"blob %d\0" % self._hashed, usedforsecurity=False)
        at = 0
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, at):
            hasher.update(chunk)
            at += len(chunk)
        return hasher.hexdigest()

    # --- what is remembered --------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Take up what an earlier run has left, if it belongs to this file."""
        try:
            state = msgspec.json.decode(_sidecar(self._path).read_bytes(), type=_State)
            length = self._path.lstat().st_size
        except (OSError, msgspec.MsgspecError):
            forget(self._path)
            return
        knows = self._file.digest is not None or self._file.git_oid is not None or state.validator is not None
        fits = self._size in (None, state.size) and all(
            0 <= a <= b <= min(length, state.size or 0) for a, b in state.done
        )
        if state.what != self._what or not knows or not fits or state.size is None or not self._by_ranges:
            forget(self._path)
            return
        self._size, self._validator, self._done = state.size, state.validator, Ranges(state.done)
        self._is_settled = True

    def _save_what_can_be(self) -> None:
        if self._by_ranges and self._is_settled:
            self._save()

    def _save(self) -> None:
        with self._lock:
            state = _State(self._what, self._size, self._validator, self._done.listed())
        # Bytes first: what is said to be there must be there after a power cut as well.
        os.fdatasync(self._descriptor)
        temp = _sidecar(self._path).with_suffix(".new")
        temp.write_bytes(msgspec.json.encode(state))
        temp.replace(_sidecar(self._path))

    def _is_whole(self) -> bool:
        with self._lock:
            return self._size is not None and self._done.front >= self._size

    def _check_room(self) -> None:
        if self._size is None:
            return
        figures = os.statvfs(self._path.parent)
        free, needed = figures.f_bavail * figures.f_frsize, self._size - self._done.total
        if needed > free:
            raise DiskFull(
                f"Not enough disk space: {needed} bytes are still to come and {free} are free. Delete models that are "
                "no longer used, or add space."
            )

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._pace.limit_bytes:
            raise DiskFull(
                f"The file has {size} bytes, and at most {self._pace.limit_bytes} can be taken in now. Delete models "
                "that are no longer used, or add space."
            )

    # --- connections ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (piece := self._take()) is not None:
                self._insist(piece)
                with self._lock:
                    self._pieces.remove(piece)
                    self._lock.notify_all()
        except BaseException as problem:
            with self._lock:
                self._problem = self._problem or problem
                self._lock.notify_all()

    def _take(self) -> _Piece | None:
        """The first bytes that are missing and that no connection fetches."""
        with self._lock:
            if self._stopping or self._problem is not None or self._ended:
                return None
            if not self._by_ranges or self._size is None:
                if self._pieces:
                    return None
                piece = _Piece(0, self._largest())
            else:
                both = Ranges([*self._done.listed(), *((other.at, other.stop) for other in self._pieces)])
                missing = both.missing(self._size)
                if not missing:
                    return None
                start, stop = missing[0]
                piece = _Piece(start, min(stop, start + self._largest()))
            self._pieces.append(piece)
            return piece

    def _largest(self) -> int:
        if self._pace.piece_bytes is not None:
            return self._pace.piece_bytes
        share = (self._size or 0) // (4 * self._pace.connections)
        return max(_LEAST_PIECE_BYTES, min(_LARGEST_PIECE_BYTES, share))

    def _insist(self, piece: _Piece) -> None:
        """Fetch the piece over as many connections as it takes."""
        tries = 0
        while not self._is_stopping() and not piece.is_done:
            before = piece.at
            try:
                self._stream(piece)
                tries = 0
            except Dropped as problem:
                # A stream that starts over has brought nothing.
                tries = 1 if self._by_ranges and piece.at > before else tries + 1
                if tries >= self._pace.patience.tries:
                    raise gave_up(_host(self._file), problem) from problem
                pause = self._pace.patience.pause_seconds(tries, problem.retry_after_seconds)
                with self._lock:
                    self._lock.wait_for(lambda: self._stopping, pause)

    def _stream(self, piece: _Piece) -> None:
        """One request for what is left of the piece."""
        headers = {"Range": f"bytes={piece.at}-{piece.stop - 1}"} if self._by_ranges else {}
        if self._by_ranges and self._validator is not None and self._file.digest is None and self._is_settled:
            headers["If-Range"] = self._validator
        with self._network.get(self._file.url, headers) as answer:
            if answer.status == 206 and self._by_ranges:
                self._settle(answer, piece)
                self._copy(answer, piece)
            elif answer.status == 200:
                self._settle_stream(answer)
                piece.at, piece.stop = 0, self._size if self._size is not None else self._pace.limit_bytes
                self._copy(answer, piece)
                self._end_stream(piece)
            else:
                raise _refused(answer, self._file)

    def _settle(self, answer: Answer, piece: _Piece) -> None:
        """Learn from a range how large the file is. Raises when it is another file than before."""
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None:
            raise _StartAnew(ranges=False)
        first, last, size = (int(group) for group in match.groups())
        if first != piece.at or last >= size or last < first:
            raise RemoteFailed(f"{_host(self._file)} sends other bytes than were asked for.")
        self._check_size(size)
        with self._lock:
            if self._file.size_bytes is not None and size != self._file.size_bytes:
                raise self._other_size(size)
            changed = self._size not in (None, size) or (
                self._is_settled and self._file.digest is None and answer.validator != self._validator
            )
            if changed:
                raise _StartAnew
            self._size, self._validator, self._is_settled = size, answer.validator, True
            piece.stop = min(piece.stop, last + 1)  # fewer than asked for: the rest is a piece of its own
            self._lock.notify_all()

    def _settle_stream(self, answer: Answer) -> None:
        """The whole file comes, whatever was asked for."""
        length = answer.length
        self._check_size(length)
        with self._lock:
            if self._by_ranges and (self._done.total or self._is_settled):
                # Either it has changed, which is what If-Range asks for, or ranges are no longer served.
                raise _StartAnew(ranges=self._validator is not None and answer.validator != self._validator)
            if self._file.size_bytes is not None and length not in (None, self._file.size_bytes):
                raise self._other_size(length or 0)
            if length is not None and not self._by_ranges and self._size not in (None, length):
                raise _StartAnew(ranges=False)
            self._by_ranges, self._is_settled = False, True
            self._size = self._size if self._size is not None else length
            self._done = Ranges()
            self._stream_number += 1  # the hash begins again with the bytes
            self._lock.notify_all()

    def _end_stream(self, piece: _Piece) -> None:
        """The stream has ended well: what has come is all there is, where nobody has said how much it would be."""
        with self._lock:
            if self._size is None:
                self._size = piece.at
            elif piece.at < self._size:
                raise Dropped(f"it sent {piece.at} of {self._size} bytes")
            self._ended = True
            piece.stop = piece.at
            self._lock.notify_all()

    def _copy(self, answer: Answer, piece: _Piece) -> None:
        """Write the body where it belongs, as far as the piece goes."""
        stall = self._pace.stall_seconds
        since, brought = time.monotonic(), 0
        for chunk in answer.chunks():
            if self._is_stopping():
                return
            room = piece.stop - piece.at
            if len(chunk) > room:
                if not self._by_ranges:
                    raise self._too_much()
                chunk = chunk[:room]
            self._write(chunk, piece.at)
            with self._lock:
                self._done.add(piece.at, piece.at + len(chunk))
                piece.at += len(chunk)
            since += self._pace.limiter.take(len(chunk))
            brought += len(chunk)
            if time.monotonic() - since >= stall:
                if brought < _LEAST_BYTES:
                    raise Dropped("it sends next to nothing")
                since, brought = time.monotonic(), 0
            if self._by_ranges and piece.is_done:
                return

    def _write(self, chunk: bytes, at: int) -> None:
        rest: Any = memoryview(chunk)
        while rest:
            written = os.pwrite(self._descriptor, rest, at)
            rest, at = rest[written:], at + written

    def _too_much(self) -> Exception:
        host = _host(self._file)
        if self._size is None:
            return DiskFull(
                f"{host} sends more than {self._pace.limit_bytes} bytes, which is all that can be taken in."
            )
        return DigestMismatch(f"{host} sends more than the {self._size} bytes there should be; nothing is kept.")

    def _other_size(self, size: int) -> RemoteFailed:
        return RemoteFailed(
            f"{_host(self._file)} says that the file has {size} bytes, and listed it with {self._file.size_bytes}; try "
            "again later."
        )

    def _is_stopping(self) -> bool:
        with self._lock:
            return self._stopping or self._problem is not None


@dataclass(slots=True, eq=False)
class _Piece:
    """Bytes `at` up to `stop` are to come."""

    at: int
    stop: int

    @property
    def is_done(self) -> bool:
        return self.at >= self.stop


def _refused(answer: Answer, file: RemoteFile) -> Exception:
    host = shown(answer.place.host)
    if answer.status in BUSY:
        return Dropped(f"it answers with status {answer.status}", answer.retry_after_seconds)
    if answer.status == 416:
        return _StartAnew()
    if answer.status in (401, 403):
        return RemoteRefused(f"{host} does not give {shown(file.name)} without a right to it (status {answer.status}).")
    if answer.status in (404, 410):
        return ModelNotFound(f"{host} has no {shown(file.name)} (status {answer.status}).", param="from")
    return RemoteFailed(f"{host} answers with status {answer.status}.")


def _host(file: RemoteFile) -> str:
    return shown(urlsplit(file.url).hostname or "the server")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".ranges")
