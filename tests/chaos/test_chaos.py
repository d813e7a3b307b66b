"""Everything at length: minutes of kills, full and failing disks, and damaged files. `pytest -m chaos tests/chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import has_small_disks, on_small_disk, run_driver

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_kill_at_every_point_of_a_day_breaks_no_invariant(tmp_path: Path, seed: int) -> None:
    found = run_driver("kill_points", tmp_path, "--seeds", 1, "--first-seed", seed, timeout=3500)
    assert found["broken"] == []
    assert found["runs"] == found["points"] >= 40
    named = {name.partition(":")[0] for name in found["names"]}
    assert {"bundle in", "bundle out", "adapter", "adopt with link", "adopt with reference"} <= named


@pytest.mark.parametrize("sabotage", ["leave-temps", "forget-running", "row-first"])
def test_the_kills_find_out_a_store_that_was_spoilt_on_purpose(tmp_path: Path, sabotage: str) -> None:
    found = run_driver("kill_points", tmp_path, "--seeds", 1, "--only", "import:", "--sabotage", sabotage, timeout=600)
    assert found["broken"]


def test_a_pull_killed_at_any_point_loses_nothing_and_fetches_nothing_twice(tmp_path: Path) -> None:
    found = run_driver("pull_points", tmp_path, "--seeds", 5, timeout=3500)
    assert found["broken"] == []
    assert found["points"] >= 40
    assert found["kills"] == 5 * found["points"]
    assert found["bytes_kept"] > 0


@pytest.mark.parametrize("sabotage", ["forget-ranges", "note-early"])
def test_the_kills_find_out_fetching_that_was_spoilt_on_purpose(tmp_path: Path, sabotage: str) -> None:
    found = run_driver("pull_points", tmp_path, "--seeds", 1, "--only", "pull", "--sabotage", sabotage, timeout=600)
    assert found["broken"]


@pytest.mark.parametrize(("code", "seed"), [(5, 1), (5, 2), (28, 3), (28, 4)])
def test_a_failing_disk_is_told_and_leaves_nothing(tmp_path: Path, code: int, seed: int) -> None:
    found = run_driver("io_errors", tmp_path, "--code", code, "--seed", seed, timeout=3500)
    assert found["broken"] == []
    assert found["outcomes"]["raised"] >= 100


@pytest.mark.parametrize("work", ["import", "quantize", "upload", "commit", "log"])
def test_a_full_disk_fails_the_work_and_not_the_server(tmp_path: Path, work: str) -> None:
    disk = tmp_path / "disk"
    if not has_small_disks(disk):
        pytest.skip("this system lets us mount no file system")
    found = run_driver("full_disk", disk, work, 20, timeout=3500, before=on_small_disk(disk, 96))
    assert found["broken"] == []
    assert found["fillings"] == 20
    assert sum(found["outcomes"].values()) > found["outcomes"].get("done", 0)


def test_a_server_killed_at_any_moment_comes_back_whole(tmp_path: Path) -> None:
    found = run_driver("killed_server", tmp_path, 20, 1, timeout=3500)
    assert found["broken"] == []
    assert found["counts"]["children"] > 0


def test_damaged_sources_are_read_or_refused(tmp_path: Path) -> None:
    found = run_driver("fuzz_readers", "--folder", tmp_path, "--count", 3_000, timeout=3500, scratch=tmp_path)
    assert {name: said["found"] for name, said in found.items() if said["found"]} == {}


@pytest.mark.timeout(7200)  # an hour on a machine that others keep busy
def test_no_damaged_file_gets_past_the_check_to_kill_llama_cpp(tmp_path: Path) -> None:
    arguments = ("--mutants", 100_000, "--through", 2_000, "--folder", tmp_path)
    found = run_driver("fuzz_gguf", *arguments, timeout=7000, scratch=tmp_path)
    assert found["validator"]["found"] == []
    assert found["llama"]["found"] == []
    assert found["llama"]["accepted"] == 2_000
