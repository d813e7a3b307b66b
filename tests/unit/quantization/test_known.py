"""Measurements kept between runs of a search."""

from __future__ import annotations

from pathlib import Path

from service.quantization.known import Known

_ONE = {"blk.0.attn_q.weight": "Q4_K"}
_TWO = {"blk.0.attn_q.weight": "Q4_K", "blk.1.attn_q.weight": "Q5_K"}


def test_what_was_measured_is_known_to_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "known"
    with Known(path) as known:
        known.begin(4, 9)
        known.add(_ONE, 100, 0.25, 0.01)
        known.add(_TWO, 200, 0.5, 0.02)
    with Known(path) as known:
        assert known.windows == 4
        known.begin(4, 9)
        assert known.get(_ONE) == (0.25, 0.01)
        assert known.get(dict(reversed(_TWO.items()))) == (0.5, 0.02)
        assert known.get({}) is None


def test_a_line_cut_short_costs_that_measurement_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "known"
    with Known(path) as known:
        known.begin(4, 9)
        known.add(_ONE, 100, 0.25, 0.01)
        known.add(_TWO, 200, 0.5, 0.02)
    path.write_bytes(path.read_bytes()[:-20])
    with Known(path) as known:
        assert known.get(_ONE) == (0.25, 0.01)
        assert known.get(_TWO) is None
        known.add(_TWO, 200, 0.75, 0.02)
    with Known(path) as known:
        assert known.get(_TWO) == (0.75, 0.02)


def test_measurements_over_other_windows_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "known"
    with Known(path) as known:
        known.begin(4, 9)
        known.add(_ONE, 100, 0.25, 0.01)
    with Known(path) as known:
        known.begin(8, 9)
        assert known.get(_ONE) is None
        known.add(_ONE, 100, 0.5, 0.01)
    with Known(path) as known:
        assert known.windows == 8
        assert known.get(_ONE) == (0.5, 0.01)


def test_lines_that_are_no_measurements_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text('{"windows": 2, "of": 9}\nnonsense\n[]\n{"tensor": 1}\n{"mix": "a", "mean_kld": NaN, "error": 0}\n')
    with Known(path) as known:
        assert known.windows == 2
