"""Kills a real server at random moments of its work and starts it again on the same home, over and over.

    python -m tests.chaos.killed_server FOLDER KILLS SEED

Beside the store's invariants (as in `store_work.check`) those of processes: no child outlives it (I7), and the next one
is ready within seconds (I8). Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server import GLOSS, Server

READY_SECONDS = 20.0  # 5 on a machine of its own
GONE_SECONDS = 10.0
LEVELS = ("Q8_0", "Q4_0", "Q4_K_M")


class Trial:
    """A home through many lives. What a client was told is `acknowledged`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = Server(folder / "home", {"QUANTRY_BLOB_GRACE_SECONDS": "0"})
        self.acknowledged: dict[str, str] = {}  # blob or variant -> digest
        self.broken: list[Any] = []
        self.counts: Counter[str] = Counter()
        self._content = os.urandom(1 << 20)

    def live(self, number: int) -> None:
        """Start, look, work, die."""
        began = time.monotonic()
        self.server.start()
        if time.monotonic() - began > READY_SECONDS:
            self.broken.append(["I8", time.monotonic() - began])
        self.look()
        workers = [threading.Thread(target=self.work, args=(number, kind)) for kind in ("jobs", "uploads", "tags")]
        for worker in workers:
            worker.start()
        time.sleep(self.random.choice((0.1, 0.3, 1.0, 3.0, 6.0)) * self.random.random())
        family = [self.server.process, *self.server.process.children(recursive=True)]
        self.counts["children"] += len(family) - 1
        self.server.kill()
        for worker in workers:
            worker.join()
        _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
        self.broken += [["I7", process.pid] for process in alive if process.is_running()]

    def work(self, number: int, kind: str) -> None:
        """Ask for things until the server is gone; remember what it has acknowledged."""
        try:
            with httpx.Client(base_url=self.server.url, timeout=30) as client:
                while True:
                    self._ask(client, number, kind)
        except (httpx.TransportError, ValueError):
            return

    def _ask(self, client: httpx.Client, number: int, kind: str) -> None:
        pick = self.random
        if kind == "uploads":
            content = self._content[: pick.randrange(1, len(self._content))]
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            answer = client.put(f"/v1/blobs/{digest}", content=content)
            if answer.status_code == 201:
                self.counts["uploads"] += 1
                # With no grace the next sweep may take an upload that nothing is made of: only its row must not lie.
            return
        if kind == "tags":
            answer = client.post("/v1/models/copy", json={"source": "gloss:F16", "destination": "gloss:prod"})
            if answer.status_code in (200, 201):
                self.acknowledged["gloss:prod"] = answer.json()["digest"]
                self.counts["tags"] += 1
            time.sleep(0.01)
            return
        if "gloss:F16" not in self.acknowledged:
            self._note(client.post("/v1/models", json={"name": "gloss", "path": str(GLOSS)}))
            return
        level = pick.choice(LEVELS)
        if f"gloss:{level}" in self.acknowledged and pick.random() < 0.5:
            # From here on nobody may rely on it, whether the answer comes or not.
            digest = self.acknowledged.pop(f"gloss:{level}")
            answer = client.delete(f"/v1/variants/gloss:{level}")
            self.counts["deletes"] += answer.status_code == 200
            del digest
            return
        job = client.post("/v1/quantize", json={"model": "gloss:F16", "to": [level]}).json()
        while job.get("status") in ("queued", "running"):
            time.sleep(0.02)
            job = client.get(f"/v1/jobs/{job['id']}").json()
        if job.get("status") == "succeeded":
            self._note(client.get(f"/v1/variants/gloss:{level}"))
            self.counts["levels"] += 1

    def _note(self, answer: httpx.Response) -> None:
        if answer.status_code in (200, 201):
            shown = answer.json()
            self.acknowledged[shown["name"]] = shown["digest"]

    def look(self) -> None:
        """The invariants, through the interface and on disk."""
        home = self.server.home
        listed = {shown["name"]: shown["digest"] for shown in self.server.json("GET", "/v1/variants", 200)["data"]}
        for name, digest in self.acknowledged.items():
            shown = self.server.client.get(f"/v1/variants/{name}")
            if shown.status_code != 200 or shown.json()["digest"] != digest:
                self.broken.append(["I2", name, shown.text[:200]])
        for name in listed:
            verified = self.server.json("POST", f"/v1/variants/{name}/verify", 200)
            if not verified["intact"]:
                self.broken.append(["I1", name])
        connection = sqlite3.connect(f"file:{next(home.glob('*.db'))}?mode=ro", uri=True)
        try:
            if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                self.broken.append(["I6"])
            if connection.execute("PRAGMA foreign_key_check").fetchall():
                self.broken.append(["I6 keys"])
            worst = connection.execute("SELECT max(attempts) FROM jobs").fetchone()[0] or 0
            self.counts["attempts"] = max(self.counts["attempts"], worst)
        finally:
            connection.close()
        started_at = self.server.process.create_time()
        for path in (home / "blobs" / "incoming").iterdir():
            if path.stat().st_mtime < started_at - 1:
                self.broken.append(["I4", path.name])

    def end(self) -> None:
        """Everything that was queued comes to its end, and the sweep leaves nothing that nobody wants."""
        self.server.start()
        self.look()
        jobs = self.server.json("GET", "/v1/jobs?limit=100", 200)["data"]
        for job in jobs:
            ended = self.server.wait_for_job(job["id"])
            if ended["status"] not in ("succeeded", "failed", "cancelled"):
                self.broken.append(["I3", ended])
            if ended["status"] == "failed":
                self.counts[f"failed {ended['error']['code']}"] += 1
        self.server.stop()
        self.server.start()  # which sweeps at once
        time.sleep(1.0)
        connection = sqlite3.connect(f"file:{next(self.server.home.glob('*.db'))}?mode=ro", uri=True)
        wanted = {digest for (digest,) in connection.execute("SELECT digest FROM blobs")}
        connection.close()
        left = {f"sha256:{path.name[7:]}" for path in (self.server.home / "blobs").glob("sha256-*")}
        if left - wanted:
            self.broken.append(["I5", sorted(left - wanted)])
        self.server.close()


def main() -> int:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    began = time.monotonic()
    trial = Trial(folder, seed)
    try:
        for number in range(kills):
            trial.live(number)
        trial.end()
    finally:
        trial.server.close()
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"kills": kills, "seconds": seconds, "counts": trial.counts, "broken": trial.broken}))
    return 1 if trial.broken else 0


if __name__ == "__main__":
    sys.exit(main())
