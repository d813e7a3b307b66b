"""A job's child process: `python -m service.jobs.steps` reads one task, does its steps, and says how far it is.

Files in, files out: it knows nothing of the queue, the database or HTTP. It may die of what it reads, which is the
point; the server tells by its exit. Entry, errors and limits are here, the steps themselves in a file for each
kind of task, which may load llama.cpp and so come after the limits.
"""

from __future__ import annotations

import errno
import os
import sys

from service.children import bind_to_parent
from service.domain.errors import DiskFull, InvalidModel, JobFailed, QuantryError
from service.frames import BadFrame, FrameReader
from service.jobs.limits import leave_at_end_of, limit_process, stay_in_the_background
from service.jobs.messages import (
    AdapterTask,
    BundleTask,
    Done,
    Failed,
    ImportTask,
    LaboratoryTask,
    PullTask,
    Task,
    VerifyTask,
)
from service.jobs.outbox import Outbox

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main() -> int:
    """Do the task on stdin. Exit status: 0 done, 1 failed and said so, 2 no task."""
    bind_to_parent()
    limit_process()
    outbox = Outbox(_private_stdout())
    task = _read_task()
    if task is None:
        return 2
    leave_at_end_of(sys.stdin.buffer)
    stay_in_the_background(task.niceness)
    try:
        _carry_out(task, outbox)
    except QuantryError as problem:
        outbox.send(Failed(problem.code, problem.message, problem.param))
    except MemoryError:
        outbox.send(_failed_memory(task))
    except OSError as problem:
        outbox.send(_failed_disk(problem))
    else:
        outbox.send(Done())
        return 0
    return 1


def _read_task() -> Task | None:
    frames: FrameReader[Task] = FrameReader(Task)
    try:
        return frames.read_blocking(sys.stdin.buffer)
    except BadFrame as problem:
        sys.stderr.write(f"no task: {problem}\n")
        return None


def _carry_out(task: Task, outbox: Outbox) -> None:
    match task:
        case ImportTask():
            from service.jobs.importing import import_file

            import_file(task, outbox)
        case PullTask():
            from service.jobs.pulling import pull

            pull(task, outbox)
        case AdapterTask():
            from service.jobs.adapting import take_in

            take_in(task, outbox)
        case BundleTask():
            from service.jobs.unpacking import unpack

            unpack(task, outbox)
        case VerifyTask():
            from service.jobs.verifying import verify

            verify(task, outbox)
        case LaboratoryTask():
            from service.jobs.laboratory import work

            work(task, outbox)


def _private_stdout() -> int:
    """The pipe to the server under a number of its own; whatever prints to stdout then reaches the log instead."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def _failed_memory(task: Task) -> Failed:
    if not isinstance(task, LaboratoryTask | VerifyTask):
        return Failed(InvalidModel.code, "The file needs more memory than its size warrants; get it again.")
    return Failed(JobFailed.code, "Memory ran out. Finished parts are kept; start it again with more of it free.")


def _failed_disk(problem: OSError) -> Failed:
    if problem.errno in _NO_ROOM:
        return Failed(DiskFull.code, "The disk is full; free some space and start the job again.")
    reason = problem.strerror or type(problem).__name__
    return Failed(JobFailed.code, f"Reading or writing a file failed: {reason}. Check the disk, then start it again.")


if __name__ == "__main__":
    sys.exit(main())
