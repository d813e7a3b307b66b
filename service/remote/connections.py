"""The connections that one file comes over: each takes the first bytes that are missing, and writes where they belong.

The first answer says how the server sends. One without ranges is read as one stream, from the start each time. Threads
of a child; what they find is asked for by the thread that hashes (`transfer.py`).
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.domain.errors import DigestMismatch, DiskFull, ModelNotFound, RemoteFailed, RemoteRefused
from service.domain.reach import shown
from service.domain.remote import RemoteFile
from service.remote.guard import Answer, Dropped, Network
from service.remote.partial import Partial
from service.remote.patience import BUSY, Pace, gave_up

_LEAST_PIECE_BYTES = 1024 * 1024
_LARGEST_PIECE_BYTES = 64 * 1024 * 1024
_JOIN_SECONDS = 1.0
# A connection that brings less than this in `stall_seconds`, or before it breaks, is as good as dead.
_LEAST_BYTES = 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class StartAnew(Exception):
    """What is there cannot be gone on with. `ranges` False: the server knows none."""

    def __init__(self, *, ranges: bool = True) -> None:
        super().__init__()
        self.ranges = ranges


@dataclass(frozen=True, slots=True)
class Standing:
    """How far it is at one moment. `size` None: not known yet. `is_settled`: it is known how the server sends."""

    size: int | None
    validator: str | None
    by_ranges: bool
    is_settled: bool
    problem: BaseException | None


@dataclass(slots=True, eq=False)
class _Piece:
    """Bytes `at` up to `stop` are to come."""

    at: int
    stop: int

    @property
    def is_done(self) -> bool:
        return self.at >= self.stop


class Connections:
    """Threads that fetch what is missing of a file. `ranges` False: the server is known to have none."""

    def __init__(self, network: Network, file: RemoteFile, partial: Partial, pace: Pace, *, ranges: bool) -> None:
        self._network = network
        self._file = file
        self._partial = partial
        self._pace = pace
        # What the bytes come to is compared in the end: until then it matters less what the server says of them.
        self._is_checked = file.digest is not None or file.git_oid is not None
        self._lock = threading.Condition()
        self._size = file.size_bytes
        self._validator: str | None = None
        self._by_ranges = ranges
        self._is_settled = False
        self._has_ended = False  # a stream has come to its end
        self._problem: BaseException | None = None
        self._stopping = False
        self._pieces: list[_Piece] = []  # under way
        self._threads: list[threading.Thread] = []

    # --- for the thread that hashes ------------------------------------------------------------------------------

    def settle(self, size: int | None, validator: str | None) -> None:
        """How the server sends is known from an earlier run."""
        self._size, self._validator, self._is_settled = size, validator, True

    def start(self) -> None:
        """Begin with one connection, and go on with as many as there may be once the server is known to have ranges."""
        self._start()

    def standing(self, wait_seconds: float = 0.0) -> Standing:
        """How far it is; after a while, or sooner where something has changed."""
        with self._lock:
            if wait_seconds > 0:
                self._lock.wait(wait_seconds)
            return Standing(self._size, self._validator, self._by_ranges, self._is_settled, self._problem)

    def widen(self) -> None:
        """Open as many connections as there may be."""
        while len(self._threads) < self._pace.connections:
            self._start()

    def are_over(self) -> bool:
        """Whether none works any more, and none has failed."""
        return not any(thread.is_alive() for thread in self._threads) and self.standing().problem is None

    def stop(self) -> bool:
        """End them; whether all have ended. One that hangs writes no more when it comes back."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in self._threads)

    # --- threads -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"connection-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

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
            if self._stopping or self._problem is not None or self._has_ended:
                return None
            if not self._by_ranges or self._size is None:
                if self._pieces:
                    return None
                piece = _Piece(0, self._largest())
            else:
                missing = self._partial.missing(self._size, [(other.at, other.stop) for other in self._pieces])
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
                tries = 1 if self._by_ranges and piece.at - before >= _LEAST_BYTES else tries + 1
                if tries >= self._pace.patience.tries:
                    raise gave_up(host_of(self._file), problem) from problem
                pause = self._pace.patience.pause_seconds(tries, problem.retry_after_seconds)
                with self._lock:
                    self._lock.wait_for(lambda: self._stopping, pause)

    def _stream(self, piece: _Piece) -> None:
        """One request for what is left of the piece."""
        headers = {"Range": f"bytes={piece.at}-{piece.stop - 1}"} if self._by_ranges else {}
        if self._by_ranges and self._validator is not None and not self._is_checked and self._is_settled:
            headers["If-Range"] = self._validator
        with self._network.get(self._file.url, headers) as answer:
            if answer.status == 206 and self._by_ranges:
                self._settle_range(answer, piece)
                self._copy(answer, piece)
            elif answer.status == 200:
                self._settle_stream(answer)
                piece.at, piece.stop = 0, self._size if self._size is not None else self._pace.limit_bytes
                self._copy(answer, piece)
                self._end_stream(piece)
            else:
                raise _refused(answer, self._file)

    def _settle_range(self, answer: Answer, piece: _Piece) -> None:
        """Learn from a range how large the file is. Raises when it is another file than before."""
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None:
            raise StartAnew(ranges=False)
        first, last, size = (int(group) for group in match.groups())
        if first != piece.at or last >= size or last < first:
            raise RemoteFailed(f"{host_of(self._file)} sends other bytes than were asked for.")
        check_size(size, self._pace)
        with self._lock:
            if self._file.size_bytes is not None and size != self._file.size_bytes:
                raise self._other_size(size)
            changed = self._size not in (None, size) or (
                self._is_settled and not self._is_checked and answer.validator != self._validator
            )
            if changed:
                raise StartAnew
            self._size, self._validator, self._is_settled = size, answer.validator, True
            piece.stop = min(piece.stop, last + 1)  # fewer than asked for: the rest is a piece of its own
            self._lock.notify_all()

    def _settle_stream(self, answer: Answer) -> None:
        """The whole file comes, whatever was asked for."""
        length = answer.length
        check_size(length, self._pace)
        with self._lock:
            if self._by_ranges and (self._partial.total or self._is_settled):
                # Either it has changed, which is what If-Range asks for, or ranges are no longer served.
                raise StartAnew(ranges=self._validator is not None and answer.validator != self._validator)
            if self._file.size_bytes is not None and length not in (None, self._file.size_bytes):
                raise self._other_size(length or 0)
            if length is not None and not self._by_ranges and self._size not in (None, length):
                raise StartAnew(ranges=False)
            self._by_ranges, self._is_settled = False, True
            self._size = self._size if self._size is not None else length
            self._partial.begin_anew()
            self._lock.notify_all()

    def _end_stream(self, piece: _Piece) -> None:
        """The stream has ended well: what has come is all there is, where nobody has said how much it would be."""
        with self._lock:
            if self._size is None:
                self._size = piece.at
            elif piece.at < self._size:
                raise Dropped(f"it sent {piece.at} of {self._size} bytes")
            self._has_ended = True
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
            self._partial.write(chunk, piece.at)
            with self._lock:
                piece.at += len(chunk)
            since += self._pace.limiter.take(len(chunk))
            brought += len(chunk)
            if time.monotonic() - since >= stall:
                if brought < _LEAST_BYTES:
                    raise Dropped("it sends next to nothing")
                since, brought = time.monotonic(), 0
            if self._by_ranges and piece.is_done:
                return

    def _too_much(self) -> Exception:
        host = host_of(self._file)
        if self._size is None:
            return DiskFull(
                f"{host} sends more than {self._pace.limit_bytes} bytes, which is all that can be taken in."
            )
        return DigestMismatch(f"{host} sends more than the {self._size} bytes there should be; nothing is kept.")

    def _other_size(self, size: int) -> RemoteFailed:
        return RemoteFailed(
            f"{host_of(self._file)} says that the file has {size} bytes, and listed it with {self._file.size_bytes}; "
            "try again later."
        )

    def _is_stopping(self) -> bool:
        with self._lock:
            return self._stopping or self._problem is not None


def check_size(size: int | None, pace: Pace) -> None:
    """Raise DiskFull for a file that is too large."""
    if size is not None and size > pace.limit_bytes:
        raise DiskFull(
            f"The file has {size} bytes, and at most {pace.limit_bytes} can be taken in now. Delete models that are no "
            "longer used, or add space."
        )


def host_of(file: RemoteFile) -> str:
    """The host that a file comes from, fit for a message."""
    return shown(urlsplit(file.url).hostname or "the server")


def _refused(answer: Answer, file: RemoteFile) -> Exception:
    host = shown(answer.place.host)
    if answer.status in BUSY:
        return Dropped(f"it answers with status {answer.status}", answer.retry_after_seconds)
    if answer.status == 416:
        return StartAnew()
    if answer.status in (401, 403):
        return RemoteRefused(f"{host} does not give {shown(file.name)} without a right to it (status {answer.status}).")
    if answer.status in (404, 410):
        return ModelNotFound(f"{host} has no {shown(file.name)} (status {answer.status}).", param="from")
    return RemoteFailed(f"{host} answers with status {answer.status}.")
