"""Promises of the time estimate: it grows with the work, shrinks with threads, and learns from earlier runs."""

from __future__ import annotations

import pytest

from service.domain.catalog import TensorInfo
from service.domain.estimates import QuantizeRun, level_seconds, quantize_seconds, slowness
from service.domain.quants import QUANTIZATIONS

BILLION = 10**9


def run(label: str, seconds: float, *, parameters: int = BILLION) -> QuantizeRun:
    return QuantizeRun(label, parameters, threads=2, has_importance=False, seconds=seconds)


@pytest.mark.parametrize("label", QUANTIZATIONS)
def test_every_level_has_an_estimate_that_scales(label: str) -> None:
    for importance in (False, True):
        one = level_seconds(label, BILLION, threads=1, has_importance=importance)
        two = level_seconds(label, BILLION, threads=2, has_importance=importance)
        twice = level_seconds(label, 2 * BILLION, threads=2, has_importance=importance)
        assert 0.5 < two < one < 10_000
        assert two < twice <= one + 1e-9
    assert level_seconds(label, 0, threads=0, has_importance=False) < 15


def test_a_plan_is_estimated_tensor_by_tensor() -> None:
    tensors = [TensorInfo("a", (1000, 500_000), "Q4_K", 1), TensorInfo("b", (1000, 250_000, 2), "Q4_K", 1)]
    assert quantize_seconds(tensors, threads=2, has_importance=False) == pytest.approx(
        level_seconds("Q4_K_M", BILLION, threads=2, has_importance=False)
    )


def test_earlier_runs_correct_the_estimate() -> None:
    expected = level_seconds("Q4_K_M", BILLION, threads=2, has_importance=False)
    assert slowness([]) == 1.0
    factor = slowness([run("Q4_K_M", 3 * expected), run("Q4_K_M", 3 * expected), run("Q8_0", 10_000.0)])
    assert factor == pytest.approx(3, rel=0.2)
    corrected = level_seconds("Q4_K_M", BILLION, threads=2, has_importance=False, slowness=factor)
    assert corrected == pytest.approx(3 * expected, rel=0.2)


def test_runs_that_say_nothing_are_passed_over() -> None:
    assert slowness([run("Q4_K_M", 0.2), run("NOPE", 50.0), run("Q8_0", 50.0, parameters=0)]) == 1.0
