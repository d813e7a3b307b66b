"""Two servers never share a home."""

from __future__ import annotations

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
