"""Promises of children that give one answer: whatever they do, the server hears of it in time and is rid of them."""

from __future__ import annotations

import asyncio
import sys

import psutil
import pytest

from service.domain.errors import DeadlineExceeded, JobChildDied
from service.jobs.one_answer import answer_of

ECHO = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"


async def asked(
    script: str, question: bytes | None = None, *, seconds: float = 20.0, most_bytes: int = 1 << 20
) -> bytes:
    argv = (sys.executable, "-c", script)
    others = set(psutil.Process().children())  # servers that tests share
    try:
        async with asyncio.timeout(20):
            return await answer_of(argv, question, seconds, late="late", died="died", most_bytes=most_bytes)
    finally:
        assert others.issuperset(psutil.Process().children())


async def test_an_answer_comes_back_whole() -> None:
    question = bytes(range(256)) * 2000
    assert await asked(ECHO, question) == question
    assert await asked("print('hello')") == b"hello\n"


@pytest.mark.parametrize("script", ["import time; time.sleep(60)", "import os, time; os.close(1); time.sleep(60)"])
async def test_a_child_that_hangs_is_given_up_in_time(script: str) -> None:
    with pytest.raises(DeadlineExceeded, match="late"):
        await asked(script, seconds=0.5)


async def test_a_child_that_never_stops_writing_is_ended_before_it_fills_the_memory() -> None:
    with pytest.raises(JobChildDied, match="died"):
        await asked("import os\nwhile True: os.write(1, b'x' * 65536)", most_bytes=1 << 20)
    assert len(await asked("print('x' * 99, end='x')", most_bytes=100)) == 100


@pytest.mark.parametrize(
    "script", ["import os; os._exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
async def test_a_child_that_dies_gives_no_answer(script: str) -> None:
    with pytest.raises(JobChildDied, match="died"):
        await asked(script, b"a question")


async def test_a_child_that_cannot_be_started_is_said_to_be() -> None:
    with pytest.raises(JobChildDied, match="did not start"):
        await answer_of(("/nowhere/at-all",), None, 1.0, late="late", died="died")


async def test_who_asks_no_more_leaves_no_child() -> None:
    asking = asyncio.create_task(asked("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
