"""Damaged blobs are set aside and come back, adopted files stay as they are, and quotas hold."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from service.domain.catalog import Lineage, Outside, Variant
from service.domain.errors import BlobCorrupt, BlobNotFound, DigestMismatch, DiskFull, Pinned, QuotaExceeded
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref
from service.store import care
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.outside import looks_of
from service.store.partials import Partials
from service.store.piecewise import PiecewiseUploads

CONTENT = b"the bytes of a model"
Put = Callable[..., Variant]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


DIGEST = digest_of(CONTENT)


def commit(store: BlobStore, content: bytes = CONTENT, **how: bool) -> None:
    temp = store.incoming / "temp"
    temp.write_bytes(content)
    store.commit(temp, digest_of(content), len(content), **how)


def spoil(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture
def put(catalog: Catalog, store: BlobStore, make: Callable[..., MadeFile]) -> Put:
    """put(name, content): a stored variant."""

    def _put(name: str = "gloss", content: bytes = CONTENT, **how: Outside) -> Variant:
        if not how:
            commit(store, content)
        return catalog.add_variant(parse_ref(name), make(content), Lineage("imported"), **how)

    return _put


# --- quarantine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[::-1], CONTENT + b"!", None])
def test_wrong_missing_and_truncated_bytes_are_found_alike_and_nothing_finds_the_file_again(
    damage: bytes | None, catalog: Catalog, store: BlobStore, put: Put
) -> None:
    put()
    if damage is None:
        store.path(DIGEST).unlink()
    else:
        spoil(store.path(DIGEST), damage)
    assert care.verify(catalog, store, DIGEST) == (False, True)
    assert catalog.resolve("gloss").corrupt
    assert not store.has(DIGEST)
    assert len(store.quarantined()) == (damage is not None)
    assert care.verify(catalog, store, DIGEST) == (False, False)
    with pytest.raises(BlobCorrupt):
        care.loadable(catalog, store, DIGEST)


def test_a_link_put_in_place_of_a_blob_is_set_aside_as_well(catalog: Catalog, store: BlobStore, put: Put) -> None:
    put()
    elsewhere = store.root / "elsewhere"
    elsewhere.write_bytes(CONTENT)
    store.path(DIGEST).unlink()
    store.path(DIGEST).symlink_to(elsewhere)
    assert care.verify(catalog, store, DIGEST) == (False, True)
    assert not store.path(DIGEST).is_symlink()
    assert elsewhere.read_bytes() == CONTENT


def test_the_right_bytes_bring_a_quarantined_blob_back_and_its_damaged_file_goes(
    catalog: Catalog, store: BlobStore, put: Put
) -> None:
    put()
    spoil(store.path(DIGEST), CONTENT[::-1])
    care.verify(catalog, store, DIGEST)
    commit(store)
    care.mended(catalog, store, DIGEST)
    assert not catalog.resolve("gloss").corrupt
    assert store.quarantined() == {}
    assert care.loadable(catalog, store, DIGEST) == store.path(DIGEST)


def test_a_quarantined_file_that_reads_right_after_all_is_taken_back(
    catalog: Catalog, store: BlobStore, put: Put
) -> None:
    put()
    care.condemn(catalog, store, DIGEST)
    assert not store.has(DIGEST)
    assert care.verify(catalog, store, DIGEST) == (True, True)
    assert store.has(DIGEST)
    assert store.quarantined() == {}
    assert not catalog.resolve("gloss").corrupt


def test_a_file_that_is_cut_is_found_before_it_is_loaded(catalog: Catalog, store: BlobStore, put: Put) -> None:
    put()
    assert care.loadable(catalog, store, DIGEST) == store.path(DIGEST)
    spoil(store.path(DIGEST), CONTENT[:-1])
    with pytest.raises(BlobCorrupt, match="repair"):
        care.loadable(catalog, store, DIGEST)
    assert catalog.resolve("gloss").corrupt
    with pytest.raises(BlobNotFound):
        care.loadable(catalog, store, digest_of(b"another"))


def test_the_sweep_takes_quarantined_files_whose_rows_are_gone_and_no_others(
    catalog: Catalog, store: BlobStore, put: Put
) -> None:
    put()
    care.condemn(catalog, store, DIGEST)
    store.sweep(catalog.referenced_digests(), 0)
    assert set(store.quarantined()) == {DIGEST}
    catalog.delete(parse_ref("gloss"))
    store.sweep(catalog.referenced_digests(), 0)
    assert store.quarantined() == {}


# --- when ---------------------------------------------------------------------------------------------------------


def test_those_read_longest_ago_have_their_turn_first(catalog: Catalog, put: Put) -> None:
    contents = [b"1", b"2", b"3"]
    for number, content in enumerate(contents):
        put(f"model{number}", content)
    catalog.mark_intact([digest_of(b"1")])
    assert [blob.digest for blob in catalog.blobs_to_verify(0, 10)] == [digest_of(c) for c in (b"2", b"3", b"1")]
    assert [blob.digest for blob in catalog.blobs_to_verify(0, 1)] == [digest_of(b"2")]
    assert catalog.blobs_to_verify(3600, 10) == []


# --- files elsewhere ----------------------------------------------------------------------------------------------


def test_a_file_adopted_where_it_is_is_the_blob_and_is_never_deleted(
    catalog: Catalog, store: BlobStore, put: Put, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    file = looks_of(mine)
    assert file is not None
    store.refer(DIGEST, file)
    put(outside=file)
    assert (store.path(DIGEST), store.size(DIGEST), store.has(DIGEST)) == (mine, len(CONTENT), True)
    assert care.verify(catalog, store, DIGEST) == (True, False)
    again = BlobStore(store.root, reserve_bytes=0)
    again.start()
    care.start(catalog, again)
    assert again.path(DIGEST) == mine
    assert again.total_bytes() == again.taken_bytes() == 0
    catalog.delete(parse_ref("gloss"))
    assert again.sweep(catalog.referenced_digests(), 0) == []
    again.discard(DIGEST)
    assert mine.read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["gone", "longer", "touched", "link"])
def test_an_adopted_file_that_looks_otherwise_is_refused_until_its_bytes_were_read(
    change: str, catalog: Catalog, store: BlobStore, put: Put, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    file = looks_of(mine)
    assert file is not None
    store.refer(DIGEST, file)
    put(outside=file)
    if change == "gone":
        mine.unlink()
    elif change == "longer":
        mine.write_bytes(CONTENT + b"!")
    elif change == "link":
        mine.rename(tmp_path / "other.gguf")
        mine.symlink_to(tmp_path / "other.gguf")
    else:
        os.utime(mine, ns=(0, 0))
    assert not store.has(DIGEST)
    with pytest.raises(BlobCorrupt, match="adopted"):
        care.loadable(catalog, store, DIGEST)
    intact, _ = care.verify(catalog, store, DIGEST)
    assert intact == (change == "touched")
    assert catalog.resolve("gloss").corrupt != intact
    assert store.has(DIGEST) == intact
    if intact:
        assert catalog.outside()[DIGEST].modified_ns == 0


def test_bytes_that_come_into_the_store_take_the_place_of_a_file_elsewhere(
    catalog: Catalog, store: BlobStore, put: Put, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    file = looks_of(mine)
    assert file is not None
    store.refer(DIGEST, file)
    put(outside=file)
    commit(store)
    assert store.path(DIGEST).parent == store.root
    mine.unlink()
    again = BlobStore(store.root, reserve_bytes=0)
    again.start()
    care.start(catalog, again)
    assert again.has(DIGEST)
    assert catalog.outside() == {}


def test_a_linked_file_keeps_its_mode_and_its_times_and_does_not_count(store: BlobStore, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    mine.chmod(0o640)
    os.utime(mine, ns=(10**18, 10**18))
    for _ in range(2):
        os.link(mine, store.incoming / "temp")
        store.commit(store.incoming / "temp", DIGEST, len(CONTENT), linked=True)
    store.open_upload(DIGEST, len(CONTENT)).abort()
    status = mine.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 10**18)
    assert store.path(DIGEST).samefile(mine)
    assert (store.total_bytes(), store.taken_bytes()) == (len(CONTENT), 0)


# --- quota --------------------------------------------------------------------------------------------------------


def test_a_quota_counts_what_is_stored_and_what_is_under_way(tmp_path: Path) -> None:
    transfers = 10
    store = BlobStore(tmp_path / "blobs", 0, quota_bytes=100, other_bytes=lambda: transfers)
    store.start()
    commit(store, b"x" * 50)
    (store.incoming / "job-1").write_bytes(b"x" * 20)
    assert (store.taken_bytes(), store.room_bytes()) == (80, 20)
    store.check_space(20)
    with pytest.raises(QuotaExceeded, match=r"quota is 100 bytes: 80 are taken, and 21 more"):
        store.check_space(21)
    assert issubclass(QuotaExceeded, DiskFull)
    store.set_aside(digest_of(b"x" * 50))
    assert store.taken_bytes() == 80


def test_an_upload_of_unknown_length_ends_where_the_quota_does(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 0, quota_bytes=1000)
    store.start()
    with store.open_upload(DIGEST) as upload:
        for _ in range(10):
            upload.write(b"x" * 100)
        with pytest.raises(QuotaExceeded):
            upload.write(b"x")
    assert list(store.incoming.iterdir()) == []
    with pytest.raises(QuotaExceeded):
        store.open_upload(DIGEST, 1001)
    content = b"y" * 1000
    with store.open_upload(digest_of(content), 1000) as upload:
        upload.write(content)
        upload.finish()
    with pytest.raises(DigestMismatch), store.open_upload(DIGEST) as upload:
        upload.finish()


def test_pieces_that_come_together_end_where_the_quota_does(tmp_path: Path) -> None:
    partials = Partials(tmp_path / "partial", 3600)
    store = BlobStore(tmp_path / "blobs", 0, quota_bytes=40_000, other_bytes=partials.total_bytes)
    store.start()
    partials.start()
    uploads = PiecewiseUploads(store, partials)
    pieces = [uploads.begin(digest_of(name), 30_000, 0, 30_000) for name in (b"one", b"two")]  # each fits alone
    try:
        with pytest.raises(QuotaExceeded):
            for _ in range(7):
                for piece in pieces:
                    piece.write(bytes(4096))
        assert store.taken_bytes() <= 40_000 + 4 * 4096  # blocks of the disk
    finally:
        for piece in pieces:
            piece.close()


# --- pins ---------------------------------------------------------------------------------------------------------


def test_a_pinned_variant_is_shown_so_everywhere_and_cannot_be_deleted(catalog: Catalog, put: Put) -> None:
    variant = put()
    put("other", b"other")
    assert not any(listed.pinned for listed in catalog.variants())
    assert catalog.pin(variant, True).pinned
    assert [listed.pinned for listed in catalog.variants()] == [True, False]
    assert catalog.resolve("gloss").pinned
    for name in ("gloss", "gloss:Q8_0"):
        with pytest.raises(Pinned, match="gloss:Q8_0"):
            catalog.delete(parse_ref(name))
    with pytest.raises(Pinned):
        catalog.delete_variant(variant)
    assert not catalog.pin(variant, False).pinned
    catalog.delete(parse_ref("gloss"))


def test_a_use_is_noted_for_every_name_of_a_blob(catalog: Catalog, put: Put) -> None:
    first = put()
    second = catalog.copy(first, parse_ref("second"))
    third = put("third", b"third")
    assert catalog.last_used() == {}
    catalog.note_use(DIGEST)
    assert catalog.last_used().keys() == {first.id, second.id}
    assert third.id not in catalog.last_used()
