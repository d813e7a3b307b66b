"""The source's log-probabilities of a text, in a file: computed once, compared with many times. In the job's child.

The file is what `llama-perplexity --kl-divergence-base` writes: "_logits_", then window, vocabulary and chunks as
int32, the tokens of all windows, and for each window the compact rows (compact.py) of the tokens scored in it. After
that comes one line of JSON, which that tool does not read: what the rows were computed from.

    path.<12 hex>.part ──every chunk is there, line, fsync, rename──> path

A part grows chunk by chunk and outlives its writer; whoever comes next goes on with it. A whole file is never
changed, so that others may read it meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import DiskFull, JobFailed
from service.quantization.compact import are_whole, compact_width
from service.quantization.windows import Windows

_MAGIC = b"_logits_"
_COUNTS = struct.Struct("<iii")
_MAX_VOCABULARY = 1 << 24
_MAX_TOKENS = 1 << 28
_MAX_ORIGIN_BYTES = 4096
_FREE_BYTES = 64 * 1024 * 1024  # what a disk keeps for others

Origin = dict[str, str]
"""What the rows were computed from, in the caller's words, e.g. the text's digest and llama.cpp's build."""


def scored_rows(window: int) -> int:
    """Tokens of a window that are scored: those of its second half, from their predecessors'."""
    return window - 1 - window // 2


class BaseLogits:
    """A whole file, open for reading."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises OSError when it is not there, ValueError when it is no whole file of this kind."""
        self._path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        file = self._file
        head = file.read(len(_MAGIC) + _COUNTS.size)
        if len(head) < len(_MAGIC) + _COUNTS.size or not head.startswith(_MAGIC):
            raise ValueError("not a file of log-probabilities")
        window, vocabulary, chunks = _COUNTS.unpack_from(head, len(_MAGIC))
        if not (window >= 4 and 0 < vocabulary <= _MAX_VOCABULARY and chunks > 0 and window * chunks <= _MAX_TOKENS):
            raise ValueError("counts out of range")
        size = os.fstat(file.fileno()).st_size
        self._start = _header_bytes(window, chunks)
        self._shape = (scored_rows(window), compact_width(vocabulary))
        end = self._start + chunks * self._chunk_bytes
        if not end <= size <= end + _MAX_ORIGIN_BYTES:
            raise ValueError("the file is cut off")
        tokens = np.frombuffer(file.read(4 * window * chunks), dtype="<i4")
        self.windows: Windows = tokens.reshape(chunks, window).astype(np.int32)
        self.vocabulary = int(vocabulary)
        file.seek(end)
        self.origin = _parse_origin(file.read(size - end))

    @property
    def _chunk_bytes(self) -> int:
        return 2 * self._shape[0] * self._shape[1]

    def chunk(self, number: int, out: NDArray[np.uint16] | None = None) -> NDArray[np.uint16]:
        """The compact rows of one window, shape (scored_rows(window), compact_width(vocabulary)).

        `out` of that shape is filled and given back. Raises JobFailed when they are not there, and removes the file.
        """
        rows = np.empty(self._shape, dtype=np.uint16) if out is None else out
        view = rows.data.cast("B")
        position = self._start + number * self._chunk_bytes
        while view:
            count = os.preadv(self._file.fileno(), [view], position)
            if count == 0:
                raise self._damaged()
            view, position = view[count:], position + count
        if not are_whole(rows).all():
            raise self._damaged()
        return rows

    def _damaged(self) -> JobFailed:
        self._path.unlink(missing_ok=True)
        return JobFailed(
            "The source's log-probabilities on disk were damaged and are removed now; start the job again."
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> BaseLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BaseLogitsPart:
    """A file in the making, held by one process: what is there of it already, and more. Close it, also when finished.

    `begin` comes first, then `add` for each window from `done` on, then `finish`.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        """Take the part of `path` for this origin. Raises BlockingIOError when another process has it."""
        self._path = path
        self._origin = json.dumps(origin, sort_keys=True).encode() + b"\n"
        assert len(self._origin) <= _MAX_ORIGIN_BYTES
        self.done = 0
        self._chunks = 0
        self._rows = (0, 0)
        key = hashlib.sha256(self._origin).hexdigest()[:12]
        self._part = path.with_name(f"{path.name}.{key}.part")
        self._file = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_the_part():  # who held it has just given it its own name
                raise BlockingIOError
        except BaseException:
            self._file.close()
            raise

    def begin(self, windows: Windows, vocabulary: int) -> None:
        """Go on with what a predecessor left for the same windows, else start over; `done` is how many are there.

        Raises DiskFull when the rest would not fit, OSError.
        """
        chunks, window = windows.shape
        self._chunks = chunks
        self._rows = (scored_rows(window), compact_width(vocabulary))
        header = _MAGIC + _COUNTS.pack(window, vocabulary, chunks) + windows.astype("<i4").tobytes()
        self.done = self._resume(header)
        missing = (chunks - self.done) * self._chunk_bytes
        free = shutil.disk_usage(self._part.parent).free
        if missing + _FREE_BYTES > free:
            raise DiskFull(
                f"The source's log-probabilities need {missing // 2**20} MiB and the disk has {free // 2**20} MiB "
                "free; make room, or evaluate fewer chunks."
            )

    @property
    def _chunk_bytes(self) -> int:
        return 2 * self._rows[0] * self._rows[1]

    def _is_the_part(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._part.stat())
        except FileNotFoundError:
            return False

    def _resume(self, header: bytes) -> int:
        """Chunks that are there; anything after them is cut off."""
        file = self._file
        done = 0
        if file.read(len(header)) == header:
            while done < self._chunks:
                data = file.read(self._chunk_bytes)
                if len(data) < self._chunk_bytes:
                    break
                # After a loss of power a file may have holes.
                if not are_whole(np.frombuffer(data, dtype=np.uint16).reshape(self._rows)).all():
                    break
                done += 1
        else:
            file.seek(0)
            file.truncate()
            _write(file.fileno(), header)
        end = len(header) + done * self._chunk_bytes
        file.truncate(end)
        file.seek(end)
        return done

    def empty_chunk(self) -> NDArray[np.uint16]:
        """Room for the rows of one window."""
        return np.empty(self._rows, dtype=np.uint16)

    def add(self, rows: NDArray[np.uint16]) -> None:
        """Append the rows of the next window. Raises OSError."""
        assert rows.shape == self._rows
        assert self.done < self._chunks
        _write(self._file.fileno(), rows.data.cast("B"))
        self.done += 1

    def finish(self) -> None:
        """Make it whole, under its own name. Raises OSError."""
        assert self.done == self._chunks
        _write(self._file.fileno(), self._origin)
        os.fsync(self._file.fileno())
        self._part.replace(self._path)

    def close(self) -> None:
        """Close the file; a part stays for next time."""
        self._file.close()

    def __enter__(self) -> BaseLogitsPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_base(path: Path, origin: Origin) -> BaseLogits | None:
    """The file at `path` if it is whole and of this origin; None where it has to be made."""
    try:
        base = BaseLogits(path)
    except (OSError, ValueError):
        return None
    if base.origin == origin:
        return base
    base.close()
    return None


def _header_bytes(window: int, chunks: int) -> int:
    return len(_MAGIC) + _COUNTS.size + 4 * window * chunks


def _parse_origin(line: bytes) -> Origin:
    try:
        origin = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
