"""Uploads in pieces on a real disk: what stays, what goes, and what a crash leaves."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.errors import Conflict, DigestMismatch, DiskFull, RangeNotSatisfiable, TooLarge
from service.store.blobs import BlobStore
from service.store.partials import Partials
from service.store.piecewise import PiecewiseUploads, Standing

CONTENT = random.Random(3).randbytes(50_000)
SIZE = len(CONTENT)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path, reserve_bytes=0)
    store.start()
    return store


@pytest.fixture
def partials(tmp_path: Path, blobs: BlobStore) -> Partials:
    partials = Partials(tmp_path / "partial", 60.0)
    partials.start()
    return partials


@pytest.fixture
def uploads(blobs: BlobStore, partials: Partials) -> PiecewiseUploads:
    return PiecewiseUploads(blobs, partials)


def send(uploads: PiecewiseUploads, start: int, stop: int, content: bytes = CONTENT) -> bool:
    piece = uploads.begin(DIGEST, SIZE, start, stop)
    try:
        for at in range(start, stop, 7000):
            piece.write(content[at : min(at + 7000, stop)])
        return piece.finish()
    finally:
        piece.close()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, SIZE - 1), max_size=6, unique=True), restarts=st.sets(st.integers(0, 6)))
def test_however_it_is_cut_and_whenever_the_server_restarts_it_becomes_the_blob(
    cuts: list[int], restarts: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("cut")
    blobs = BlobStore(root, reserve_bytes=0)
    blobs.start()
    partials = Partials(root / "partial", 60.0)
    partials.start()
    uploads = PiecewiseUploads(blobs, partials)
    edges = [0, *sorted(cuts), SIZE]
    for number, (start, stop) in enumerate(pairwise(edges)):
        assert send(uploads, start, stop) == (stop == SIZE)
        if number in restarts:
            uploads = PiecewiseUploads(blobs, partials)
    assert blobs.path(DIGEST).read_bytes() == CONTENT
    assert uploads.standing(DIGEST) is None


def test_a_gap_and_an_overlap_are_refused(uploads: PiecewiseUploads) -> None:
    send(uploads, 0, 100)
    for start in (0, 99, 101):
        with pytest.raises(RangeNotSatisfiable, match="byte 100"):
            uploads.begin(DIGEST, SIZE, start, 200)
    assert uploads.standing(DIGEST) == Standing(100, SIZE)


def test_a_piece_longer_than_it_said_is_refused_and_what_fits_stays(uploads: PiecewiseUploads) -> None:
    piece = uploads.begin(DIGEST, SIZE, 0, 10)
    piece.write(CONTENT[:8])
    with pytest.raises(TooLarge):
        piece.write(CONTENT[8:11])
    piece.close()
    assert uploads.standing(DIGEST) == Standing(8, SIZE)


def test_wrong_bytes_are_found_at_the_end_and_nothing_is_left(uploads: PiecewiseUploads, partials: Partials) -> None:
    send(uploads, 0, 100, bytes(SIZE))
    with pytest.raises(DigestMismatch):
        send(uploads, 100, SIZE)
    assert list(partials.root.iterdir()) == []
    assert send(uploads, 0, SIZE)


def test_bytes_that_rotted_between_two_servers_are_found(
    uploads: PiecewiseUploads, blobs: BlobStore, partials: Partials
) -> None:
    send(uploads, 0, 1000)
    (file,) = partials.root.glob("*/of-*")
    file.write_bytes(bytes(1000))
    with pytest.raises(DigestMismatch):
        send(PiecewiseUploads(blobs, partials), 1000, SIZE)


def test_a_crash_after_the_second_name_leaves_all_that_came(
    uploads: PiecewiseUploads, blobs: BlobStore, partials: Partials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(BlobStore, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            send(uploads, 0, SIZE)
    blobs.start()  # which empties the incoming folder
    uploads = PiecewiseUploads(blobs, partials)
    assert uploads.standing(DIGEST) == Standing(SIZE, SIZE)
    piece = uploads.begin(DIGEST, SIZE, None)
    assert piece.finish()
    piece.close()
    assert blobs.path(DIGEST).read_bytes() == CONTENT


def test_what_is_whole_is_never_opened_for_writing(uploads: PiecewiseUploads, partials: Partials) -> None:
    folder = partials.folder("upload", DIGEST)
    (folder / f"of-{SIZE}").write_bytes(CONTENT)
    piece = uploads.begin(DIGEST, SIZE, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(piece._descriptor, b"x", 0)
    piece.close()


def test_a_file_system_without_hard_links_does_as_well(
    uploads: PiecewiseUploads, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("service.store.piecewise.os.link", no_links)
    assert send(uploads, 0, SIZE)
    assert blobs.path(DIGEST).read_bytes() == CONTENT


def test_there_is_one_writer_at_a_time(uploads: PiecewiseUploads) -> None:
    piece = uploads.begin(DIGEST, SIZE, 0, 10)
    with pytest.raises(Conflict):
        uploads.begin(DIGEST, SIZE, 0, 10)
    with pytest.raises(Conflict):
        uploads.abort(DIGEST)
    piece.close()
    piece.close()
    assert uploads.abort(DIGEST)
    assert not uploads.abort(DIGEST)


def test_a_beginning_that_fails_leaves_the_upload_free(uploads: PiecewiseUploads, blobs: BlobStore) -> None:
    with pytest.raises(TooLarge):
        uploads.begin(DIGEST, SIZE, 0, 10, limit_bytes=SIZE - 1)
    blobs.reserve_bytes = blobs.free_bytes() + (1 << 40)
    with pytest.raises(DiskFull):
        uploads.begin(DIGEST, SIZE, 0, 10)
    blobs.reserve_bytes = 0
    assert send(uploads, 0, SIZE)


def test_close_waits_for_a_thread_that_writes(uploads: PiecewiseUploads, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        entered.set()
        assert go_on.wait(5)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr("service.store.piecewise.os.pwrite", slow)
    piece = uploads.begin(DIGEST, SIZE, 0, 10)
    writer = threading.Thread(target=piece.write, args=(CONTENT[:10],))
    writer.start()
    assert entered.wait(5)
    closer = threading.Thread(target=piece.close)
    closer.start()
    assert closer.is_alive()
    go_on.set()
    writer.join(5)
    closer.join(5)
    assert uploads.standing(DIGEST) == Standing(10, SIZE)


def test_only_what_nobody_uses_and_is_old_is_pruned(partials: Partials) -> None:
    old, used, young = (partials.folder("upload", name) for name in ("old", "used", "young"))
    for folder in (old, used):
        (folder / "file").touch()
    with partials.using(used):
        long_ago = time.time() - 3600
        for path in (old / "file", old, used / "file", used):
            os.utime(path, (long_ago, long_ago))
        partials._used_at.clear()  # as after a restart
        assert partials.prune() == 1
        assert (old.exists(), used.exists(), young.exists()) == (False, True, True)
    assert partials.prune() == 0  # it was used until this moment
    partials._used_at.clear()
    assert partials.prune() == 1
    assert not used.exists()


def test_a_clock_that_jumps_prunes_nothing_that_is_gone_on_with(
    partials: Partials, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = partials.folder("upload", "paused")
    (folder / "file").write_bytes(bytes(1 << 13))
    later = time.time() + 365 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert partials.idle() == {}
    assert partials.prune() == 0
    partials._used_at.clear()  # a server that knows the folder by its times alone
    assert set(partials.idle()) == {folder}
    assert partials.prune() == 1


def test_what_lies_in_transfers_is_counted_while_they_come_and_go(partials: Partials) -> None:
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            folder = partials.folder("upload", "churn")
            with suppress(FileNotFoundError):
                (folder / "file").write_bytes(bytes(8192))
            partials.discard(folder)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert partials.total_bytes() >= 0
            assert set(partials.idle()) == set()
    finally:
        ended.set()
        thread.join(5)
