"""How long quantizing takes: weights a second by tensor type, on one machine, and how this one compares. Pure.

The rates are for telling seconds from hours before any work, and for nothing else: earlier runs here correct them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from service.domain.catalog import TensorInfo
from service.domain.quants import QUANTIZATIONS

# Million weights a second and thread, without and with an importance matrix: ggml_quantize_chunk of llama.cpp 0c1e570
# on rows of 2048, AVX-512, 2026.
_RATES: dict[str, tuple[float, float]] = {
    "F32": (7600, 7600), "F16": (540, 540), "BF16": (1800, 1800),
    "Q8_0": (220, 220), "Q5_1": (360, 7.1), "Q5_0": (320, 30), "Q4_1": (460, 7.1), "Q4_0": (480, 30),
    "Q6_K": (27, 26), "Q5_K": (14.5, 6.8), "Q4_K": (12.2, 7.0), "Q3_K": (70, 21), "Q2_K": (13.5, 6.0),
    "IQ4_NL": (3.8, 3.8), "IQ4_XS": (3.9, 3.9), "IQ3_S": (2.7, 2.7), "IQ3_XXS": (1.8, 1.8), "IQ2_S": (4.1, 4.1),
    "IQ2_XS": (1.2, 1.2), "IQ2_XXS": (2.7, 2.7), "IQ1_M": (5.8, 5.8), "IQ1_S": (5.4, 5.4),
    "TQ2_0": (240, 240), "TQ1_0": (240, 240), "Q2_0": (220, 220), "Q1_0": (180, 180), "MXFP4": (160, 160),
    "NVFP4": (37, 37),
}  # fmt: skip
_OTHER_RATE = (12.0, 6.0)
_MOVING_RATE = 250e6  # weights a second and thread that are read, made floats of, checked and written
# Codebooks that are searched once in a process, on one thread.
_CODEBOOK_SECONDS = {
    "IQ1_S": 10.7,
    "IQ1_M": 10.7,
    "IQ2_S": 4.9,
    "IQ2_XS": 2.4,
    "IQ2_XXS": 1.2,
    "IQ3_S": 0.3,
    "IQ3_XXS": 0.1,
}
_START_SECONDS = 0.1  # opening, planning, reading back
_SHORT_SECONDS = 1.0  # shorter runs tell more of the start than of the machine
_MOST_RUNS = 50


@dataclass(frozen=True, slots=True)
class QuantizeRun:
    """One level that was made here."""

    quantization: str
    parameters: int
    threads: int
    has_importance: bool
    seconds: float


def quantize_seconds(
    tensors: Iterable[TensorInfo], *, threads: int, has_importance: bool, slowness: float = 1.0
) -> float:
    """Seconds to make a file with these tensors, as a plan has them; `slowness` is that of this machine."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + math.prod(tensor.shape)
    return _seconds(weights, threads, has_importance, slowness)


def level_seconds(
    quantization: str, parameters: int, *, threads: int, has_importance: bool, slowness: float = 1.0
) -> float:
    """As `quantize_seconds` from the level alone, as if all weights had its base type."""
    return _seconds({QUANTIZATIONS[quantization].base_type: parameters}, threads, has_importance, slowness)


def slowness(runs: Sequence[QuantizeRun]) -> float:
    """How much longer this machine takes than the rates say, from the newest runs (last): the median; 1 without any."""
    factors = []
    for run in runs[-_MOST_RUNS:]:
        if run.seconds < _SHORT_SECONDS or run.quantization not in QUANTIZATIONS or run.parameters < 1:
            continue
        expected = level_seconds(
            run.quantization, run.parameters, threads=run.threads, has_importance=run.has_importance
        )
        factors.append((run.seconds - _START_SECONDS) / (expected - _START_SECONDS))
    return median(factors) if factors else 1.0


def _seconds(weights: Mapping[str, int], threads: int, has_importance: bool, slowness: float) -> float:
    moved = sum(weights.values()) / _MOVING_RATE
    made = sum(count / (_RATES.get(kind, _OTHER_RATE)[has_importance] * 1e6) for kind, count in weights.items())
    searched = sum(_CODEBOOK_SECONDS.get(kind, 0.0) for kind in weights)
    return _START_SECONDS + slowness * ((moved + made) / max(1, threads) + searched)
