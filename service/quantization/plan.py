"""What each level of a model would be, before any work: type of every tensor, exact size, what it needs.

Runs in child processes. llama.cpp's own dry run decides the types, so plan and result cannot disagree; what follows
from the types is `layout.py`. Knows nothing of jobs, store or HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.domain.catalog import LevelPlan
from service.domain.errors import QuantizationFailed
from service.domain.quants import QUANTIZATIONS
from service.gguf.header import DEFAULT_ALIGNMENT, Header
from service.llama.quantizer import quantize_model
from service.quantization.layout import level_plan, refused
from service.quantization.log import LogLines, read_dry_run


def plan_levels(path: Path, header: Header, labels: Iterable[str]) -> tuple[LevelPlan, ...]:
    """Plan `labels` (canonical) for the file at `path` with this header, in the order given.

    A level that cannot be made, or would not be what its name says, gets its reason in `error`, and size 0.
    """
    return tuple(plan_level(path, header, label)[0] for label in labels)


def plan_level(path: Path, header: Header, label: str) -> tuple[LevelPlan, Mapping[str, str]]:
    """As `plan_levels` for one level, with the type that each tensor would have; no types when there is an error."""
    level = QUANTIZATIONS[label]
    if header.alignment != DEFAULT_ALIGNMENT:
        # The quantizer copies general.alignment and then writes with 32: no reader could open the result.
        reason = (
            f"The file aligns its tensors to {header.alignment} bytes and llama.cpp's quantizer writes only "
            f"{DEFAULT_ALIGNMENT}; convert the model again without general.alignment."
        )
        return refused(label, reason), {}
    joiner = LogLines()
    lines: list[str] = []
    try:
        quantize_model(
            path,
            Path(os.devnull),
            file_type=level.file_type,
            allow_requantize=True,
            dry_run=True,
            threads=1,
            on_log=lambda piece: lines.extend(joiner.feed(piece)),
        )
    except QuantizationFailed as error:
        return refused(label, f"{without_paths(error.message, path)} Choose another level."), {}
    run = read_dry_run(lines)
    if run.types.keys() != {tensor.name for tensor in header.tensors}:
        reason = "llama.cpp's dry run did not report every tensor; install the build that this version asks for."
        return refused(label, reason), {}
    plan = level_plan(header, level, run)
    return plan, {} if plan.error else run.types


def without_paths(message: str, *paths: Path) -> str:
    """A message of llama.cpp's without the places of files."""
    for path in paths:
        message = message.replace(str(path), "the file")
    return message
