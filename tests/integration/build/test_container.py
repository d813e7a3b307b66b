"""What happens inside the container, run outside of it: the entrypoint and the health check."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"
KEY = "0123456789abcdef"


@contextmanager
def server(status: int) -> Iterator[int]:
    """An HTTP server on a free loopback port that answers every GET with `status`; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield httpd.server_port
    finally:
        httpd.shutdown()
        thread.join(10)
        httpd.server_close()


class Container:
    """A folder that looks like the image: a `quantry` that writes down how it was called, and a home."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "data"
        self.home.mkdir()
        self.calls = folder / "calls"
        self.calls.touch()
        programs = folder / "bin"
        programs.mkdir()
        quantry = programs / "quantry"
        quantry.write_text(
            "#!/bin/sh\n"
            f'echo "$* demo=${{QUANTRY_DEMO-unset}}" >>{self.calls}\n'
            '[ "$1" != serve ] || sleep "${TEST_SERVE_SECONDS:-0}"\n'
        )
        quantry.chmod(0o755)
        (programs / "python").symlink_to(sys.executable)
        self.environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "QUANTRY_HOME": str(self.home),
            "QUANTRY_HOST": "0.0.0.0",
            "QUANTRY_API_KEYS": KEY,
        }

    def start(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ENTRYPOINT, *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_a_server_that_others_can_reach_does_not_start_without_a_key(container: Container) -> None:
    done = container.start("serve", QUANTRY_API_KEYS="")
    assert done.returncode == 1
    assert "QUANTRY_API_KEYS" in done.stderr
    assert container.calls.read_text() == ""


def test_a_volume_that_cannot_be_written_is_named_with_its_remedy(container: Container) -> None:
    done = container.start("serve", QUANTRY_HOME="/no/such/volume")
    assert done.returncode == 1
    assert "chown" in done.stderr


def test_the_server_is_started_and_never_sees_the_containers_own_variables(container: Container) -> None:
    assert container.start("serve", QUANTRY_DEMO="0").returncode == 0
    assert container.calls.read_text() == "serve demo=unset\n"


def test_any_other_command_runs_instead_of_the_server(container: Container) -> None:
    assert container.start("list", "--json", QUANTRY_API_KEYS="").returncode == 0
    assert container.calls.read_text() == "list --json demo=unset\n"


def test_the_demo_models_are_imported_once_into_the_running_server(container: Container) -> None:
    mark = container.home / ".demo-imported"
    with server(200) as port:
        environ = {"QUANTRY_DEMO": "1", "QUANTRY_PORT": str(port)}
        container.start("serve", TEST_SERVE_SECONDS="1", **environ)
        deadline = time.monotonic() + 20
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        container.start("serve", **environ)
    calls = container.calls.read_text().splitlines()
    assert calls.count(f"demo --no-serve --url http://127.0.0.1:{port} demo=unset") == 1
    assert mark.exists()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_follows_the_servers_answer(status: int, code: int) -> None:
    with server(status) as port:
        done = subprocess.run([sys.executable, HEALTHCHECK], env={"QUANTRY_PORT": str(port)}, timeout=30, check=False)
    assert done.returncode == code


def test_the_health_check_fails_where_nothing_listens() -> None:
    with server(200) as port:
        pass
    done = subprocess.run([sys.executable, HEALTHCHECK], env={"QUANTRY_PORT": str(port)}, timeout=30, check=False)
    assert done.returncode == 1
