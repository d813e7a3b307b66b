"""Kills a store at every named point of a day's work, for several seeds, and looks at what is left each time.

    python -m tests.chaos.kill_points FOLDER --seeds 5 [--most-runs 12]

The work runs in a forked child; the same process then opens what it has left, checks the invariants, does the rest of
the work and checks again. Prints one JSON object: points, runs, seconds, and the points by name.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from service.jobs.queue import JobQueue
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from tests.chaos.fail_points import FailPoints, killing
from tests.chaos.store_work import Day, Opened, State, check


def work(home: Path, day: Day, acts: Callable[[str, int], None], acknowledge: Callable[[], None]) -> FailPoints:
    """The whole day, watched."""
    opened = Opened.open(home)
    points = FailPoints(home, acts)
    points.watch(opened.engine)
    try:
        for operation in day.operations:
            points.operation = operation.name
            operation.run(opened, acknowledge)
    finally:
        points.stop()
    opened.close()
    return points


def in_child(task: Callable[[int], None]) -> tuple[int, bytes]:
    """(exit status, what it wrote) of a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task(writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def points_of(folder: Path, seed: int) -> Counter[str]:
    """How often each point is passed in the day of that seed."""
    home = fresh(folder)

    def task(writer: int) -> None:
        points = work(home, Day(seed, folder / "files"), lambda _name, _count: None, lambda: None)
        os.write(writer, json.dumps(points.passed).encode())

    status, said = in_child(task)
    assert status == 0, "the day does not end well without a kill"
    return Counter(json.loads(said))


def fresh(folder: Path) -> Path:
    """A home with an empty, migrated database."""
    empty, home = folder / "empty", folder / "home"
    if not empty.exists():
        Opened.open(empty).close()
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(empty, home)
    return home


def run_killed(folder: Path, seed: int, name: str, count: int) -> None:
    """One run. Raises AssertionError with what does not hold."""
    home = fresh(folder)
    day = Day(seed, folder / "files")
    status, said = in_child(
        lambda writer: work(home, day, killing(name, count), lambda: os.write(writer, b".") and None) and None
    )
    assert status == -signal.SIGKILL, f"ended with {status}"
    states = day.states()
    acknowledged = len(said)
    opened = Opened.open(home)
    check(opened, day.allowed(states, acknowledged))
    go_on(opened, day, acknowledged, states)
    opened.close()


def go_on(opened: Opened, day: Day, acknowledged: int, states: list[State]) -> None:
    """The next server does the rest: the operation that was cut short from its beginning, and those after it."""
    before = 0
    for operation in day.operations:
        if before + len(operation.changes) > acknowledged:
            operation.run(opened, lambda: None)
        before += len(operation.changes)
    check(opened, states[-1:])
    day.check_files()
    for job in opened.queue.list():
        assert job.attempts <= 1
        assert job.finished_at is not None, "a job was left behind"


def leave_temps() -> None:
    """A store that does not clear up at its start."""

    def start(self: BlobStore) -> int:
        for folder in (self.root, self.incoming, self.quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        return 0

    BlobStore.start = start  # type: ignore[method-assign]


def forget_running_jobs() -> None:
    """A queue that does not recover what was running."""
    JobQueue.recover = lambda _self: 0  # type: ignore[method-assign]


def write_row_first() -> None:
    """An import that enters its variant before its file is a blob."""
    add_variant, committed = Catalog.add_variant, BlobStore.commit
    waiting: list[Callable[[], None]] = []

    def later(self: BlobStore, temp: Path, *arguments: Any, **options: Any) -> None:
        if temp.name.startswith("job_"):
            waiting.append(lambda: committed(self, temp, *arguments, **options))
        else:
            committed(self, temp, *arguments, **options)

    def add(self: Catalog, *arguments: Any, **options: Any) -> Any:
        variant = add_variant(self, *arguments, **options)
        while waiting:
            waiting.pop()()
        return variant

    BlobStore.commit, Catalog.add_variant = later, add  # type: ignore[method-assign]


SABOTAGE = {"leave-temps": leave_temps, "forget-running": forget_running_jobs, "row-first": write_row_first}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--most-runs", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="points whose names begin so")
    parser.add_argument("--sabotage", choices=SABOTAGE, help="spoil the store: the kills must find it out")
    options = parser.parse_args()
    if options.sabotage is not None:
        SABOTAGE[options.sabotage]()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    names: Counter[str] = Counter()
    runs, broken = 0, []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        passed = points_of(options.folder, seed)
        pick = random.Random(seed)
        order = [name for name in sorted(passed) if name.startswith(options.only)]
        pick.shuffle(order)  # a few runs are of other points in every seed
        for name in order[: options.most_runs]:
            count = pick.randint(1, passed[name])
            try:
                run_killed(options.folder, seed, name, count)
            except Exception as problem:
                broken.append([seed, name, count, f"{type(problem).__name__}: {problem}"[:1500]])
            names[name] += 1
            runs += 1
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"points": len(names), "runs": runs, "seconds": seconds, "broken": broken, "names": names}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
