"""A server as a background process: started with its log in the home, waited for, and ended again.

Knows processes and files; what the server does is none of its business.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

import service
from service.cli.client import is_local
from service.cli.failures import CommandFailed
from service.cli.session import SERVER_FILE, RunningServer, running_server
from service.settings import Settings

READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_ASK_SECONDS = 2.0
_LOG_LINES = 5
_KEPT_LOG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Started:
    """A server that was started here."""

    process: subprocess.Popen[bytes]
    url: str


def answers(url: str) -> bool:
    """Whether a quantry server is at `url`: asked without a key, of a route that needs none."""
    try:
        response = httpx.get(f"{url}/ready", timeout=_ASK_SECONDS, trust_env=not is_local(url))
        if response.status_code == 503:
            return bool(response.json()["error"]["code"] == "shutting_down")
        return response.status_code == 200 and response.json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def live_server(home: Path) -> RunningServer | None:
    """The server that works on this home, if its process is alive and is one of ours."""
    found = running_server(home)
    return found if found is not None and is_server_process(found.pid) else None


def is_server_process(pid: int) -> bool:
    """Whether a process is a quantry server: a process id in a file may have been given to another program since."""
    try:
        line = psutil.Process(pid).cmdline()
    except (psutil.Error, ValueError):
        return False
    return "serve" in line and any(word == "service" or Path(word).name == "quantry" for word in line)


def check_home(home: Path) -> None:
    """Make the folder that a server would work on. Raises CommandFailed when it cannot be made or written to."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(home, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CommandFailed(
            "home_unusable",
            f"The home '{home}' cannot be used: {error.strerror}.",
            remedy="set QUANTRY_HOME to a folder of yours, or one that can be made",
        ) from None


def check_port(settings: Settings) -> None:
    """Raise CommandFailed when something else has the port that a server would bind."""
    if settings.port == 0:
        return
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, settings.port))
        except OSError as error:
            raise _port_taken(settings, error) from None


def log_path(home: Path) -> Path:
    """Where a background server logs."""
    return home / "logs" / "server.log"


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """Start `quantry serve` in a session of its own, so that Ctrl-C here does not reach it."""
    check_port(settings)
    path = log_path(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > _KEPT_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    # The child finds this very package, wherever it is started from and whether or not it is installed.
    package_root = str(Path(service.__file__).resolve().parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH")))),
        "QUANTRY_HOME": str(settings.home),
        "QUANTRY_PORT": str(settings.port),
    }
    with path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
            cwd=settings.home,
        )


def wait_until_ready(process: subprocess.Popen[bytes], home: Path, seconds: float = READY_SECONDS) -> Started:
    """The server once it answers. Raises CommandFailed with the end of its log when it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _did_not_start(home, f"ended with status {process.returncode}")
        found = running_server(home)
        if found is not None and found.pid == process.pid and answers(found.url):
            return Started(process, found.url)
        time.sleep(_POLL_SECONDS)
    process.terminate()
    raise _did_not_start(home, f"was not ready after {seconds:.0f} s")


def end(pid: int, seconds: float) -> bool:
    """Ask a process to end and wait; False when it still runs after `seconds`."""
    try:
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        process.wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def forget(home: Path) -> None:
    """Remove what a server that was killed left behind."""
    (home / SERVER_FILE).unlink(missing_ok=True)


def _port_taken(settings: Settings, error: OSError) -> CommandFailed:
    url = f"http://{settings.host}:{settings.port}"
    if error.errno != errno.EADDRINUSE:
        what = f"cannot be used: {error.strerror}"
    elif answers(url):
        what = "is taken by another quantry server"
    else:
        what = "is taken by another program"
    return CommandFailed(
        "port_taken", f"Port {settings.port} of {settings.host} {what}.", remedy="set QUANTRY_PORT to a free port"
    )


def _did_not_start(home: Path, what: str) -> CommandFailed:
    try:
        with log_path(home).open(errors="replace") as file:
            lines = [line.strip() for line in deque(file, maxlen=_LOG_LINES)]
    except OSError:
        lines = []
    return CommandFailed(
        "not_started",
        "\n".join([f"The server {what}. The end of its log:", *(f"  {line[:400]}" for line in lines)]),
        remedy=f"the whole log is {log_path(home)}; `quantry doctor` checks this machine",
    )
