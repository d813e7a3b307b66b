"""The search's decisions on a model whose divergences are a formula: budgets, corrections, time, what it remembers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from service.domain.errors import InvalidParameter
from service.domain.evaluation import Estimate, Target
from service.quantization.choices import Choices
from service.quantization.known import Known
from service.quantization.losses import Meter
from service.quantization.search import Budget, Found, Search, budget

_NAMES = tuple(f"blk.{block}.{kind}.weight" for block in range(6) for kind in ("attn_q", "ffn_down"))
_SHAPE = (256, 64)
_SIZES = {"Q2_K": 5376, "Q3_K": 7040, "Q4_K": 9216, "Q6_K": 13440}
_ERRORS = {"Q2_K": 16.0, "Q3_K": 4.0, "Q4_K": 1.0, "Q6_K": 0.06}


def _loss(name: str, kind: str) -> float:
    minds = (4.0 if "ffn" in name else 0.5) / (1 + int(name.split(".")[1]))
    return 1e-3 * minds * _ERRORS[kind]


class _Bench:
    """Divergences that add up, but for `company`: how much more attention costs when it is not alone."""

    measurable = frozenset(_NAMES)
    most_windows = 100

    def __init__(self, company: float = 0.0, seconds: float = 0.0) -> None:
        self.company = company
        self.seconds = seconds
        self.windows = 0
        self.measured: list[dict[str, str]] = []

    def cut(self, _text: str, _chunks: int | None) -> np.ndarray:
        return np.zeros((50, 8), dtype=np.int32)

    def add_reference(self, _window: np.ndarray) -> None:
        time.sleep(self.seconds)
        self.windows += 1

    def forget_reference(self) -> None:
        self.windows = 0

    def value(self, types: Mapping[str, str]) -> float:
        grown = 1 + self.company * (len(types) > 1)
        return sum(_loss(name, kind) * (grown if "attn" in name else 1.0) for name, kind in types.items())

    def measure(self, types: Mapping[str, str], _progress: Callable[[float], None]) -> Estimate:
        self.measured.append(dict(types))
        return Estimate(self.value(types), 0.0)


class _Patches:
    """Errors in proportion to the losses within a role."""

    def error(self, _name: str, kind: str) -> float:
        return _ERRORS[kind]


def _choices(kept: Mapping[str, str] | None = None) -> Choices:
    return Choices(
        options={name: dict(_SIZES) for name in _NAMES},
        shapes=dict.fromkeys(_NAMES, _SHAPE),
        kept=kept or {},
        rest={"output_norm.weight": "F32"},
        rest_bytes=1000,
        rest_data_bytes=800,
        rest_weights=200,
    )


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Known]:
    """An empty memory."""
    with Known(tmp_path / "known") as opened:
        yield opened


def _learn(
    bench: _Bench, known: Known, *, chunks: int | None, how: str, max_seconds: float = 1e6, **more: Any
) -> Search:
    choices = more.get("choices") or _choices()
    meter = Meter(
        cast("Any", bench),
        cast("Any", _Patches()),
        choices,
        known,
        started=time.monotonic(),
        max_seconds=max_seconds,
        report=lambda share, detail: None,
    )
    return Search(meter, choices, meter.learn("text", chunks=chunks, how=how), seconds=more.get("seconds"))


def _find(bench: _Bench, known: Known, target: Budget, *, how: str = "measured", **more: Any) -> Found:
    return _learn(bench, known, chunks=3, how=how, **more).choose(target)


def _bytes(types: Mapping[str, str]) -> int:
    return 1000 + sum(_SIZES[kind] for kind in types.values())


@pytest.mark.parametrize("how", ["measured", "estimated"])
def test_a_mix_is_never_larger_than_asked_for_and_loses_less_than_any_one_type(known: Known, how: str) -> None:
    bench = _Bench()
    for kind in ("Q2_K", "Q3_K", "Q4_K"):
        even = dict.fromkeys(_NAMES, kind)
        found = _find(bench, known, Budget(_bytes(even), None, None), how=how)
        assert found.size_bytes == _bytes(found.types) <= _bytes(even)
        assert found.kld.value <= bench.value(even)
    assert found.kld.value < 0.8 * bench.value(even)


def test_every_pair_is_measured_or_few_groups_are(known: Known, tmp_path: Path) -> None:
    everything = _find(_Bench(), known, Budget(100_000, None, None))
    assert (everything.measured_pairs, everything.estimated_pairs) == (len(_NAMES) * len(_SIZES), 0)
    with Known(tmp_path / "other") as other:
        guided = _find(_Bench(), other, Budget(100_000, None, None), how="estimated")
    assert guided.measured_pairs < len(_NAMES)
    assert guided.measured_pairs + guided.estimated_pairs == len(_NAMES) * len(_SIZES)


def test_what_tensors_cost_in_company_corrects_what_they_cost_alone(known: Known, tmp_path: Path) -> None:
    bench = _Bench(company=4.0)
    target = Budget(1000 + 12 * 7000, None, None)
    found = _find(bench, known, target)
    alone = _Bench()
    with Known(tmp_path / "other") as other:
        naive = _find(alone, other, target)
    assert found.kld.value < bench.value(naive.types)


def test_a_search_without_time_still_gives_a_mix(known: Known) -> None:
    bench = _Bench(seconds=0.001)
    found = _learn(bench, known, chunks=None, how="auto", max_seconds=0.001).choose(
        Budget(1000 + 12 * 8000, None, None)
    )
    assert found.guide == "estimated"
    assert len(bench.measured) == 2 + 1  # the roles, and the mix


def test_pairs_that_time_was_too_short_for_are_told_from_the_others(known: Known) -> None:
    bench = _Bench()
    found = _learn(bench, known, chunks=3, how="measured", max_seconds=0.0).choose(Budget(100_000, None, None))
    assert len(bench.measured) == 1  # the mix
    assert (found.measured_pairs, found.estimated_pairs) == (0, len(_NAMES) * len(_SIZES))
    assert found.size_bytes <= 100_000


def test_with_time_enough_everything_is_measured(known: Known) -> None:
    search = _learn(_Bench(seconds=0.001), known, chunks=None, how="auto", max_seconds=1000.0)
    assert search.choose(Budget(100_000, None, None)).guide == "measured"


def test_nothing_is_measured_twice(known: Known) -> None:
    target = Budget(100_000, None, None)
    first = _Bench()
    found = _find(first, known, target)
    assert len({tuple(sorted(types.items())) for types in first.measured}) == len(first.measured)
    second = _Bench()
    assert _find(second, known, target).types == found.types
    assert not second.measured


def test_a_bound_on_the_divergence_is_kept_with_the_fewest_bytes(known: Known) -> None:
    bench = _Bench(company=0.5)
    found = _find(bench, known, Budget(None, 0.02, None))
    assert bench.value(found.types) <= 0.02
    tighter = _find(bench, known, Budget(found.size_bytes - 1700, None, None))
    assert bench.value(tighter.types) > 0.02
    with pytest.raises(InvalidParameter, match="the best measures"):
        _find(bench, known, Budget(None, 1e-6, None))
    with pytest.raises(InvalidParameter, match="more than the size allowed"):
        _find(bench, known, Budget(found.size_bytes - 1700, 0.02, None))


def test_a_bound_on_the_speed_is_a_budget_too(known: Known) -> None:
    slow = {name: {"Q2_K": 3.0, "Q3_K": 3.0, "Q4_K": 1.0, "Q6_K": 2.0} for name in _NAMES}
    found = _find(_Bench(), known, Budget(200_000, None, 14.0), seconds=slow)
    assert sum(slow[name][kind] for name, kind in found.types.items()) <= 14.0
    with pytest.raises(InvalidParameter, match=r"the fastest makes about 0\.1 tokens/s"):
        _find(_Bench(), known, Budget(200_000, None, 10.0), seconds=slow)


def test_tensors_that_stay_as_they_are_cost_nothing(known: Known) -> None:
    choices = _choices(kept=dict.fromkeys(_NAMES, "Q6_K"))
    bench = _Bench()
    found = _find(bench, known, Budget(1000 + 12 * 13000, None, None), choices=choices)
    assert all("Q6_K" not in types.values() for types in bench.measured)
    assert found.kld.value == pytest.approx(sum(_loss(n, k) for n, k in found.types.items() if k != "Q6_K"))


def test_bits_for_a_weight_are_bytes_of_the_whole_file() -> None:
    choices = _choices()
    count = len(_NAMES) * 256 * 64 + 200
    found = budget(Target(bits_per_weight=4.5), choices)
    assert found.bytes is not None
    data = found.bytes - choices.rest_bytes + choices.rest_data_bytes
    assert data * 8 / count <= 4.5
    with pytest.raises(InvalidParameter, match="the smallest of these types takes 65512 bytes"):
        budget(Target(size_bytes=65_511), choices)
