"""One job's child process, as the server sees it: start, read messages, end, and say why it ended. Server process.

    started ──end of its output──> exited     (by itself, by a signal of its own or of someone else)
        └──terminate: SIGTERM, 2 s, SIGKILL──> exited

Its output is read under a cap and its stderr is kept as a short tail, for the log only. Knows nothing of the queue.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from service.children import child_environment, signal_name
from service.domain.errors import DiskFull, InvalidModel, JobChildDied, QuantryError
from service.domain.jobs import JobKind
from service.frames import FrameReader, encode
from service.jobs.messages import Message, Task

TERMINATE_GRACE_SECONDS = 2.0
_EXIT_SECONDS = 10.0
_STDERR_TAIL_BYTES = 16 * 1024
_CRASHES = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS"})
_ASSERTION = re.compile(r"GGML_ASSERT\(.{1,200}\) failed")


class Child:
    """A started child. One task reads `messages` to their end and then calls `ended`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Use `start`."""
        self._process = process
        self._paused = False
        self._stderr_tail = bytearray()
        self._stderr_reader = asyncio.create_task(self._read_stderr())

    @classmethod
    async def start(cls, argv: Sequence[str], task: Task) -> Child:
        """Start `argv` in a session of its own and give it its task. Its input stays open as a sign of life.

        Raises JobChildDied when the system starts no process, BadFrame for a task that is too long.
        """
        given = encode(task)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
                start_new_session=True,
            )
        except OSError as problem:
            raise not_started(problem) from problem
        child = cls(process)
        assert process.stdin is not None
        process.stdin.write(given)
        try:
            # A child that died at once shows in its exit status, not here.
            with suppress(ConnectionError):
                await process.stdin.drain()
        except BaseException:  # whoever started it waits no more
            child._signal(signal.SIGKILL)
            await child.ended()
            raise
        return child

    @property
    def pid(self) -> int:
        """Process id, and id of the process group."""
        return self._process.pid

    async def messages(self, stall_seconds: float) -> AsyncGenerator[Message, None]:
        """What the child says, to the end of its output.

        A message cut short by the child's death is left out: its exit status tells more. Raises BadFrame for what is
        no message, TimeoutError when nothing comes for `stall_seconds`.
        """
        stdout = self._process.stdout
        assert stdout is not None
        frames: FrameReader[Message] = FrameReader(Message)
        while (message := await asyncio.wait_for(frames.read(stdout), stall_seconds)) is not None:
            yield message

    def pause(self) -> None:
        """Stop the whole group where it is."""
        if not self._paused and self._process.returncode is None:
            self._paused = True
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `pause`."""
        if self._paused:
            self._paused = False
            self._signal(signal.SIGCONT)

    async def terminate(self, grace_seconds: float = TERMINATE_GRACE_SECONDS) -> None:
        """SIGTERM, then SIGKILL, to the whole group; returns when the child is gone."""
        self._signal(signal.SIGTERM)
        self.go_on()  # a process that is stopped would not see it
        try:
            await asyncio.wait_for(self._process.wait(), grace_seconds)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    async def ended(self) -> int:
        """Wait for the exit, kill what outstays it, and give the exit status (-9: killed by signal 9)."""
        try:
            status = await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
        except TimeoutError:
            await self.terminate()
            status = await self._process.wait()
        # Whatever the child may have started is in its group.
        self._signal(signal.SIGKILL)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._stderr_reader), _EXIT_SECONDS)
        self._stderr_reader.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    @property
    def stderr_tail(self) -> str:
        """The last lines it wrote, for the log: they may hold paths."""
        return self._stderr_tail.decode("utf-8", "replace")

    @property
    def assertion(self) -> str | None:
        """The llama.cpp assertion it died of, without the source path, if that is what its last lines say."""
        found = _ASSERTION.findall(self.stderr_tail)
        return found[-1] if found else None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _read_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while chunk := await stderr.read(4096):
            self._stderr_tail += chunk
            del self._stderr_tail[:-_STDERR_TAIL_BYTES]


def not_started(problem: OSError) -> JobChildDied:
    """The error for a child that the system did not start, for lack of memory or of processes."""
    reason = problem.strerror or type(problem).__name__
    return JobChildDied(
        f"The system did not start a process for it: {reason}. Try again when the machine is less busy."
    )


def death(kind: JobKind, status: int, assertion: str | None) -> QuantryError:
    """The error for a child that ended without saying why. Pure."""
    name = signal_name(status)
    if name == "SIGXFSZ":
        return DiskFull("The file grew past its expected size and was stopped; free some space and start again.")
    if name in _CRASHES:
        how = f"{name}, {assertion}" if assertion else name
        if kind in (JobKind.IMPORT, JobKind.PULL, JobKind.ADAPTER, JobKind.BUNDLE):
            return InvalidModel(
                f"llama.cpp crashed reading it: {how}. The file is damaged or made for another llama.cpp; nothing was "
                "stored."
            )
        return JobChildDied(f"llama.cpp crashed at work: {how}. Finished levels are kept; verify the source's blob.")
    if name == "SIGKILL":
        return JobChildDied(
            "The job's process was killed (SIGKILL), by the system when memory ran out or by someone. Finished parts "
            "are kept; start the job again with more memory free."
        )
    if name is not None:
        return JobChildDied(f"The job's process was ended by {name}. Finished parts are kept; start the job again.")
    return JobChildDied(
        f"The job's process ended with status {status} and said nothing; the server's log has its last lines. Start "
        "the job again."
    )
