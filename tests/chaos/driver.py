"""Runs a driver of this folder in a process of its own and gives what it printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_driver(
    module: str, *arguments: object, timeout: float, before: Sequence[str] = (), scratch: Path | None = None
) -> Any:
    """What `python -m tests.chaos.<module>` printed as its last line; `before` is a command that starts it.

    `scratch` is removed afterwards.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    argv = [*before, sys.executable, "-W", "error", "-m", f"tests.chaos.{module}", *map(str, arguments)]
    try:
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    assert done.stdout.strip(), done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def on_small_disk(folder: Path, megabytes: int) -> tuple[str, ...]:
    """A command that runs what follows with a small file system of its own at `folder`."""
    folder.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={megabytes}m none "{folder}" && exec "$@"'
    return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")


def has_small_disks(folder: Path) -> bool:
    """Whether this system lets us mount one."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*on_small_disk(folder, 1), "true"], capture_output=True, check=False)
    return done.returncode == 0
