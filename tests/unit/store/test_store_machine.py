"""Whatever is done to the store in whatever order, and wherever it crashes, its invariants hold.

I1 every name resolves to a blob with its digest; I2 nothing acknowledged is lost; I4 no temp file outlives a start;
I5 orphans live only until the next sweep; I6 the database is sound.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.domain.catalog import FileFacts, Lineage, ModelShape
from service.domain.errors import BlobCorrupt, DigestMismatch, ModelNotFound, NameTaken, Pinned
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref
from service.store import care
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import open_database, read
from tests.databases import new_database

MODELS = st.sampled_from(["gloss", "people/gloss", "other"])
FLAVOURS = st.sampled_from(["", "instruct"])
LABELS = st.sampled_from(["F16", "Q8_0", "Q4_K_M"])
WORDS = st.sampled_from(["latest", "prod", "v1"])
CONTENTS = st.integers(0, 5).map(lambda i: f"content {i}".encode())

Key = tuple[str, str, str]  # model, flavour, label


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _name(key: Key) -> str:
    model, flavour, label = key
    return f"{model}:{flavour}-{label}" if flavour else f"{model}:{label}"


class StoreMachine(RuleBasedStateMachine):
    """The store beside two dictionaries that say what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="store"))
        self.variants: dict[Key, str] = {}
        self.tags: dict[tuple[str, str], Key] = {}
        self.uploads: set[str] = set()
        self.pinned: set[Key] = set()
        self.damaged: set[str] = set()  # and found out
        self.back: set[str] = set()  # damaged, and whole again without anyone having looked
        new_database(self.home / "catalog.db").dispose()
        self._open()

    def _open(self) -> None:
        self.engine = open_database(f"sqlite:///{self.home / 'catalog.db'}")
        self.catalog = Catalog(self.engine)
        self.blobs = BlobStore(self.home / "blobs", reserve_bytes=0)
        self.blobs.start()
        care.start(self.catalog, self.blobs)

    def teardown(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.home)

    def _write_temp(self, content: bytes) -> Path:
        temp = self.blobs.incoming / "job"
        temp.write_bytes(content)
        return temp

    # --- what a server does ---

    @rule(model=MODELS, flavour=FLAVOURS, label=LABELS, content=CONTENTS)
    def import_or_quantize(self, model: str, flavour: str, label: str, content: bytes) -> None:
        key, digest = (model, flavour, label), _digest(content)
        facts = FileFacts(label, 1, 4.5, 1, ModelShape("llama"))
        self.blobs.commit(self._write_temp(content), digest, len(content), replace=digest in self.damaged)
        if digest in self.damaged:
            care.mended(self.catalog, self.blobs, digest)
            self.damaged.remove(digest)
        made = MadeFile("", digest, len(content), facts)
        if self.variants.get(key, digest) != digest:
            with pytest.raises(NameTaken):
                self.catalog.add_variant(parse_ref(_name(key)), made, Lineage("imported"))
            return
        self.catalog.add_variant(parse_ref(_name(key)), made, Lineage("imported"))
        self.variants[key] = digest

    @rule(content=CONTENTS, cut=st.integers(0, 9))
    def upload(self, content: bytes, cut: int) -> None:
        damaged = _digest(content) in self.damaged
        with self.blobs.open_upload(_digest(content), len(content), replace=damaged) as upload:
            upload.write(content[:cut])
            upload.write(content[cut:])
            upload.finish()
        self.catalog.add_blob(_digest(content), len(content))
        if damaged:
            care.mended(self.catalog, self.blobs, _digest(content))
            self.damaged.remove(_digest(content))
        self.uploads.add(_digest(content))

    @rule(content=CONTENTS)
    def upload_other_bytes(self, content: bytes) -> None:
        upload = self.blobs.open_upload(_digest(content))
        upload.write(content[::-1])
        with pytest.raises(DigestMismatch):
            upload.finish()

    @precondition(lambda self: self.variants)
    @rule(data=st.data(), word=WORDS)
    def tag(self, data: st.DataObject, word: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.variants)))
        self.catalog.copy(self.catalog.resolve(_name(key)), parse_ref(f"{key[0]}:{word}"))
        self.tags[key[0], word] = key

    @precondition(lambda self: self.variants)
    @rule(data=st.data(), model=MODELS, flavour=FLAVOURS)
    def copy(self, data: st.DataObject, model: str, flavour: str) -> None:
        source = data.draw(st.sampled_from(sorted(self.variants)))
        target = (model, flavour, source[2])
        variant = self.catalog.resolve(_name(source))
        if self.variants.get(target, variant.digest) != variant.digest:
            with pytest.raises(NameTaken):
                self.catalog.copy(variant, parse_ref(_name(target)))
            return
        self.catalog.copy(variant, parse_ref(_name(target)))
        self.variants[target] = variant.digest

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def delete_tag(self, data: st.DataObject) -> None:
        model, word = data.draw(st.sampled_from(sorted(self.tags)))
        assert self.catalog.delete(parse_ref(f"{model}:{word}")) == []
        del self.tags[model, word]

    @precondition(lambda self: self.variants)
    @rule(data=st.data(), whole_model=st.booleans())
    def delete(self, data: st.DataObject, whole_model: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.variants)))
        gone = {k for k in self.variants if k == key or (whole_model and k[0] == key[0])}
        if gone & self.pinned:
            with pytest.raises(Pinned):
                self.catalog.delete(parse_ref(key[0] if whole_model else _name(key)))
            return
        removed = self.catalog.delete(parse_ref(key[0] if whole_model else _name(key)))
        assert {v.name for v in removed} == {_name(k) for k in gone}
        digests = {self.variants.pop(k) for k in gone}
        self.tags = {tag: k for tag, k in self.tags.items() if k not in gone}
        self.uploads -= digests - set(self.variants.values())
        self.damaged &= self.uploads | set(self.variants.values())

    @precondition(lambda self: self.variants)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.variants)))
        self.catalog.pin(self.catalog.resolve(_name(key)), pinned)
        self.pinned = self.pinned | {key} if pinned else self.pinned - {key}

    # --- how it rots, and is looked after ---

    @precondition(lambda self: self.variants)
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "empty", "delete"]))
    def rot(self, data: st.DataObject, how: str) -> None:
        digest = data.draw(st.sampled_from(sorted(set(self.variants.values()))))
        if digest in self.damaged:
            return
        path = self.blobs.path(digest)
        whole = path.read_bytes()
        path.unlink()
        if how != "delete":
            path.write_bytes({"flip": whole[:-1] + b"!", "cut": whole[:-1], "empty": b""}[how])
        variant = next(v for v in self.catalog.variants() if v.digest == digest)
        if how != "flip":  # a look at the length is enough
            with pytest.raises(BlobCorrupt):
                care.loadable(self.catalog, self.blobs, digest)
        care.verify(self.catalog, self.blobs, digest)
        self.damaged.add(digest)
        with pytest.raises(BlobCorrupt):
            care.loadable(self.catalog, self.blobs, variant.digest)

    @precondition(lambda self: self.variants)
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(set(self.variants.values()))))
        is_back = digest in self.back
        if is_back:
            self.damaged.discard(digest)
            self.back.discard(digest)
        assert care.verify(self.catalog, self.blobs, digest) == (digest not in self.damaged, is_back)

    @rule(content=CONTENTS, busy=st.booleans())
    def sweep(self, content: bytes, busy: bool) -> None:
        used_by_a_job = frozenset({_digest(content)} if busy else ())
        before = {d for d in map(_digest, (f"content {i}".encode() for i in range(6))) if self.blobs.has(d)}
        keep = self.catalog.referenced_digests() | used_by_a_job
        assert set(self.blobs.sweep(keep, grace_seconds=0)) == before - keep
        assert all(self.blobs.has(digest) == (digest in before & keep) for digest in before)

    @rule()
    def forget_unused(self) -> None:
        unused = self.uploads - set(self.variants.values())
        assert set(self.catalog.forget_unused(frozenset(), grace_seconds=0)) == unused
        self.uploads.clear()
        self.damaged &= set(self.variants.values())

    # --- how it crashes: the process goes, at some step, and another comes ---

    @rule(content=CONTENTS)
    def crash_with_a_temp_file(self, content: bytes) -> None:
        self._write_temp(content)
        upload = self.blobs.open_upload(_digest(content))
        upload.write(content[:4])
        upload._close()  # as the kernel does for a killed process
        self._crash()

    @rule(content=CONTENTS)
    def crash_between_blob_and_row(self, content: bytes) -> None:
        self.blobs.commit(self._write_temp(content), _digest(content), len(content))
        self.back |= {_digest(content)} & self.damaged
        self._crash()

    @rule()
    def crash_in_a_transaction(self) -> None:
        connection = self.engine.connect().execution_options(quantry_writes=True)
        connection.begin()
        connection.exec_driver_sql("DELETE FROM tags")
        connection.exec_driver_sql("DELETE FROM variants")
        connection.invalidate()
        connection.close()
        self._crash()

    def _crash(self) -> None:
        self.engine.dispose()
        self._open()
        assert list(self.blobs.incoming.iterdir()) == []  # I4

    # --- what always holds ---

    @invariant()
    def names_and_bytes_are_as_acknowledged(self) -> None:
        self.back &= self.damaged
        listed = self.catalog.variants()
        assert {v.name: v.digest for v in listed} == {_name(key): digest for key, digest in self.variants.items()}
        found = {(v.model.display, tag): v.name for v in listed for tag in v.tags}
        assert found == {tag: _name(key) for tag, key in self.tags.items()}
        for variant in listed:
            assert variant.corrupt == (variant.digest in self.damaged)
            assert variant.corrupt or self.blobs.verify(variant.digest)
            assert self.catalog.resolve(variant.name) == variant
        assert {v.name for v in listed if v.pinned} == {_name(key) for key in self.pinned}
        for (model, word), key in self.tags.items():
            assert self.catalog.resolve(f"{model}:{word}").name == _name(key)
        for variant_id, names in self.catalog.aliases_of(listed).items():
            assert all(self.catalog.resolve(name).id == variant_id for name in names)
        assert self.catalog.referenced_digests() == set(self.variants.values()) | self.uploads
        assert all(self.blobs.has(digest) for digest in self.uploads - self.damaged)

    @invariant()
    def an_empty_model_is_not_found(self) -> None:
        for model in {"gloss", "people/gloss", "other"} - {key[0] for key in self.variants}:
            with pytest.raises(ModelNotFound):
                self.catalog.resolve(model)

    @invariant()
    def the_database_is_sound(self) -> None:
        with read(self.engine) as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_the_invariants_hold_in_hundreds_of_days() -> None:
    at_length = settings(
        max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(StoreMachine, settings=at_length)
