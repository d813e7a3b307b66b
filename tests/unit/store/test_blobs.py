"""Blobs come in whole or not at all, in the right order, and never outside their folder."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import Outside
from service.domain.errors import BlobCorrupt, BlobNotFound, DigestMismatch, DiskFull, InvalidName, TooLarge
from service.store.blobs import BlobStore

CONTENT = b"content of a blob"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
NEVER = 1e9
DAY_SECONDS = 86_400.0


def _temp(store: BlobStore, content: bytes = CONTENT, name: str = "job-1") -> Path:
    temp = store.incoming / name
    temp.write_bytes(content)
    return temp


def _commit(store: BlobStore, content: bytes = CONTENT) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    store.commit(_temp(store, content), digest, len(content))
    return digest


def _age(store: BlobStore, digest: str, seconds: float) -> None:
    """Make a blob look untouched for that long, to this process and to one started later."""
    then = time.time() - seconds
    os.utime(store.path(digest), (then, then))
    store._used_at.pop(digest, None)


def _failing(code: int) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise OSError(code, os.strerror(code))

    return fail


def _nothing_left(store: BlobStore) -> bool:
    return list(store.incoming.iterdir()) == [] and list(store.root.glob("sha256-*")) == []


# --- commit ------------------------------------------------------------------------------------------------------


def test_a_committed_blob_is_whole_read_only_and_named_by_its_digest(store: BlobStore) -> None:
    assert not store.has(DIGEST)
    _commit(store)
    path = store.root / f"sha256-{DIGEST[7:]}"
    assert store.path(DIGEST) == path
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.has(DIGEST)
    assert store.size(DIGEST) == store.total_bytes() == len(CONTENT)
    assert store.verify(DIGEST)
    assert list(store.incoming.iterdir()) == []


def test_the_steps_of_a_commit_come_in_the_order_that_survives_power_loss(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = _temp(store)
    steps: list[str] = []
    fsync, fchmod, rename = os.fsync, os.fchmod, os.rename

    def log_fsync(descriptor: int) -> None:
        steps.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def log_fchmod(descriptor: int, mode: int) -> None:
        steps.append(f"chmod {mode:o}")
        fchmod(descriptor, mode)

    def log_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "fchmod", log_fchmod)
    monkeypatch.setattr(os, "rename", log_rename)
    store.commit(temp, DIGEST, len(CONTENT))
    assert steps == ["fsync file", "chmod 444", "rename", "fsync folder"]


def test_a_commit_may_be_repeated_and_keeps_the_first_file(store: BlobStore) -> None:
    _commit(store)
    first = store.path(DIGEST).stat().st_ino
    for _ in range(3):
        _commit(store)
    assert store.path(DIGEST).stat().st_ino == first
    assert list(store.incoming.iterdir()) == []


def test_a_commit_of_the_wrong_length_leaves_nothing(store: BlobStore) -> None:
    temp = _temp(store)
    with pytest.raises(DigestMismatch):
        store.commit(temp, DIGEST, len(CONTENT) + 1)
    assert _nothing_left(store)


def test_a_truncated_blob_is_mended_by_the_next_commit(store: BlobStore) -> None:
    _commit(store)
    store.path(DIGEST).chmod(0o644)
    store.path(DIGEST).write_bytes(CONTENT[:3])
    _commit(store)
    assert store.verify(DIGEST)


def test_a_corrupt_blob_is_found_and_mended_by_replacing_it(store: BlobStore) -> None:
    _commit(store)
    store.path(DIGEST).chmod(0o644)
    store.path(DIGEST).write_bytes(CONTENT[::-1])
    assert not store.verify(DIGEST)
    store.commit(_temp(store), DIGEST, len(CONTENT), replace=True)
    assert store.verify(DIGEST)


def test_a_pipe_or_a_link_made_by_a_child_is_no_blob(store: BlobStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    os.mkfifo(store.incoming / "pipe")
    (store.incoming / "link").symlink_to(secret)
    with pytest.raises(DigestMismatch):
        store.commit(store.incoming / "pipe", DIGEST, 0)
    with pytest.raises(OSError):
        store.commit(store.incoming / "link", DIGEST, len(CONTENT))
    assert _nothing_left(store)
    assert secret.stat().st_mode & 0o222


@pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failing_disk_is_never_success_and_leaves_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    temp = _temp(store)
    with monkeypatch.context() as broken:
        broken.setattr(os, call, _failing(code))
        with pytest.raises(OSError if code == errno.EIO else DiskFull):
            store.commit(temp, DIGEST, len(CONTENT))
    assert _nothing_left(store)
    _commit(store)
    assert store.verify(DIGEST)


def test_fsync_is_called_once_and_not_tried_again(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    temp = _temp(store)
    calls: list[int] = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        store.commit(temp, DIGEST, len(CONTENT))
    assert len(calls) == 1


def test_a_blob_whose_folder_did_not_reach_the_disk_is_not_taken_for_finished(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = _temp(store)
    fsync = os.fsync

    def fail_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(OSError):
        store.commit(temp, DIGEST, len(CONTENT))
    assert not store.has(DIGEST)


# --- names -------------------------------------------------------------------------------------------------------

_TRICKS = [
    "",
    "sha256:",
    "sha256:" + "0" * 63,
    "sha256:" + "0" * 65,
    "sha256:" + "A" * 64,
    "sha256-" + "0" * 64,
    "md5:" + "0" * 64,
    "../../etc/passwd",
    "sha256:" + "../" * 21 + "0",
    "sha256:" + "0" * 64 + "\n",
    "sha256:" + "0" * 63 + "\x00",
    "sha256:" + "\uff10" * 64,
    "incoming",
    "sha256:%2e%2e%2f" + "0" * 55,
]


@pytest.mark.parametrize("digest", _TRICKS)
def test_a_text_that_is_no_digest_reaches_no_file(store: BlobStore, digest: str) -> None:
    for call in (store.path, store.has, store.size, store.verify, store.open_upload):
        with pytest.raises(InvalidName):
            call(digest)
    temp = _temp(store)
    with pytest.raises(InvalidName):
        store.commit(temp, digest, len(CONTENT))


@given(st.text() | st.from_regex(r"sha256[:-][0-9a-f]{64}"))
def test_no_text_leads_out_of_the_folder(text: str) -> None:
    store = BlobStore(Path("/nowhere/blobs"), reserve_bytes=0)
    try:
        path = store.path(text)
    except InvalidName:
        return
    assert path.parent == store.root
    assert path.name == f"sha256-{text[7:]}"


def test_a_link_in_place_of_a_blob_is_no_blob(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    store.path(DIGEST).symlink_to(tmp_path / "elsewhere")
    assert not store.has(DIGEST)
    with pytest.raises(BlobNotFound):
        store.verify(DIGEST)
    _commit(store)
    assert store.verify(DIGEST)
    assert (tmp_path / "elsewhere").read_bytes() == CONTENT


def test_a_blob_that_is_not_there_is_not_found(store: BlobStore) -> None:
    with pytest.raises(BlobNotFound):
        store.size(DIGEST)
    with pytest.raises(BlobNotFound):
        store.verify(DIGEST)


# --- start, space ------------------------------------------------------------------------------------------------


def test_start_removes_what_a_crash_has_left_and_no_blob(store: BlobStore, tmp_path: Path) -> None:
    _commit(store)
    _temp(store, name="upload-1")
    (store.incoming / "job-2").mkdir()
    (store.incoming / "job-2" / "level").write_bytes(b"x")
    (store.incoming / "link").symlink_to(tmp_path)
    again = BlobStore(store.root, reserve_bytes=0)
    assert again.start() == 3
    assert again.start() == 0
    assert list(store.incoming.iterdir()) == []
    assert again.verify(DIGEST)


def test_space_is_refused_with_the_figures(store: BlobStore) -> None:
    free_bytes = store.free_bytes()
    store.check_space(1)
    with pytest.raises(DiskFull, match=f"{10 * free_bytes} bytes are needed") as full:
        store.check_space(10 * free_bytes)
    assert str(store.root) not in full.value.message
    greedy = BlobStore(store.root, reserve_bytes=10 * free_bytes)
    with pytest.raises(DiskFull):
        greedy.check_space(0)
    with pytest.raises(DiskFull):
        greedy.open_upload(DIGEST)
    assert _nothing_left(store)


# --- uploads -----------------------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=5))
def test_an_upload_in_any_chunks_is_the_blob(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    store = BlobStore(tmp_path_factory.mktemp("upload"), reserve_bytes=0)
    store.start()
    edges = [0, *sorted(cuts), len(CONTENT)]
    with store.open_upload(DIGEST, len(CONTENT)) as upload:
        for start, end in itertools.pairwise(edges):
            upload.write(CONTENT[start:end])
        upload.finish()
    assert store.verify(DIGEST)
    assert list(store.incoming.iterdir()) == []


def test_an_upload_of_other_bytes_leaves_nothing(store: BlobStore) -> None:
    with store.open_upload(DIGEST) as upload:
        upload.write(CONTENT[::-1])
        with pytest.raises(DigestMismatch):
            upload.finish()
    assert _nothing_left(store)


def test_an_upload_that_stops_early_leaves_nothing(store: BlobStore) -> None:
    with store.open_upload(DIGEST, len(CONTENT)) as upload:
        upload.write(CONTENT[:5])
        with pytest.raises(DigestMismatch, match="5 of 17"):
            upload.finish()
    with store.open_upload(DIGEST) as dropped:
        dropped.write(CONTENT[:5])
    assert _nothing_left(store)


def test_an_upload_over_its_limit_or_its_announced_length_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(TooLarge):
        store.open_upload(DIGEST, 18, limit_bytes=17)
    with store.open_upload(DIGEST, limit_bytes=5) as upload, pytest.raises(TooLarge):
        upload.write(CONTENT)
    with store.open_upload(DIGEST, 5) as upload, pytest.raises(TooLarge):
        upload.write(CONTENT)
    assert _nothing_left(store)


def test_an_upload_of_a_known_blob_succeeds_without_a_write(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _commit(store)
    monkeypatch.setattr(os, "write", _failing(errno.EIO))
    with store.open_upload(DIGEST, len(CONTENT)) as upload:
        assert upload.exists
        upload.write(CONTENT)
        upload.finish()
    with store.open_upload(DIGEST) as upload, pytest.raises(DigestMismatch):
        upload.write(b"not it")
        upload.finish()
    assert store.verify(DIGEST)


def test_an_upload_mends_a_truncated_blob_when_its_length_is_announced(store: BlobStore) -> None:
    _commit(store)
    store.path(DIGEST).chmod(0o644)
    store.path(DIGEST).write_bytes(b"")
    with store.open_upload(DIGEST) as upload, pytest.raises(BlobCorrupt):
        upload.write(CONTENT)
        upload.finish()
    with store.open_upload(DIGEST, len(CONTENT)) as upload:
        upload.write(CONTENT)
        upload.finish()
    assert store.verify(DIGEST)


def test_an_upload_may_replace_a_corrupt_blob(store: BlobStore) -> None:
    _commit(store)
    store.path(DIGEST).chmod(0o644)
    store.path(DIGEST).write_bytes(CONTENT[::-1])
    with store.open_upload(DIGEST, len(CONTENT), replace=True) as upload:
        upload.write(CONTENT)
        upload.finish()
    assert store.verify(DIGEST)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_during_an_upload_is_disk_full_and_leaves_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    upload = store.open_upload(DIGEST)
    upload.write(CONTENT[:5])
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", _failing(code))
        with pytest.raises(DiskFull):
            upload.write(CONTENT[5:])
    assert _nothing_left(store)
    with store.open_upload(DIGEST) as again:
        again.write(CONTENT)
        again.finish()
    assert store.verify(DIGEST)


def test_short_writes_lose_no_byte(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    with store.open_upload(DIGEST) as upload:
        upload.write(CONTENT)
        upload.finish()
    assert store.verify(DIGEST)


def test_many_uploads_of_one_digest_at_once_all_succeed(store: BlobStore) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def send() -> None:
        try:
            with store.open_upload(DIGEST, len(CONTENT)) as upload:
                barrier.wait(timeout=10)
                upload.write(CONTENT)
                upload.finish()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []
    assert store.verify(DIGEST)
    assert list(store.incoming.iterdir()) == []


# --- sweep -------------------------------------------------------------------------------------------------------


def test_the_sweep_takes_what_nothing_refers_to_and_is_old_enough(store: BlobStore) -> None:
    kept, old, young = _commit(store, b"kept"), _commit(store, b"old"), _commit(store, b"young")
    for digest in (kept, old):
        _age(store, digest, DAY_SECONDS)
    assert store.sweep(frozenset({kept}), DAY_SECONDS / 2) == [old]
    assert store.has(kept)
    assert store.has(young)
    assert not store.has(old)
    assert store.sweep(frozenset({kept}), DAY_SECONDS / 2) == []


def test_the_sweep_leaves_other_files_alone(store: BlobStore) -> None:
    _temp(store)
    (store.root / "notes.txt").write_text("mine")
    (store.root / ("sha256-" + "0" * 63)).write_text("no digest")
    assert store.sweep(frozenset(), 0) == []
    kept = {"incoming", "quarantine", "notes.txt", "sha256-" + "0" * 63}
    assert {path.name for path in store.root.iterdir()} == kept
    assert len(list(store.incoming.iterdir())) == 1


def test_an_old_blob_that_is_committed_or_uploaded_again_is_young_again(store: BlobStore) -> None:
    for again in (lambda: _commit(store), lambda: store.open_upload(DIGEST).abort()):
        _commit(store)
        _age(store, DIGEST, DAY_SECONDS)
        again()
        assert store.sweep(frozenset(), DAY_SECONDS / 2) == []


def test_a_clock_that_jumps_forward_makes_no_blob_old(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _commit(store)
    later = time.time() + 365 * DAY_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    assert store.sweep(frozenset(), DAY_SECONDS) == []


def test_what_was_asked_for_lately_is_known_whatever_the_wall_clock_says(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _commit(store)
    monkeypatch.setattr(time, "time", lambda: 1e10)
    assert store.used_within(DAY_SECONDS) == {DIGEST}
    assert store.used_within(0) == frozenset()


def test_a_pipe_in_place_of_a_file_is_no_blob_and_nobody_waits_for_it(store: BlobStore) -> None:
    os.mkfifo(store.path(DIGEST))
    with pytest.raises(BlobNotFound):
        store.verify(DIGEST)


def test_a_file_elsewhere_that_became_unreachable_lies_nowhere(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder was")
    store.refer(DIGEST, Outside(str(tmp_path / "folder" / "model.gguf"), 5, 0))
    assert store.where(DIGEST) is None
    assert not store.has(DIGEST)


def test_a_clock_that_jumps_forward_during_an_upload_takes_no_blob_away(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _commit(store)
    _age(store, DIGEST, DAY_SECONDS)
    with store.open_upload(DIGEST) as upload:
        upload.write(CONTENT)
        later = time.time() + 365 * DAY_SECONDS
        monkeypatch.setattr(time, "time", lambda: later)
        assert store.sweep(frozenset(), DAY_SECONDS) == []
        upload.finish()


def test_a_clock_that_jumped_back_delays_the_sweep_by_no_more_than_the_grace_period(store: BlobStore) -> None:
    _commit(store)
    _age(store, DIGEST, -365 * DAY_SECONDS)
    assert store.sweep(frozenset(), DAY_SECONDS) == []
    assert store.path(DIGEST).stat().st_mtime <= time.time()
    assert store.sweep(frozenset(), 0) == [DIGEST]


def test_a_missing_folder_is_an_error_and_not_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlobStore(tmp_path / "gone", reserve_bytes=0).sweep(frozenset(), NEVER)
