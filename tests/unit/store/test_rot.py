"""Rotten bytes are found: by whoever brings them in, by whoever looks, and before anything is served from them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.domain.catalog import FileFacts, Lineage, ModelShape
from service.domain.errors import BlobCorrupt, DigestMismatch
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref
from service.gguf.files import read_header
from service.store import care
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from tests.databases import new_database

Rot = tuple[str, bytes | None]  # how, and what the file holds then; None: it is gone


def rots(whole: bytes, data_offset: int, seed: int = 1) -> Iterator[Rot]:
    """200 flipped bits (a third in the header), 50 truncations, 20 swaps, 10 empty files, 10 that are gone."""
    pick = random.Random(seed)
    for number in range(200):
        end = data_offset if number % 3 == 0 else len(whole)
        place, bit = pick.randrange(end), pick.randrange(8)
        yield f"bit {bit} of {place}", whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    for _ in range(50):
        yield "cut", whole[: pick.randrange(len(whole))]
    done = 0
    while done < 20:
        one, other = sorted(pick.sample(range(0, len(whole) - 64, 64), 2))
        swapped = whole[:one] + whole[other : other + 64] + whole[one + 64 : other] + whole[one : one + 64]
        swapped += whole[other + 64 :]
        if swapped != whole:
            done += 1
            yield f"swap {one} {other}", swapped
    for _ in range(10):
        yield "empty", b""
        yield "gone", None


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Path]) -> bytes:
    return tiny["bert"].read_bytes()[:64_000]  # the header and some data


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files are written; that they are on disk for good is shown elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def store(tmp_path: Path, whole: bytes) -> Iterator[tuple[Catalog, BlobStore, str]]:
    engine = new_database(tmp_path / "catalog.db")
    catalog, blobs = Catalog(engine), BlobStore(tmp_path / "blobs", reserve_bytes=0)
    blobs.start()
    digest = bring(blobs, whole)
    facts = FileFacts("F16", 1, 16.0, 1, ModelShape("bert"))
    catalog.add_variant(parse_ref("rotting"), MadeFile("", digest, len(whole), facts), Lineage("imported"))
    yield catalog, blobs, digest
    engine.dispose()


def bring(blobs: BlobStore, content: bytes, digest: str | None = None, *, replace: bool = False) -> str:
    digest = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
    with blobs.open_upload(digest, replace=replace) as upload:
        upload.write(content)
        upload.finish()
    return digest


def lay(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def test_every_rotten_file_is_refused_as_it_comes_in(tmp_path: Path, whole: bytes, tiny: dict[str, Path]) -> None:
    blobs = BlobStore(tmp_path / "blobs", reserve_bytes=0)
    blobs.start()
    digest = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    tried = 0
    for how, content in rots(whole, read_header(tiny["bert"]).data_offset):
        if content is not None:
            tried += 1
            with pytest.raises(DigestMismatch):
                bring(blobs, content, digest)
            assert not blobs.has(digest), how
    assert tried == 280
    assert os.listdir(blobs.incoming) == []


def test_every_rotten_blob_is_found_set_aside_and_mended(
    store: tuple[Catalog, BlobStore, str], whole: bytes, tiny: dict[str, Path]
) -> None:
    catalog, blobs, digest = store
    tried = 0
    for how, content in rots(whole, read_header(tiny["bert"]).data_offset, seed=2):
        tried += 1
        lay(blobs.path(digest), content)
        assert care.verify(catalog, blobs, digest) == (False, True), how
        assert catalog.resolve("rotting").corrupt, how
        assert not blobs.has(digest), "a rotten file lies where it would be served from"
        with pytest.raises(BlobCorrupt):
            care.loadable(catalog, blobs, digest)
        bring(blobs, whole, digest, replace=True)
        care.mended(catalog, blobs, digest)
        assert care.verify(catalog, blobs, digest) == (True, False), how
        assert care.loadable(catalog, blobs, digest) == blobs.path(digest)
    assert tried == 290


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: None], ids=["cut", "empty", "gone"]
)
def test_a_load_finds_what_its_length_gives_away(
    store: tuple[Catalog, BlobStore, str], whole: bytes, damage: Callable[[bytes], bytes | None]
) -> None:
    catalog, blobs, digest = store
    lay(blobs.path(digest), damage(whole))
    with pytest.raises(BlobCorrupt):
        care.loadable(catalog, blobs, digest)
    assert catalog.resolve("rotting").corrupt
