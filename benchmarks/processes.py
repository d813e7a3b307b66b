"""Child processes of a benchmark: started in groups of their own, always ended, and weighed together.

Nothing here knows what the processes are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_MIB = 1 << 20


class StartFailed(Exception):
    """A process did not come up; the message has the end of its log."""


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended, with all that it started, when the block is left."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - the runner has one thread
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a wait, then SIGKILL for whatever of its tree is left."""
    family = _family(process.pid)
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
    finally:  # a second Ctrl-C ends the wait, not the cleaning up
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(STOP_SECONDS)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_seconds: float) -> None:
    """Return when `ready` does; raises StartFailed when the process ends first or the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if process.poll() is not None:
            raise StartFailed(f"it ended with status {process.returncode}: {tail(log)}")
        if time.monotonic() > deadline:
            raise StartFailed(f"it was not ready after {timeout_seconds:.0f} s: {tail(log)}")
        time.sleep(_POLL_SECONDS)


def answers(url: str) -> bool:
    """Whether a GET gives status 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path) -> str:
    """The last lines of a log, in one."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-4:])[-600:]


def free_port() -> int:
    """A TCP port that was free a moment ago; for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory_mib(process: subprocess.Popen[bytes]) -> float:
    """Proportional set size of a process and all its children: pages that several share count once.

    Where the system does not say (macOS), the sum of unique set sizes.
    """
    total = 0
    for member in _family(process.pid):
        with suppress(psutil.NoSuchProcess):
            memory = member.memory_full_info()
            total += getattr(memory, "pss", 0) or memory.uss
    return total / _MIB


@contextmanager
def busy_core(nice: int) -> Iterator[None]:
    """A process that computes without end on one core, at this niceness."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    setup = "import os\n" + (f"os.sched_setaffinity(0, [{core}])\n" if core is not None else "")
    code = setup + f"os.nice({nice})\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100000))\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child, before it becomes the server: even SIGKILL for the runner leaves nothing behind (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
