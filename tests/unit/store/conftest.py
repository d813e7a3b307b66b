"""A store in a temporary folder, and the small values that the tests of the store are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.domain.catalog import FileFacts, LevelPlan, ModelShape
from service.domain.jobs import MadeFile
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from tests.databases import new_database

Make = Callable[..., MadeFile]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database on disk, migrated."""
    engine = new_database(tmp_path / "catalog.db")
    yield engine
    engine.dispose()


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    """An empty catalogue."""
    return Catalog(engine)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """An empty, started blob store without a reserve."""
    store = BlobStore(tmp_path / "blobs", reserve_bytes=0)
    store.start()
    return store


@pytest.fixture
def make() -> Make:
    """make(content, quantization, plans): a made file of that content; its path is nowhere."""

    def _make(content: bytes, quantization: str = "Q8_0", plans: tuple[LevelPlan, ...] = ()) -> MadeFile:
        shape = ModelShape(architecture="llama", layers=2, vocabulary=100)
        facts = FileFacts(quantization, 1000, 4.5, 562, shape, types=(("F32", 3), ("Q8_0", 7)))
        return MadeFile("", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), facts, plans)

    return _make
