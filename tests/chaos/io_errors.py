"""Lets the disk fail under a store at every point of a day's work, and looks at what is told and what is left.

    python -m tests.chaos.io_errors FOLDER [--seed 1] [--most-runs 12] [--code 5]

The call fails once, the first to fifth time it is made in that operation. What fails must say so, leave no temp file
and the state before or after the change, and be done well the second time. A failed fsync is not tried again.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path

import structlog

from service.domain.errors import QuantryError
from service.domain.jobs import JobError, JobStatus
from tests.chaos.fail_points import FailPoints, failing
from tests.chaos.kill_points import fresh, points_of
from tests.chaos.store_work import Acknowledge, Day, Opened, Operation, check

CALLS = ("open", "read", "write", "fsync", "rename", "fchmod", "link", "truncate")
MOST_TIMES = 5


def run_failing(folder: Path, seed: int, name: str, count: int, code: int) -> str:
    """One run: "raised", or "survived" where the failure was no reason to give up. AssertionError else."""
    home = fresh(folder)
    day = Day(seed, folder / "files")
    opened = Opened.open(home)
    points = FailPoints(home, failing(name, count, code))
    points.watch(opened.engine)
    states = day.states()
    acknowledged, outcome = 0, "survived"

    def acknowledge() -> None:
        nonlocal acknowledged
        acknowledged += 1

    before = 0
    for operation in day.operations:
        points.operation = operation.name
        problem = failure(operation, opened, acknowledge)
        if problem is not None:
            assert outcome == "survived", f"failed twice: {problem}"
            assert name.startswith(f"{operation.name}: "), f"{name} broke {operation.name}: {problem}"
            outcome = "raised"
            if "fsync" in name:
                assert points.passed[name] == count, "a failed fsync was tried again"
            points.operation = "after"
            clean_up(opened)
            now = check(opened, day.allowed(states, acknowledged))
            assert now is not None
            points.operation = f"{operation.name} again"
            operation.run(opened, lambda: None)
            acknowledged = before + len(operation.changes)
        before += len(operation.changes)
        assert acknowledged >= before
    points.stop()
    check(opened, states[-1:])
    opened.close()
    return outcome


def failure(operation: Operation, opened: Opened, acknowledge: Acknowledge) -> Exception | None:
    """What the operation raised, as far as it was to be expected."""
    try:
        operation.run(opened, acknowledge)
    except (QuantryError, OSError) as problem:
        return problem
    return None


def clean_up(opened: Opened) -> None:
    """As the runner does for a job that has failed."""
    for job in opened.queue.list(JobStatus.RUNNING):
        for temp in opened.stores.blobs.incoming.glob(f"{job.id}-*"):
            temp.unlink(missing_ok=True)
        opened.queue.finish(job.id, JobStatus.FAILED, steps=(), error=JobError("internal_error", "the disk"))
    for job in opened.queue.list(JobStatus.QUEUED):
        opened.queue.request_cancel(job.id)
    pulled = opened.stores.blobs.incoming / "pulled"  # of the transfer, which its job would remove
    pulled.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--code", type=int, default=errno.EIO)
    parser.add_argument("--most-runs", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="operations that begin so")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    outcomes: Counter[str] = Counter()
    runs, broken = 0, []
    passed = points_of(options.folder, options.seed)
    for name in sorted(passed):
        operation, _, call = name.partition(": ")
        if call.split()[0] not in CALLS or not operation.startswith(options.only):
            continue
        for count in range(1, min(MOST_TIMES, passed[name]) + 1):
            runs += 1
            if runs > options.most_runs:
                break
            try:
                outcome = run_failing(options.folder, options.seed, name, count, options.code)
            except Exception as problem:
                outcome = "broken"
                broken.append([name, count, f"{type(problem).__name__}: {problem}"[:1000]])
            outcomes[outcome] += 1
            outcomes[f"{call.split()[0]}"] += 1
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"outcomes": outcomes, "seconds": seconds, "broken": broken}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
