"""Two servers never share a home."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.domain.errors import Conflict
from service.store.home import lock_home


def test_a_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    with lock_home(tmp_path):
        with pytest.raises(Conflict, match="QUANTRY_HOME") as refused:
            lock_home(tmp_path)
        assert str(tmp_path) not in refused.value.message
    lock = lock_home(tmp_path)
    lock.release()
    lock.release()
    lock_home(tmp_path).release()


def test_two_homes_do_not_disturb_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with lock_home(tmp_path / "a"), lock_home(tmp_path / "b"):
        pass


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "server.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        lock_home(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_told_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("service.store.home.fcntl.flock", no_locks)
    with pytest.raises(Conflict, match="keeps no locks"):
        lock_home(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
