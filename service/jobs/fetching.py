"""Files from elsewhere into a transfer's folder, for pulls and for adapters. In the job's child.

The folder is named after what it is to bring, so that every address of the same files means the same folder; whoever
comes second waits, and finds the files there. Each file has a name that only its bytes have. What came earlier and
broke off is gone on with. Knows the room that fetches, and no more of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import DiskFull
from service.domain.remote import RemoteAccess, RemoteFile
from service.jobs.limits import limit_file_size
from service.jobs.messages import Transfer
from service.jobs.outbox import Outbox
from service.remote.guard import Network
from service.remote.patience import Limiter, Pace
from service.remote.transfer import Fetched, fetch
from service.store.partials import folder_name, hold

FOLDER = "pull"
"""The kind of these folders among the transfers."""
_PACE = "pace"


@dataclass(frozen=True, slots=True)
class Landing:
    """Where files are to land, and what may be taken for them. `step` is the job's, for its progress.

    `room_bytes` is what may still be written. `begins_with`: else a file is refused at its first bytes.
    """

    folder: Path
    incoming: Path
    room_bytes: int
    step: int
    begins_with: bytes = b""


@contextmanager
def transfer_of(transfers: Path, files: Sequence[RemoteFile], step: int, outbox: Outbox) -> Iterator[Path]:
    """The folder that these files come into, held while the block runs; the server is told of it.

    Files of a known digest alone decide which folder it is, where there are any: with another configuration beside
    them the weights need not come again.
    """
    large = sorted({file.digest for file in files if file.digest is not None})
    name = folder_name(FOLDER, large or sorted({_identity(file) for file in files}))
    outbox.send(Transfer(name))
    total = sum(file.size_bytes or 0 for file in files)

    def waiting() -> None:
        there = bytes_in(transfers / name)
        share = min(there / total, 0.999) if total else 0.0
        outbox.progress(step, share, "another job fetches the same; waiting for it")

    with hold(transfers / name, waiting):
        yield transfers / name


def fetch_all(
    files: Sequence[RemoteFile], landing: Landing, network: Network, access: RemoteAccess, outbox: Outbox
) -> tuple[tuple[Path, Fetched], ...]:
    """Fetch the files, one after another. Raises what `fetch` raises, and DiskFull before anything comes."""
    total = sum(file.size_bytes or 0 for file in files)
    room_bytes = landing.room_bytes + bytes_in(landing.folder)  # what has come already is counted as taken
    if total > room_bytes:
        raise DiskFull(
            f"{total} bytes are to come and {room_bytes} are free beside the reserve. Delete models that are no "
            "longer used, or add space."
        )
    limit_file_size(max((file.size_bytes or room_bytes for file in files), default=0))
    pace = Pace(
        connections=access.connections,
        stall_seconds=access.stall_seconds,
        limiter=Limiter(access.bytes_per_second, landing.incoming / _PACE),
        limit_bytes=room_bytes,
        begins_with=landing.begins_with,
    )
    done = 0
    landed = []
    for number, file in enumerate(files, start=1):

        def told(there: int, size: int | None, number: int = number, before: int = done) -> None:
            everything = total or size
            which = f", file {number} of {len(files)}" if len(files) > 1 else ""
            share = (before + there) / everything if everything else 0.0
            outbox.progress(landing.step, min(share, 0.999), f"{before + there} of {everything or '?'} bytes{which}")

        path = landing.folder / _local_name(file)
        fetched = fetch(network, file, path, pace, told)
        done += fetched.size_bytes
        landed.append((path, fetched))
    return tuple(landed)


def bytes_in(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; 0 where there is none."""
    taken = 0
    for path in folder.glob("*"):
        try:
            taken += path.lstat().st_blocks * 512
        except FileNotFoundError:  # another job's, which goes on
            continue
    return taken


def _identity(file: RemoteFile) -> str:
    return file.digest or file.git_oid or file.url


def _local_name(file: RemoteFile) -> str:
    """A name that only these bytes have: nothing of it is the other server's to choose."""
    known = (file.digest or "").removeprefix("sha256:") or file.git_oid
    return known or hashlib.sha256(file.url.encode()).hexdigest()[:40]
