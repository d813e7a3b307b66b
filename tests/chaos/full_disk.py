"""A server whose home lies on a small file system that is filled to the brim at other moments of its work.

    unshare -rm sh -c 'mount -t tmpfs -o size=96m none FOLDER && exec python -m tests.chaos.full_disk FOLDER WORK N'

WORK is import, quantize, upload, commit or log, and N how many fillings are tried. The server takes the disk for an
empty one (`lying_server`): what it would refuse in advance gets as far as the system lets it. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.server import GLOSS, ROOT, Server

PAGE = 4096
UPLOAD = 3 << 20


class Filler:
    """Takes all space of the file system but so many bytes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def leave(self, free_bytes: int) -> None:
        self.release()
        status = os.statvfs(self._path.parent)
        size = status.f_bavail * status.f_frsize - free_bytes
        with self._path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(PAGE, size))

    def release(self) -> None:
        self._path.unlink(missing_ok=True)


class Trial:
    """One server, and one kind of work done over and over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filler = Filler(folder)
        self.outcomes: Counter[str] = Counter()
        self.broken: list[Any] = []
        settings = {"QUANTRY_DISK_RESERVE_BYTES": "0", "QUANTRY_LOG_LEVEL": "debug"}
        module = str(ROOT / "tests" / "chaos" / "lying_server.py")
        self.server = Server(folder / "home", settings, argv=(sys.executable, "-P", module, "serve")).start()
        self.renew()

    def renew(self) -> None:
        """Other bytes to upload: those before are in the store."""
        self.content = os.urandom(UPLOAD)
        self.digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def close(self) -> None:
        self.filler.release()
        self.server.close()

    def expect(self, holds: bool, what: str, *more: object) -> None:
        if not holds:
            self.broken.append([what, *map(str, more)])

    def try_at(self, free_bytes: int, work: Callable[[], str], undo: Callable[[], None]) -> None:
        """The work on a disk with so much room; then again, with all the room there is."""
        self.filler.leave(free_bytes)
        outcome = work()
        self.outcomes[outcome] += 1
        self.expect(outcome in ("done", "disk_full", "507"), "outcome", free_bytes, outcome)
        ready = self.server.client.get("/ready")
        self.expect(ready.status_code == 200, "ready", free_bytes, ready.text)
        listed = self.server.client.get("/v1/variants")
        self.expect(listed.status_code == 200, "list", free_bytes, listed.text[:200])
        self.expect_no_temps(free_bytes)
        self.filler.release()
        if outcome != "done":
            again = work()
            self.expect(again == "done", "again", free_bytes, again)
        undo()

    def expect_no_temps(self, free_bytes: int) -> None:
        deadline = time.monotonic() + 5
        incoming = self.folder / "home" / "blobs" / "incoming"
        while (left := [path.name for path in incoming.iterdir()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.expect(not left, "temps", free_bytes, left)

    # --- kinds of work: (what to do, how to undo it, the fillings)

    def job_outcome(self, answer: httpx.Response) -> str:
        if answer.status_code == 507:
            return "507"
        body = answer.json()
        if answer.status_code == 201:
            return "done"
        if answer.status_code not in (200, 202):
            return f"{answer.status_code} {body}"
        job = self.server.wait_for_job(body["id"])
        return "done" if job["status"] == "succeeded" else str((job["error"] or {}).get("code"))

    def import_(self) -> str:
        body = {"name": "full", "path": str(GLOSS)}
        return self.job_outcome(self.server.client.post("/v1/models", json=body))

    def quantize(self) -> str:
        body = {"model": "gloss:F16", "to": ["Q8_0", "Q4_0"]}
        return self.job_outcome(self.server.client.post("/v1/quantize", json=body))

    def upload(self) -> str:
        def chunks():
            for start in range(0, UPLOAD, 1 << 18):
                yield self.content[start : start + (1 << 18)]

        try:
            answer = self.server.client.put(f"/v1/blobs/{self.digest}", content=chunks())
        except httpx.TransportError as error:
            return type(error).__name__
        return "done" if answer.status_code in (200, 201) else str(answer.status_code)

    def commit(self) -> str:
        body = {"source": "gloss:F16", "destination": f"gloss:tag-{time.monotonic_ns()}"}
        answer = self.server.client.post("/v1/models/copy", json=body)
        return "done" if answer.status_code in (200, 201) else str(answer.status_code)

    def forget(self, name: str) -> None:
        answer = self.server.client.delete(name)
        self.expect(answer.status_code in (200, 204, 404), "undo", name, answer.text)


def run(folder: Path, kind: str, count: int) -> dict[str, Any]:
    began = time.monotonic()
    trial = Trial(folder)
    try:
        if kind != "import":
            trial.server.add_gloss()
        room = {"import": GLOSS.stat().st_size, "quantize": 9 << 20, "upload": UPLOAD, "commit": 48 << 10, "log": 0}
        work = {"import": trial.import_, "quantize": trial.quantize, "upload": trial.upload}.get(kind, trial.commit)

        def undo() -> None:
            if kind == "import":
                trial.forget("/v1/models/full")
            elif kind == "quantize":
                trial.forget("/v1/variants/gloss:Q8_0")
                trial.forget("/v1/variants/gloss:Q4_0")
            elif kind == "upload":
                trial.renew()

        # From nothing to a little more than it takes, and the first pages one by one: that is where the database is.
        edges = [n * PAGE for n in range(count // 4)]
        rest = count - len(edges)
        fillings = [*edges, *(room[kind] * 11 * n // 10 // rest for n in range(1, rest + 1))]
        for free_bytes in fillings:
            trial.try_at(free_bytes // PAGE * PAGE, work, undo)
        integrity = trial.server.client.get("/ready").status_code
    finally:
        trial.close()
    return {
        "outcomes": trial.outcomes,
        "fillings": len(fillings),
        "broken": trial.broken,
        "ready": integrity,
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
