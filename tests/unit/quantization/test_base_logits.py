"""The file of a source's log-probabilities: whole or on its way, never wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.errors import DiskFull, JobFailed
from service.quantization.base_logits import BaseLogits, BaseLogitsPart, open_base, scored_rows
from service.quantization.compact import compact_into, compact_width

WINDOW, VOCABULARY = 16, 31
ORIGIN = {"text": "sha256:1", "llama_build": "b1"}
WINDOWS = np.random.default_rng(5).integers(0, VOCABULARY, (4, WINDOW)).astype(np.int32)


def rows_of(chunk: int) -> NDArray[np.uint16]:
    logits = np.random.default_rng(chunk).normal(size=(scored_rows(WINDOW), VOCABULARY)).astype(np.float32)
    rows = np.zeros((scored_rows(WINDOW), compact_width(VOCABULARY)), dtype=np.uint16)
    compact_into(rows, logits, np.zeros(len(logits), dtype=np.int32), np.empty_like(logits))
    return rows


def write(path: Path, chunks: int = 4, origin: dict[str, str] = ORIGIN) -> int:
    """Go on with the file for so many chunks; how many were there before."""
    with BaseLogitsPart(path, origin) as part:
        part.begin(WINDOWS, VOCABULARY)
        before = part.done
        while part.done < min(before + chunks, len(WINDOWS)):
            part.add(rows_of(part.done))
        if part.done == len(WINDOWS):
            part.finish()
    return before


def the_part(path: Path) -> Path:
    (part,) = path.parent.glob("*.part")
    return part


def check(path: Path) -> None:
    with BaseLogits(path) as base:
        assert np.array_equal(base.windows, WINDOWS)
        assert base.vocabulary == VOCABULARY
        assert base.origin == ORIGIN
        for chunk in range(4):
            assert np.array_equal(base.chunk(chunk), rows_of(chunk))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write(tmp_path / "base") == 0
    check(tmp_path / "base")
    assert os.listdir(tmp_path) == ["base"]


def test_the_file_begins_as_llama_perplexity_writes_it(tmp_path: Path) -> None:
    write(tmp_path / "base")
    data = (tmp_path / "base").read_bytes()
    assert data[:8] == b"_logits_"
    assert np.frombuffer(data, np.int32, 3, 8).tolist() == [WINDOW, VOCABULARY, 4]
    assert np.frombuffer(data, np.int32, 64, 20).tolist() == WINDOWS.ravel().tolist()
    assert data[20 + 256 :].startswith(rows_of(0).tobytes() + rows_of(1).tobytes())


def test_work_goes_on_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "base"
    assert write(path, chunks=3) == 0
    assert not path.exists()
    assert open_base(path, ORIGIN) is None
    assert write(path) == 3
    check(path)


@pytest.mark.parametrize("lost", [1, 100, 700])
def test_a_part_that_was_cut_off_anywhere_is_mended(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "base"
    write(path, chunks=3)
    part = the_part(path)
    os.truncate(part, part.stat().st_size - lost)
    assert write(path) < 3
    check(path)


def test_holes_left_by_a_loss_of_power_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "base"
    write(path, chunks=3)
    part = the_part(path)
    chunk_bytes = rows_of(0).nbytes
    with part.open("r+b") as file:
        file.seek(20 + WINDOWS.nbytes + chunk_bytes + 10)
        file.write(bytes(chunk_bytes))
    assert write(path) == 1
    check(path)


def test_a_part_for_other_windows_is_started_over(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with BaseLogitsPart(path, ORIGIN) as part:
        part.begin(WINDOWS[::-1].copy(), VOCABULARY)
        part.add(rows_of(9))
    assert write(path) == 0
    check(path)


def test_a_file_of_another_origin_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "base"
    write(path, origin={"text": "sha256:2", "llama_build": "b1"})
    assert open_base(path, ORIGIN) is None
    reader = BaseLogits(path)  # of the old file, and it goes on
    assert write(path) == 0
    check(path)
    assert np.array_equal(reader.chunk(3), rows_of(3))
    assert reader.origin != ORIGIN
    reader.close()


def test_two_never_write_the_same_part(tmp_path: Path) -> None:
    with BaseLogitsPart(tmp_path / "base", ORIGIN) as part:
        part.begin(WINDOWS, VOCABULARY)
        part.add(rows_of(0))
        with pytest.raises(BlockingIOError):
            BaseLogitsPart(tmp_path / "base", ORIGIN)
    assert write(tmp_path / "base") == 1
    check(tmp_path / "base")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-200],
        lambda data: b"",
        lambda data: data[:10],
        lambda data: b"GGUF" + data[4:],
        lambda data: data[:8] + b"\xff\xff\xff\x7f" * 3 + data[20:],
        lambda data: data[:8] + bytes(12) + data[20:],
        lambda data: data + bytes(10_000),
        lambda data: data[:-20] + b"\xff" * 20,
    ],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "base"
    write(path)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    assert open_base(path, ORIGIN) is None
    write(path)
    check(path)


def test_rows_of_a_whole_file_that_were_lost_are_noticed_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "base"
    write(path)
    data = bytearray(path.read_bytes())
    start = 20 + WINDOWS.nbytes + rows_of(0).nbytes
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with BaseLogits(path) as base, pytest.raises(JobFailed, match="again"):
        base.chunk(1)
    write(path)
    check(path)


def test_a_disk_without_room_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with BaseLogitsPart(tmp_path / "base", ORIGIN) as part, pytest.raises(DiskFull, match="fewer chunks"):
        part.begin(WINDOWS, VOCABULARY)
