"""A pull's child that is killed, at whatever step, alone or with its server, leaves what the next one goes on with."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos.driver import run_driver


def test_a_kill_at_any_point_of_a_pull_loses_nothing_and_fetches_nothing_twice(tmp_path: Path) -> None:
    # Other points every time; `pytest -m chaos tests/chaos` tries each of them, five times.
    seed = random.randrange(1000, 1_000_000)
    found = run_driver("pull_points", tmp_path, "--seeds", 1, "--first-seed", seed, "--most-runs", 3, timeout=120)
    assert found["broken"] == []
    assert found["kills"] == 9
