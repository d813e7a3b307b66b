"""A server that is killed, at whatever step, leaves a store that the next one can work with."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.domain.errors import Conflict
from service.store.home import lock_home
from tests.chaos.driver import run_driver

ROOT = Path(__file__).parents[3]
HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from service.store.home import lock_home
lock = lock_home(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def _python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_at_any_point_breaks_no_invariant(tmp_path: Path) -> None:
    # Other points every time; `pytest -m chaos tests/chaos` tries each of them, five times.
    seed = random.randrange(1000, 1_000_000)
    arguments = ("--seeds", 1, "--first-seed", seed, "--most-runs", 12)
    found = run_driver("kill_points", tmp_path, *arguments, timeout=90)
    assert found["broken"] == []
    assert found["runs"] == 12


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_failing_disk_is_told_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    arguments = ("--code", code, "--only", "upload", "--most-runs", 6)
    found = run_driver("io_errors", tmp_path, *arguments, timeout=90)
    assert found["broken"] == []
    assert found["outcomes"]["raised"] >= 4


def test_the_lock_of_a_killed_server_is_free(tmp_path: Path) -> None:
    with _python("-c", HOLD_THE_LOCK, str(tmp_path)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "held\n"
        with pytest.raises(Conflict):
            lock_home(tmp_path)
        server.send_signal(signal.SIGKILL)
        server.wait(timeout=10)
    lock_home(tmp_path).release()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = lock_home(tmp_path)
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        lock.release()
        again = lock_home(tmp_path)  # raises Conflict where the child still held it
        assert child.poll() is None
        again.release()
        child.kill()
