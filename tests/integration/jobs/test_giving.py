"""A pulled file becomes a blob by a second name, and by its only one where the file system knows no second names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.jobs import pulling


def test_a_file_keeps_its_place_until_the_server_has_taken_it_in(tmp_path: Path) -> None:
    fetched, target = tmp_path / "fetched", tmp_path / "target"
    fetched.write_bytes(b"new")
    target.write_bytes(b"left by a run that was killed")
    pulling._give(fetched, target)
    assert target.read_bytes() == fetched.read_bytes() == b"new"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_second_names_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "fetched").write_bytes(b"new")
    pulling._give(tmp_path / "fetched", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert not (tmp_path / "fetched").exists()
