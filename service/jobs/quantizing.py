"""The step that makes one level, in the job's child: quantize, read back, hash, fsync, plan, report.

Every file gets plans, lossy ones too. A dry run takes 3 ms (gloss) to 60 ms (49k tokens of vocabulary) whatever the
number of weights, so 35 of them cost seconds where a level of a 7B model costs minutes; and a lossy file may be all
that is kept, with its source deleted, when someone asks what else can be made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.jobs import MadeFile
from service.domain.quants import QUANTIZATIONS
from service.gguf.files import facts
from service.gguf.header import Header
from service.jobs.files import hash_and_sync, keep_readable
from service.jobs.messages import LevelStep, Made
from service.llama.backend import build
from service.quantization.plan import plan_levels
from service.quantization.quantize import TensorProgress, quantize

Progress = Callable[[float, str], None]

# Shares of a level's progress: making it, reading it once more; the rest is planning.
_QUANTIZE_SHARE = 0.9
_HASH_SHARE = 0.05


def make_level(
    number: int,
    step: LevelStep,
    source: Path,
    importance: Mapping[str, NDArray[np.float32]] | None,
    *,
    threads: int,
    progress: Progress,
) -> Made:
    """Do the step. Raises what `quantize` raises, and OSError."""

    def report(told: TensorProgress) -> None:
        share = told.bytes_done / told.bytes_total if told.bytes_total else 1.0
        progress(share * _QUANTIZE_SHARE, f"tensor {told.index} of {told.count}")

    target = Path(step.target)
    started_at = time.monotonic()
    header = quantize(source, target, step.recipe, importance=importance, threads=threads, progress=report)
    return finish_file(number, target, header, step.keep, time.monotonic() - started_at, progress)


def finish_file(number: int, target: Path, header: Header, keep: str, seconds: float, progress: Progress) -> Made:
    """What the server is to know of a model file that was made in `seconds`; it stays readable as `keep`."""

    def report(done: int) -> None:
        progress(_QUANTIZE_SHARE + _HASH_SHARE * min(1.0, done / header.file_size), "hashing")

    digest = hash_and_sync(target, report)
    progress(_QUANTIZE_SHARE + _HASH_SHARE, "planning")
    plans = plan_levels(target, header, QUANTIZATIONS)
    keep_readable(target, keep)
    return Made(number, MadeFile(str(target), digest, header.file_size, facts(header), plans, seconds), build().name)
