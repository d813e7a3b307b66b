"""What the kernel's counters say about other processes: tested on text in their shape."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.engine import neighbours
from service.engine.neighbours import Neighbours


def stat(*busy_ticks: int) -> str:
    lines = [f"cpu{core} {ticks} 0 0 500 20 0 0 0 0 0" for core, ticks in enumerate(busy_ticks)]
    return "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *lines, "intr 123 4 5", ""])


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "stat"
    monkeypatch.setattr(neighbours, "_STAT", str(path))
    monkeypatch.setattr(neighbours.os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    monkeypatch.setattr(neighbours.os, "sysconf", lambda _name: 100)
    monkeypatch.setattr(neighbours.time, "process_time", lambda: 0.0)
    path.write_text(stat(1000, 1000, 1000))
    return path


def test_a_neighbour_on_one_of_two_cores_leaves_one(counters: Path) -> None:
    reader = Neighbours()
    counters.write_text(stat(1100, 1000, 9000))  # a second's worth; the third core is not ours
    assert reader.free_cores(time.monotonic() + 1.0) == pytest.approx(1.0, abs=0.02)
    reader.close()


def test_between_readings_the_last_answer_stands(counters: Path) -> None:
    reader = Neighbours()
    assert reader.free_cores(time.monotonic() + 0.1) is None
    now = time.monotonic() + 1.0
    assert reader.free_cores(now) == pytest.approx(2.0)
    counters.write_text(stat(2000, 2000))
    assert reader.free_cores(now + 0.1) == pytest.approx(2.0)
    reader.close()


def test_what_this_process_uses_is_no_neighbour(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Neighbours()
    counters.write_text(stat(1100, 1100))
    monkeypatch.setattr(neighbours.time, "process_time", lambda: 2.0)
    assert reader.free_cores(time.monotonic() + 1.0) == pytest.approx(2.0)
    reader.close()


def test_counters_that_stay_zero_say_nothing(counters: Path) -> None:
    counters.write_text(stat(0, 0))
    reader = Neighbours()
    assert reader.free_cores(time.monotonic() + 1.0) is None
    assert reader.free_cores(time.monotonic() + 2.0) is None


def test_a_system_without_counters_says_nothing(counters: Path) -> None:
    counters.unlink()
    assert Neighbours().free_cores(time.monotonic() + 1.0) is None
