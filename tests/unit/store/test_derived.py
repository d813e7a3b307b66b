"""Derived files: named by what they depend on, pruned by use, never while they are needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from service.store.derived import DerivedFiles, key_of

DAY = 86400.0


@pytest.fixture
def derived(tmp_path: Path) -> DerivedFiles:
    files = DerivedFiles(tmp_path / "laboratory", max_bytes=100)
    files.start()
    return files


def put(derived: DerivedFiles, name: str, *, size: int = 40, days: float = 0.0) -> Path:
    path = derived.path(name)
    path.write_bytes(b"x" * size)
    used_at = time.time() - days * DAY
    os.utime(path, (used_at, used_at))
    return path


def test_a_name_follows_from_everything_that_the_content_depends_on(derived: DerivedFiles) -> None:
    names = {derived.path("logits", *on) for on in [("a", 1), ("a", 2), ("b", 1), ("a", None)]}
    assert len(names | {derived.path("known", "a", 1)}) == 5
    assert derived.path("logits", "a", 1) == derived.path("logits", "a", 1)
    assert key_of("a", "b") != key_of("ab")


def test_the_least_recently_used_go_first_and_only_as_many_as_needed(derived: DerivedFiles) -> None:
    old, middle, new = (put(derived, name, days=days) for name, days in [("a", 3), ("b", 2), ("c", 1)])
    derived.use([old])
    assert derived.prune() == 1
    assert [path.exists() for path in (old, middle, new)] == [True, False, True]
    assert derived.prune() == 0


def test_what_a_month_has_not_used_goes_whatever_its_size(derived: DerivedFiles) -> None:
    assert not put(derived, "a", size=1, days=31).exists() or derived.prune() == 1
    kept = put(derived, "b", size=1, days=29)
    assert derived.prune() == 0
    assert kept.exists()


def test_what_a_job_works_with_stays_and_what_is_on_its_way_to_it(derived: DerivedFiles) -> None:
    kept = put(derived, "a", size=200, days=40)
    partial = kept.with_name(kept.name + ".partial")
    partial.write_bytes(b"x" * 200)
    os.utime(partial, (0, 0))
    assert derived.prune(keep=[kept]) == 0
    derived.discard([kept])
    assert os.listdir(derived.root) == []


def test_a_folder_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    derived = DerivedFiles(tmp_path / "nowhere", 0)
    assert derived.prune() == 0
    derived.discard([derived.path("a")])
    derived.use([derived.path("a")])
