"""A job's child is stopped while texts are generated, runs for its share of the time, and is never left stopped."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from service.jobs import making_way


class Clock:
    """A clock that only `sleep` moves; the task ends when it has run out."""

    def __init__(self, seconds):
        self.now, self.end = 0.0, seconds

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        if self.now >= self.end:
            raise asyncio.CancelledError


class Recorded:
    """Stands for a child; `states` holds, for each look, the time and whether it runs."""

    def __init__(self, clock):
        self.clock, self.runs, self.states = clock, True, []

    def pause(self):
        self.runs = False
        self.states.append((self.clock.now, False))

    def go_on(self):
        self.runs = True
        self.states.append((self.clock.now, True))

    def running_seconds(self, start, end):
        """Seconds between `start` and `end` in which it ran."""
        return sum(after - at for (at, runs), (after, _) in pairwise(self.states) if runs and start <= at < end)


async def _watch(monkeypatch, seconds, is_serving):
    clock = Clock(seconds)
    child = Recorded(clock)
    monkeypatch.setattr(making_way, "time", clock)
    monkeypatch.setattr(making_way, "asyncio", clock)
    with pytest.raises(asyncio.CancelledError):
        await making_way.make_way(child, lambda: is_serving(clock.now))
    return child


async def test_without_requests_a_job_runs_all_the_time(monkeypatch):
    child = await _watch(monkeypatch, 60, lambda now: False)
    assert all(runs for _, runs in child.states)


async def test_beside_streams_a_job_keeps_a_share_of_the_time_and_no_more(monkeypatch):
    child = await _watch(monkeypatch, 200, lambda now: now >= 10)
    assert child.running_seconds(0, 9.9) == pytest.approx(9.9, abs=0.3)
    assert child.running_seconds(10, 200) == pytest.approx(190 * 3 / 20, abs=3.5)
    assert child.running_seconds(10, 26) < 0.3  # a new stream finds it out of the way


async def test_a_short_pause_between_two_requests_does_not_wake_it(monkeypatch):
    child = await _watch(monkeypatch, 12, lambda now: now % 2 < 1.2)
    assert child.running_seconds(0.5, 12) < 0.3


async def test_it_runs_on_once_nobody_generates_and_is_never_left_stopped(monkeypatch):
    child = await _watch(monkeypatch, 20, lambda now: now < 5)
    assert child.running_seconds(6.5, 20) > 13
    stopped = await _watch(monkeypatch, 5, lambda now: True)
    assert stopped.runs
