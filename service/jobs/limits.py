"""What a job's child does to itself before it touches a file: leave with its parent, stay in the background and small.

Runs in the child only. Every limit is best effort where the system lacks it (macOS has no ionice),
and none of them is the only guard: the server kills what overruns.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from typing import BinaryIO

import psutil

_OPEN_FILES = 256
_LOWEST_NICENESS = 19
# A file may grow past its predicted size by what a header can: never by a whole model.
FILE_MARGIN_BYTES = 64 * 1024 * 1024
_MEMORY_MARGIN_BYTES = 8 * 1024**3


def leave_at_end_of(stdin: BinaryIO) -> None:
    """Kill this process when `stdin` ends, from a thread of its own: the parent is gone.

    Covers systems without PDEATHSIG, and a parent that ended before it was set up. Call it once the task is read.
    """

    def watch() -> None:
        # The server writes nothing after the task, so only the end of the stream ends the loop.
        while os.read(stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def stay_in_the_background(niceness: int) -> None:
    """Lower the priority for CPU and disk, so that serving always goes first.

    At the lowest niceness the scheduler class is SCHED_IDLE as well, where there is one: such a process gets what is
    left over, and leaves a core the moment that another wants it. Threads started later inherit it. It is not raised
    again: a system may forbid that.
    """
    os.nice(niceness)
    process = psutil.Process()
    if sys.platform == "linux" and niceness > 0:
        with suppress(psutil.Error, OSError):
            process.ionice(psutil.IOPRIO_CLASS_IDLE)
        if niceness >= _LOWEST_NICENESS:
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def limit_process() -> None:
    """Few open files."""
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)


def limit_file_size(expected_bytes: int) -> None:
    """Writing a file past `expected_bytes` and a margin fails with EFBIG instead of filling the disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _lower(resource.RLIMIT_FSIZE, expected_bytes + FILE_MARGIN_BYTES)


def lift_file_limit() -> None:
    """Undo `limit_file_size`."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def limit_memory(file_bytes: int) -> None:
    """Bound the address space while a file of `file_bytes` is validated.

    The file is mapped at most twice (our check and llama.cpp's); the margin is for the vocabulary, the thread stacks
    and the arenas of the allocator, which are address space and seldom memory. A count in a hostile header that asks
    for more becomes a failed allocation in this process, not an out-of-memory kill of another.
    """
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, psutil.Process().memory_info().vms + 2 * file_bytes + _MEMORY_MARGIN_BYTES)


def lift_memory_limit() -> None:
    """Undo `limit_memory`."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _lower(kind: int, wanted: int) -> None:
    soft, hard = resource.getrlimit(kind)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(kind, (limit, hard))
