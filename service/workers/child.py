"""A worker's process and the channel to it: started, written to, read from, ended. Server process.

    started ──end of the channel──> exited
       └──kill──────────────────────^

Knows frames, no requests and no state of the worker; what the child writes to stderr is kept as a short tail.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence

import structlog

from service.children import child_environment
from service.domain.errors import LoadFailed
from service.frames import FrameReader, encode
from service.workers.protocol import FromWorker, ToWorker

_STDERR_LINES = 40
_STDERR_LINE_BYTES = 500
_STDERR_READ_BYTES = 4096
_STDERR_SECONDS = 1.0  # that its last lines may take to come

_log = structlog.get_logger("workers")


class Child:
    """A started child."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Use `start`."""
        self._name = name
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frames: FrameReader[FromWorker] = FrameReader(FromWorker)
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._stderr_reader = asyncio.create_task(self._read_stderr())

    @classmethod
    async def start(cls, name: str, argv: Sequence[str]) -> Child:
        """Start `argv` in a session of its own, with a channel. `name` is for the log. Raises LoadFailed."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                "--channel",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
                start_new_session=True,
            )
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise LoadFailed(f"The worker process could not be started (errno {error.errno}).") from error
            raise
        finally:
            theirs.close()
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:  # whoever started it waits no more
            process.kill()
            ours.close()
            await process.wait()
            raise
        return cls(name, process, reader, writer)

    @property
    def pid(self) -> int | None:
        """Process id, while the process runs."""
        return None if self.has_exited else self._process.pid

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended. The system is asked: asyncio hears of an exit a moment later."""
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS
            return False
        try:
            # WNOWAIT leaves the exit status to whom it belongs.
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    @property
    def status(self) -> int | None:
        """The exit status (-9: killed by signal 9), once it is known."""
        return self._process.returncode

    @property
    def stderr_tail(self) -> list[str]:
        """The last lines it wrote, for the log: they may hold paths."""
        return list(self._stderr)

    def send(self, message: ToWorker) -> None:
        """Hand a message to the child; nothing happens once the channel is closed. Raises BadFrame for a long one."""
        data = encode(message)
        # The child reads at once whatever it computes, so the transport's buffer stays small; requests are bounded.
        if not self._writer.is_closing():
            self._writer.write(data)

    async def read(self) -> FromWorker | None:
        """The child's next message; None at the end of the channel. Raises BadFrame."""
        return await self._frames.read(self._reader)

    async def wait(self) -> int:
        """The exit status, once the process has ended."""
        status = await self._process.wait()
        self._writer.close()
        return status

    def kill(self) -> None:
        """End it where it stands."""
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                _log.debug("worker was already gone", model=self._name)

    async def end(self, grace_seconds: float = 0.0) -> int:
        """Wait until it is gone, and kill it after `grace_seconds`; the exit status."""
        try:
            await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            self.kill()
        status = await self.wait()
        await asyncio.wait({self._stderr_reader}, timeout=_STDERR_SECONDS)
        self._stderr_reader.cancel()
        return status

    async def _read_stderr(self) -> None:
        """Read on whatever comes: a child whose pipe is full would stand still."""
        assert self._process.stderr is not None
        line = b""
        while chunk := await self._process.stderr.read(_STDERR_READ_BYTES):
            *whole, line = (line + chunk).split(b"\n")
            line = line[:_STDERR_LINE_BYTES]
            for each in whole:
                self._note(each)
        if line:
            self._note(line)

    def _note(self, line: bytes) -> None:
        text = line[:_STDERR_LINE_BYTES].decode("utf-8", "replace").rstrip()
        self._stderr.append(text)
        _log.debug("worker says", model=self._name, line=text)
