"""Does the store's work in a forked child that is killed at its n-th step, for every n, and checks what is left.

Run by test_kill.py in a process of its own: `python kill_at.py FOLDER`. Prints how many steps there were.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

from sqlalchemy import Engine, event

from service.domain.catalog import FileFacts, Lineage, ModelShape
from service.domain.errors import NotFound
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import open_database, read

SOURCE, LEVEL, UPLOAD = b"the source", b"a level", b"an upload"
MOST_STEPS = 1000


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def open_store(home: Path) -> tuple[Engine, Catalog, BlobStore]:
    home.mkdir(exist_ok=True)
    engine = open_database(f"sqlite:///{home / 'catalog.db'}")
    blobs = BlobStore(home / "blobs", reserve_bytes=0)
    blobs.start()
    return engine, Catalog(engine), blobs


def add(catalog: Catalog, blobs: BlobStore, name: str, content: bytes, label: str) -> None:
    temp = blobs.incoming / "job"
    temp.write_bytes(content)
    blobs.commit(temp, digest_of(content), len(content))
    made = MadeFile(str(temp), digest_of(content), len(content), FileFacts(label, 1, 16.0, 1, ModelShape("llama")))
    catalog.add_variant(parse_ref(name), made, Lineage("imported"))


def work(catalog: Catalog, blobs: BlobStore, acknowledge: int) -> None:
    """What a server does in a day; a letter is written to `acknowledge` before a deletion and after all else."""
    add(catalog, blobs, "gloss", SOURCE, "F16")
    os.write(acknowledge, b"s")
    add(catalog, blobs, "gloss", LEVEL, "Q4_K_M")
    os.write(acknowledge, b"l")
    catalog.copy(catalog.resolve("gloss:f16"), parse_ref("gloss:latest"))
    os.write(acknowledge, b"t")
    with blobs.open_upload(digest_of(UPLOAD), len(UPLOAD)) as upload:
        upload.write(UPLOAD)
        upload.finish()
    catalog.add_blob(digest_of(UPLOAD), len(UPLOAD))
    os.write(acknowledge, b"u")
    os.write(acknowledge, b"d")
    catalog.delete(parse_ref("gloss:q4_k"))
    blobs.sweep(catalog.referenced_digests(), grace_seconds=0)
    os.write(acknowledge, b"e")


def kill_at(step: int, engine: Engine) -> None:
    """From now on, end this process by SIGKILL just before its `step`-th call to the disk or the database."""
    left = [step]

    def tick(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(call):
        def wrapped(*args, **kwargs):
            tick()
            return call(*args, **kwargs)

        return wrapped

    for name in ("open", "write", "fsync", "fchmod", "rename", "unlink", "utime"):
        setattr(os, name, ticking(getattr(os, name)))
    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(engine, name, tick)


def run_killed(home: Path, step: int) -> tuple[str, bool]:
    """(what was acknowledged, whether the work came to its end) of a child that is killed at `step`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine, catalog, blobs = open_store(home)
            kill_at(step, engine)
            work(catalog, blobs, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as acknowledged:
        said = acknowledged.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return said, status == 0


def check(home: Path, said: str) -> None:
    """The invariants, in a server that starts on what the killed one has left."""
    engine, catalog, blobs = open_store(home)
    assert list(blobs.incoming.iterdir()) == [], "I4: a temp file outlived the start"
    for variant in catalog.variants():
        assert blobs.verify(variant.digest), f"I1: {variant.name}"
    if "s" in said:
        assert catalog.resolve("gloss:F16").digest == digest_of(SOURCE), "I2"
    if "l" in said and "d" not in said:
        assert catalog.resolve("gloss:q4_k").digest == digest_of(LEVEL), "I2"
    if "t" in said:
        assert catalog.resolve("gloss").quantization == "F16", "I2"
    if "u" in said:
        assert blobs.verify(digest_of(UPLOAD)), "I2"
        assert digest_of(UPLOAD) in catalog.referenced_digests(), "I2"
    if "e" in said:
        try:
            raise AssertionError(f"deleted and still there: {catalog.resolve('gloss:q4_k').name}")
        except NotFound:
            pass
    referenced = catalog.referenced_digests()
    blobs.sweep(referenced, grace_seconds=0)
    assert {f"sha256:{path.name[7:]}" for path in blobs.root.glob("sha256-*")} == referenced, "I5"
    with read(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok", "I6"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == [], "I6"
    with open(os.devnull, "wb") as nowhere:
        work(catalog, blobs, nowhere.fileno())
    assert blobs.verify(catalog.resolve("gloss").digest), "the work can be done again"
    engine.dispose()


def main(folder: Path) -> None:
    open_store(folder / "fresh")[0].dispose()
    for step in range(MOST_STEPS):
        home = folder / "home"
        shutil.copytree(folder / "fresh", home)
        said, ended = run_killed(home, step)
        check(home, said)
        shutil.rmtree(home)
        if ended:
            print(step)
            return
    raise AssertionError("the work never came to its end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
