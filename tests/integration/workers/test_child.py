"""Promises of a worker's process and channel, with children that are no workers: nothing hangs or is left over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.domain.errors import LoadFailed, ShuttingDown
from service.domain.generation import GenerationRequest
from service.domain.memory import MemoryNeed, Placement
from service.workers.child import Child
from service.workers.ladder import Rung
from service.workers.options import WorkerOptions
from service.workers.supervisor import Worker, WorkerState
from tests.integration.workers.test_pool import OPTIONS, running_pool, until, variant

CHANNEL = "import os, sys, time, signal\nchannel = int(sys.argv[-1])\n"
SLEEPS = CHANNEL + "time.sleep(60)"


def argv(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


@asynccontextmanager
async def child_of(script: str) -> AsyncIterator[Child]:
    child = await Child.start("a child", argv(script))
    try:
        yield child
    finally:
        await child.end()


def worker_of(script: str) -> Worker:
    options = WorkerOptions(
        batch_tokens=64, threads=1, gpu_layers=0, load_timeout_seconds=20, hang_seconds=30, argv=argv(script)
    )
    return Worker(
        name="a worker",
        path=Path("model.gguf"),
        placement=Placement(64, 1, MemoryNeed(1, 1, 1)),
        options=options,
        rung=Rung.FULL,
        on_death=lambda _worker: pytest.fail("it was never ready"),
    )


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "--channel" in child.cmdline()]


async def test_a_process_is_known_to_have_ended_before_the_loop_has_heard_of_it() -> None:
    async with child_of(SLEEPS) as child:
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while child.pid is not None and time.monotonic() < deadline:
            pass  # nothing is awaited, so that the loop cannot hear of it
        assert child.pid is None
        assert child.has_exited
        assert await child.wait() == -signal.SIGKILL


async def test_a_child_that_floods_its_log_is_not_held_up_and_takes_no_memory() -> None:
    flood = "sys.stderr.write('x' * (4 << 20) + '\\nthe last words'); sys.stderr.flush(); os._exit(3)"
    async with child_of(CHANNEL + flood) as child:
        async with asyncio.timeout(20):
            assert await child.wait() == 3
            await child.end()
        assert child.stderr_tail[-1] == "the last words"
        assert max(map(len, child.stderr_tail)) <= 500


@pytest.mark.parametrize(
    "script",
    [
        "os.write(channel, b'\\xff' * 64); time.sleep(60)",  # no frame of ours
        "os.write(channel, b'\\0\\0\\0\\1\\xc0'); time.sleep(60)",  # a frame that says nothing
        "os.close(channel); time.sleep(60)",  # nothing more will come, and it stays
        "os._exit(7)",
    ],
)
async def test_what_is_no_worker_fails_its_load_and_is_gone(script: str) -> None:
    worker = worker_of(CHANNEL + script)
    with pytest.raises(LoadFailed):
        await worker.start()
    assert worker.state is WorkerState.FAILED
    assert worker.last_error
    assert worker.pid is None
    assert not children()


async def test_a_load_that_is_given_up_leaves_no_process() -> None:
    worker = worker_of(SLEEPS)
    loading = asyncio.create_task(worker.start())
    await until(lambda: worker.pid is not None)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not children()


async def test_who_waits_for_a_load_when_the_server_stops_is_told_so() -> None:
    """Its own task is not cancelled: the load is."""
    slow = replace(OPTIONS, worker=replace(OPTIONS.worker, argv=argv(SLEEPS)))
    async with running_pool(slow) as pool:
        waiting = asyncio.create_task(pool.submit(variant(), GenerationRequest(prompt="It was")))
        await until(lambda: bool(children()))
        await pool.stop(drain_seconds=0)
        with pytest.raises(ShuttingDown):
            await waiting
    assert not children()
