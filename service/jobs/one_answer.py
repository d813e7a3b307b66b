"""A short-lived child that gives one answer on its output and ends. Server process."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from service.children import child_environment
from service.domain.errors import DeadlineExceeded, JobChildDied
from service.jobs.child import not_started

MOST_BYTES = 64 << 20
_READ_BYTES = 1 << 20


async def answer_of(
    argv: Sequence[str], question: bytes | None, seconds: float, *, late: str, died: str, most_bytes: int = MOST_BYTES
) -> bytes:
    """All that the child writes. `question` is what it reads, None for nothing.

    Raises DeadlineExceeded with the message `late` after `seconds`, JobChildDied with `died` for a bad exit and for
    more than `most_bytes`; the child is gone when this returns or raises.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL if question is None else PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=child_environment(os.environ),
            start_new_session=True,
        )
    except OSError as problem:
        raise not_started(problem) from problem
    try:
        async with asyncio.timeout(seconds):
            output = await _exchange(child, question, most_bytes)
            if len(output) <= most_bytes:
                await child.wait()
    except TimeoutError:
        raise DeadlineExceeded(late) from None
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode != 0:
        raise JobChildDied(died)
    return output


async def _exchange(child: Process, question: bytes | None, most_bytes: int) -> bytes:
    """What the child answers; one that does not stop is read no further than it takes to know."""
    assert child.stdout is not None
    if child.stdin is not None and question is not None:
        child.stdin.write(question)
        # A child that died at once shows in its exit status.
        with suppress(ConnectionError):
            await child.stdin.drain()
        child.stdin.close()
    answer = bytearray()
    while len(answer) <= most_bytes and (chunk := await child.stdout.read(_READ_BYTES)):
        answer += chunk
    return bytes(answer)
