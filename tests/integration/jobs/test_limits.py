"""What a job's child does to itself, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SAY = "import os, threading; from service.jobs.limits import *; {}; print({})"


def said(what: str, shown: str) -> str:
    argv = [sys.executable, "-c", SAY.format(what, shown)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_IDLE is Linux's")
@pytest.mark.parametrize(("niceness", "policy"), [(19, "SCHED_IDLE"), (5, "SCHED_OTHER"), (0, "SCHED_OTHER")])
def test_at_the_lowest_priority_a_child_gets_only_what_others_leave(niceness: int, policy: str) -> None:
    shown = "os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)"
    before = os.getpriority(os.PRIO_PROCESS, 0)
    expected = (getattr(os, policy), min(19, before + niceness))
    assert said(f"stay_in_the_background({niceness})", shown) == str(expected).strip("()").replace(", ", " ")


def test_a_file_limit_holds_for_one_step_and_is_lifted_for_the_next() -> None:
    hard = "resource.getrlimit(resource.RLIMIT_FSIZE)[1]"
    soft = "resource.getrlimit(resource.RLIMIT_FSIZE)[0]"
    assert said("limit_file_size(1000)", f"{soft} == 1000 + FILE_MARGIN_BYTES") == "True"
    assert said("limit_file_size(1000); lift_file_limit()", f"{soft} == {hard}") == "True"
