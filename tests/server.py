"""A real quantry server in a process of its own, for tests: start, kill, start again on the same home, ask."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"
KEY = "a-key-of-at-least-sixteen-characters"
START_SECONDS = 120.0
WAIT_SECONDS = 60.0
SERVE = (sys.executable, "-P", "-m", "service", "serve")


def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Return once it holds, fail after `seconds`.

    For what happens in another process. What is seen of it at one place (a process has gone) may not yet be known at
    another (the server shows no worker): wait for both.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)


def within(seconds: float, condition: Callable[[], object]) -> bool:
    """Whether it holds before `seconds` are over; it is waited for in any case.

    For promises that name a time, on machines that may be busy with something else for that long: try several times,
    and one of them must be in time.
    """
    started = time.monotonic()
    until(condition)
    return time.monotonic() - started < seconds


def free_port() -> int:
    """A port to listen on that nobody else gets by chance: the system gives it to no client and no port 0."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        lowest = 32768
    while True:
        port = random.randrange(min(20_000, lowest - 2000), lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def children(process: psutil.Process, module: str) -> list[psutil.Process]:
    """Those that run a module of ours, at any depth, but for those that end this moment."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return found


def has_gone(process: psutil.Process) -> bool:
    """Whether it has ended. One whose parent was killed may stay as a zombie, where nobody collects orphans."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stocked(home: Path, stock: Path) -> Path:
    """A new home that holds what another one does. A server would take most of a second to take a model in."""
    shutil.copytree(stock, home)
    return home


class Server:
    """`python -m service serve` with a home of its own; can be killed and started again on the same home."""

    def __init__(self, home: Path, settings: dict[str, str], argv: tuple[str, ...] = SERVE) -> None:
        self.home = home
        self._settings = settings
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(timeout=60)

    @property
    def url(self) -> str:
        return str(self._description()["url"])

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Server:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
        settings = {
            "QUANTRY_HOME": str(self.home),
            "QUANTRY_PORT": "0",
            "QUANTRY_DISK_RESERVE_BYTES": str(64 << 20),
            "QUANTRY_IMPORT_WAIT_SECONDS": "60",
            "QUANTRY_LOG_LEVEL": "debug",
            "QUANTRY_PULL_HOSTS": "nothing.invalid",  # tests that pull say from where
        }
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "test-server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env={**clean, "PYTHONPATH": str(ROOT), **settings, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        self.client.base_url = httpx.URL(self.url)
        return self

    def kill(self) -> None:
        """As a power cut would, for the process: SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def close(self) -> None:
        self.client.close()
        if self.is_running:
            self.stop()

    def log(self) -> str:
        return (self.home / "test-server.log").read_text(errors="replace")[-4000:]

    def json(self, method: str, path: str, status: int, body: object = None) -> Any:
        """Send a request and check its status; the decoded answer."""
        answer = self.client.request(method, path, json=body) if body is not None else self.client.request(method, path)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def add_gloss(self, name: str = "gloss") -> Any:
        return self.json("POST", "/v1/models", 201, {"name": name, "path": str(GLOSS)})

    def quantize(self, *levels: str, model: str = "gloss:F16") -> Any:
        """Make levels and wait for the job to end; the job."""
        answer = self.client.post("/v1/quantize", json={"model": model, "to": list(levels)})
        assert answer.status_code in (200, 202), answer.text
        return self.wait_for_job(answer.json()["id"])

    def wait_for_job(self, job_id: str, until: Callable[[Any], bool] | None = None) -> Any:
        ended = until or (lambda job: job["status"] not in ("queued", "running"))
        started = time.monotonic()
        while True:
            job = self.json("GET", f"/v1/jobs/{job_id}", 200)
            if ended(job):
                return job
            waited = time.monotonic() - started
            assert waited < 100, job
            time.sleep(min(0.1, 0.01 + waited / 20))  # who asks all the time takes the time of what is waited for

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return children(self.process, "service.workers.worker")

    def loaded(self) -> list[str]:
        """The names of the variants that it says are in memory."""
        return [worker["name"] for worker in self.json("GET", "/v1/workers", 200)["data"] if worker["pid"]]

    def active(self, name: str | None = None) -> int:
        """Requests that run, in all workers or in one."""
        rows = self.json("GET", "/v1/workers", 200)["data"]
        return sum(row["active_requests"] for row in rows if name is None or row["name"] == name)

    def names(self) -> list[str]:
        return [variant["name"] for variant in self.json("GET", "/v1/variants", 200)["data"]]

    def empty(self) -> None:
        """Have nothing stored, running or loaded, as at the first start but for the list of jobs."""
        for job in self.json("GET", "/v1/jobs", 200)["data"]:
            if job["status"] in ("queued", "running"):
                self.client.delete(f"/v1/jobs/{job['id']}")
                self.wait_for_job(job["id"])
        for variant in self.json("GET", "/v1/variants", 200)["data"]:
            self.client.delete(f"/v1/variants/{variant['name']}/pin")
        for model in {variant["model"] for variant in self.json("GET", "/v1/variants", 200)["data"]}:
            self.client.delete(f"/v1/models/{model}/desired")
            self.json("DELETE", f"/v1/models/{model}", 200)
        until(lambda: not self.workers() and not self.loaded())
        datasets = {entry["digest"].replace(":", "-") for entry in self.json("GET", "/v1/datasets", 200)["data"]}
        for path in (self.home / "blobs").rglob("sha256-*"):  # as the sweep would, an hour later
            if path.is_file() and path.name not in datasets:
                path.unlink()

    def _description(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.home / "server.json").read_text())
        return value

    def _answers(self) -> bool:
        try:
            description = self._description()
            assert self._process is not None
            return bool(
                description["pid"] == self._process.pid
                and self.client.get(f"{description['url']}/ready").status_code == 200
            )
        except (OSError, ValueError, httpx.TransportError):
            return False


MakeServer = Callable[..., Server]
