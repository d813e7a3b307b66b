"""The steps of a quantize job, in the job's child: per level quantize, read back, hash, fsync, plan, report.

Every file gets plans, lossy ones too. A dry run takes 3 ms (gloss) to 60 ms (49k tokens of vocabulary) whatever the
number of weights, so 35 of them cost seconds where a level of a 7B model costs minutes; and a lossy file may be all
that is kept, with its source deleted, when someone asks what else can be made.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from service.domain.jobs import MadeFile
from service.domain.quants import QUANTIZATIONS
from service.gguf.files import facts
from service.jobs.limits import limit_file_size
from service.jobs.messages import LevelTask, Made, QuantizeTask
from service.jobs.outbox import Outbox
from service.llama.backend import build
from service.quantization.plan import plan_levels
from service.quantization.quantize import TensorProgress, quantize

# Shares of a level's progress: making it, reading it once more; the rest is planning.
_QUANTIZE_SHARE = 0.9
_HASH_SHARE = 0.05
_CHUNK_BYTES = 1024 * 1024


def quantize_levels(task: QuantizeTask, outbox: Outbox) -> None:
    """Do the task and send one `Made` per level. Raises what `quantize` raises, and OSError."""
    limit_file_size(max(level.expected_bytes for level in task.levels))
    for step, level in enumerate(task.levels):
        outbox.send(_make(task, step, level, outbox))


def _make(task: QuantizeTask, step: int, level: LevelTask, outbox: Outbox) -> Made:
    def report(progress: TensorProgress) -> None:
        share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 1.0
        outbox.progress(step, share * _QUANTIZE_SHARE, f"tensor {progress.index} of {progress.count}")

    target = Path(level.target)
    outbox.progress(step, 0.0)
    started_at = time.monotonic()
    header = quantize(
        Path(task.source),
        target,
        level.quantization,
        allow_requantize=task.allow_requantize,
        threads=task.threads,
        progress=report,
    )
    duration = time.monotonic() - started_at
    digest = _hash_and_sync(target, header.file_size, step, outbox)
    outbox.progress(step, _QUANTIZE_SHARE + _HASH_SHARE, "planning")
    plans = plan_levels(target, header, QUANTIZATIONS)
    file = MadeFile(str(target), digest, header.file_size, facts(header), plans, duration)
    return Made(step, file, build().name)


def _hash_and_sync(path: Path, size_bytes: int, step: int, outbox: Outbox) -> str:
    hasher = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            share = _QUANTIZE_SHARE + _HASH_SHARE * min(1.0, done / size_bytes)
            outbox.progress(step, share, "hashing")
        os.fsync(file.fileno())
    return f"sha256:{hasher.hexdigest()}"
