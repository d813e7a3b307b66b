"""A short-lived child that gives one answer on its output and ends. Server process."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence

from service.children import child_environment
from service.domain.errors import DeadlineExceeded, JobChildDied


async def answer_of(argv: Sequence[str], question: bytes | None, seconds: float, *, late: str, died: str) -> bytes:
    """All that the child writes. `question` is what it reads, None for nothing.

    Raises DeadlineExceeded with the message `late` after `seconds`, JobChildDied with `died` for a bad exit; the child
    is gone when this returns or raises.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=DEVNULL if question is None else PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=child_environment(os.environ),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await child.communicate(question)
    except TimeoutError:
        raise DeadlineExceeded(late) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise JobChildDied(died)
    return output
