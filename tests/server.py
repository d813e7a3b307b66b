"""A real quantry server in a process of its own, for tests: start, kill, start again on the same home, ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"
START_SECONDS = 60.0
SERVE = (sys.executable, "-P", "-m", "service", "serve")


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
        if self._process is not None and self._process.poll() is None:
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
        deadline = time.monotonic() + 100
        while True:
            job = self.json("GET", f"/v1/jobs/{job_id}", 200)
            if ended(job):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.02)

    def names(self) -> list[str]:
        return [variant["name"] for variant in self.json("GET", "/v1/variants", 200)["data"]]

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
