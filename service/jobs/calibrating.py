"""The step that leaves an importance matrix, in the job's child: computed, read from files, or both merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.gguf.files import read_header
from service.jobs.files import hash_and_sync, keep_readable
from service.jobs.messages import Calibrated, CalibrateStep
from service.quantization.calibration import collect
from service.quantization.importance import check_belongs, facts, merge
from service.quantization.importance_files import read_importance, write_importance
from service.quantization.windows import read_text

_COMPUTE_SHARE = 0.98


def calibrate(
    number: int, step: CalibrateStep, source: Path, *, threads: int, progress: Callable[[float, str], None]
) -> Calibrated:
    """Do the step. Raises InvalidModel for a file that is no importance matrix, and what `check_belongs`, `collect` and
    `merge` raise.
    """
    header = read_header(source)
    matrices = [read_importance(Path(path)) for path in step.include]
    for matrix in matrices:
        check_belongs(matrix, header)
    if step.text is not None:
        computed = collect(
            source,
            read_text(Path(step.text)),
            dataset=step.dataset,
            window=step.window,
            chunks=step.chunks,
            process_output=step.process_output,
            threads=threads,
            checkpoint=Path(step.checkpoint),
            progress=lambda done, total: progress(_COMPUTE_SHARE * done / total, f"chunk {done} of {total}"),
        )
        matrices.insert(0, computed)
    importance = matrices[0] if len(matrices) == 1 else merge(matrices)
    target = Path(step.target)
    write_importance(importance, target)
    size_bytes = target.stat().st_size
    digest = hash_and_sync(target)
    keep_readable(target, step.keep)
    return Calibrated(number, step.target, digest, size_bytes, facts(importance))
