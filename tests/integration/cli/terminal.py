"""The command as a person runs it: a process of its own against a real server, on a terminal or in a pipe."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
SECONDS = 180.0  # of a machine that does other things too
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def argv(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "service", *arguments]


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
    return {**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **settings}


def quantry(url: str, *arguments: str, text: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a pipe; `text` goes to its standard input."""
    return subprocess.run(
        argv(*arguments), env=environment(QUANTRY_URL=url, **settings), capture_output=True, text=True,
        input=text if text is not None else "", timeout=SECONDS, check=False,
    )  # fmt: skip


class Terminal:
    """A command on a terminal of 80 columns: what it shows is read, what is typed is written."""

    def __init__(self, url: str, *arguments: str, **settings: str) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ.clear()
            os.environ.update(environment(QUANTRY_URL=url, COLUMNS="80", **settings))
            os.execv(sys.executable, argv(*arguments))
        self._shown = b""
        self._ended = False

    @property
    def shown(self) -> str:
        """Everything so far, without colours."""
        return ANSI.sub("", self._shown.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, words: str, after: int = 0) -> int:
        """Read until `words` are there, after the first `after` characters; where they end."""
        deadline = time.monotonic() + SECONDS
        while words not in self.shown[after:]:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), self.shown
        return self.shown.index(words, after) + len(words)

    def press_until(self, key: str, words: str, after: int) -> int:
        """As `wait_for`, pressing `key` every two seconds.

        As a person would: Python's line editor misses a signal that comes just before it begins to wait for input.
        """
        deadline = time.monotonic() + SECONDS
        pressed = -math.inf
        while words not in self.shown[after:]:
            assert time.monotonic() < deadline, self.shown
            if time.monotonic() - pressed > 2:
                pressed = time.monotonic()
                self.type(key)
            assert self._read(), self.shown
        return self.shown.index(words, after) + len(words)

    def end(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < deadline, self.shown
        return self.close()

    def close(self) -> int:
        if self._ended:
            return 0
        self._ended = True
        os.close(self._terminal)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], 0.2)
        if not ready:
            return True
        try:
            piece = os.read(self._terminal, 65536)
        except OSError:  # Linux's end of file on a terminal
            return False
        self._shown += piece
        return bool(piece)
