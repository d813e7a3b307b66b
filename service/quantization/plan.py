"""What a recipe would make of a model, before any work: type of every tensor, exact size, what it needs.

Runs in child processes. llama.cpp's own dry run decides the types, so plan and result cannot disagree; what the options
mean for the file is `options.py`, what follows from the types `layout.py`. Knows nothing of jobs, store or HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.domain.catalog import LevelPlan
from service.domain.errors import QuantizationFailed, QuantizationNotApplicable
from service.domain.recipes import Recipe
from service.gguf.header import DEFAULT_ALIGNMENT, Header
from service.llama.quantizer import quantize_model
from service.quantization.layout import level_plan, refused
from service.quantization.log import DryRun, LogLines, read_dry_run
from service.quantization.options import Applied, apply

# A dry run asks only whether there is an importance matrix.
_ANY_IMPORTANCE = {"any": np.ones(1, dtype=np.float32)}


def plan_levels(path: Path, header: Header, labels: Iterable[str]) -> tuple[LevelPlan, ...]:
    """Plan `labels` (canonical) without options for the file at `path` with this header, in the order given.

    A level that cannot be made, or would not be what its name says, gets its reason in `error`, and size 0. Tensors and
    notes are left out: these plans are kept of every file.
    """
    return tuple(replace(plan_level(path, header, label)[0], tensors=(), notes=()) for label in labels)


def plan_level(path: Path, header: Header, label: str) -> tuple[LevelPlan, Mapping[str, str]]:
    """`plan_recipe` for a level (canonical label) without options."""
    return plan_recipe(path, header, Recipe(label), has_importance=False)


def plan_recipe(
    path: Path, header: Header, recipe: Recipe, *, has_importance: bool
) -> tuple[LevelPlan, Mapping[str, str]]:
    """Plan a checked recipe with a level for the file at `path` with this header; the type of each tensor as well.

    `has_importance`: an importance matrix will be given, which changes the types of some levels. A recipe that cannot
    be carried out, or would do other than it says, gets its reason in `error`, size 0 and no types.
    """
    try:
        applied = apply(header, recipe)
        run = dry_run(path, applied, has_importance=has_importance)
    except QuantizationNotApplicable as error:
        return refused(recipe.quantization, error.message), {}
    plan = level_plan(applied, run)
    return plan, {} if plan.error else run.types


def dry_run(path: Path, applied: Applied, *, has_importance: bool) -> DryRun:
    """The types that llama.cpp would give to the tensors. Raises QuantizationNotApplicable with its reason."""
    if applied.header.alignment != DEFAULT_ALIGNMENT:
        # The quantizer copies general.alignment and then writes with 32: no reader could open the result.
        raise QuantizationNotApplicable(
            f"The file aligns its tensors to {applied.header.alignment} bytes and llama.cpp's quantizer writes only "
            f"{DEFAULT_ALIGNMENT}; convert the model again without general.alignment."
        )
    joiner = LogLines()
    lines: list[str] = []
    try:
        quantize_model(
            path,
            Path(os.devnull),
            replace(applied.recipe, allow_requantize=True),
            importance=_ANY_IMPORTANCE if has_importance else None,
            dry_run=True,
            threads=1,
            on_log=lambda piece: lines.extend(joiner.feed(piece)),
        )
    except QuantizationFailed as error:
        raise QuantizationNotApplicable(f"{without_paths(error.message, path)} Choose another level.") from None
    run = read_dry_run(lines)
    if run.types.keys() != {tensor.name for tensor in applied.header.tensors}:
        raise QuantizationNotApplicable(
            "llama.cpp's dry run did not report every tensor; install the build that this version asks for."
        )
    return run


def without_paths(message: str, *paths: Path) -> str:
    """A message of llama.cpp's without the places of files."""
    for path in paths:
        message = message.replace(str(path), "the file")
    return message
