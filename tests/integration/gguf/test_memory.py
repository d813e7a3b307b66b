"""How much memory a conversion takes: that of its blocks, whatever the checkpoint's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.convert import convert, write_checkpoint

MOST_BYTES = 512 * 2**20


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kind", ["F16", "F32"])
def test_a_checkpoint_larger_than_two_gib_is_converted_in_less_than_half_a_gib(tmp_path: Path, kind: str) -> None:
    size = write_checkpoint(tmp_path / "checkpoint", 2.2, 128_256, holes=True)
    assert size > 2 * 2**30
    _, _, peak_bytes = convert(tmp_path / "checkpoint", tmp_path / "out.gguf", kind)
    assert (tmp_path / "out.gguf").stat().st_size > size
    assert peak_bytes < MOST_BYTES
    (tmp_path / "out.gguf").unlink()


def test_a_big_embedding_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    peaks = []
    for name, rows in (("small", 4_000), ("big", 40_000)):  # 16 and 160 MB in BF16
        write_checkpoint(tmp_path / name, 0.0, rows, holes=True)
        peaks.append(convert(tmp_path / name, tmp_path / f"{name}.gguf", "F16")[2])
    # The largest of all children counts, so the second can only be more; tokens for the rows are part of it.
    assert peaks[1] - peaks[0] < 48 * 2**20
