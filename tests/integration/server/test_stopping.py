"""A server that is told to stop does, whatever it was doing."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.server import ROOT

# The signal comes while a line of the log is on its way to the disk, when Python lets no other line be written.
SCRIPT = """
import io, logging, os, signal, sys
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from service.app import _Server
from service.logs import configure_logs

class Disk(io.FileIO):
    told = False

    def write(self, data):
        if not self.told:
            self.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(data)

sys.stderr = io.TextIOWrapper(io.BufferedWriter(Disk(2, "w", closefd=False)), line_buffering=True)
configure_logs("info", "json")
drains = []
server = _Server(uvicorn.Config("none"), Path("none"), SimpleNamespace(begin_drain=lambda: drains.append(True)))
signal.signal(signal.SIGTERM, server.handle_exit)
logging.getLogger("access").info("answered")
print(server.should_exit, drains, server.force_exit)
"""


def test_a_signal_amidst_the_writing_of_a_log_line_is_obeyed() -> None:
    ended = subprocess.run(
        (sys.executable, "-c", SCRIPT),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "True [True] False\n", ended.stderr
    assert ended.stderr.count("answered") == 1
