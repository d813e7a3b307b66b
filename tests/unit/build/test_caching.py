"""Where built and fetched files are kept, and that a reader never sees half of one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from caching import CacheError, cache_root, lock, publish, sha256_of, staging


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"QUANTRY_WHEEL_CACHE": "/srv/wheels", "XDG_CACHE_HOME": "/xdg"}, "/srv/wheels"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/quantry"),
        ({"XDG_CACHE_HOME": "relative/is/ignored"}, "/home/someone/.cache/quantry"),
        ({}, "/home/someone/.cache/quantry"),
    ],
)
def test_the_cache_lies_outside_the_clone_and_where_it_is_told(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUANTRY_WHEEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **environ}.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "kept" / "entry"
    for content in ("old", "new"):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "file").write_text(content)
        publish(staged, final)
    assert (final / "file").read_text() == "new"
    assert not staged.exists()


def test_a_scratch_folder_left_by_a_killed_build_is_emptied_first(tmp_path: Path) -> None:
    left = tmp_path / ".key.staging"
    left.mkdir()
    (left / "half").touch()
    with staging(left) as folder:
        assert list(folder.iterdir()) == []
    assert not left.exists()


def test_a_second_holder_of_the_lock_is_told_to_wait_and_then_given_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".lock"
    with lock(path), pytest.raises(CacheError, match="another build"), lock(path, timeout_seconds=0):
        pass
    assert "waiting for another build" in capsys.readouterr().err
    with lock(path, timeout_seconds=0):
        pass


def test_sums_are_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
