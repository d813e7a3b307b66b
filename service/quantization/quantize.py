"""Make what a recipe says of a model, say how far it is, and check that the result is what was planned.

Runs in child processes: llama.cpp's quantizer has no abort, and asserts here and there. Files in, file out; knows
nothing of jobs or store.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.catalog import LevelPlan
from service.domain.errors import (
    DiskFull,
    ImportanceMatrixRequired,
    InvalidModel,
    InvalidParameter,
    LoadFailed,
    LossySource,
    QuantizationFailed,
    QuantizationNotApplicable,
)
from service.domain.quants import UNQUANTIZED_TYPES
from service.domain.recipes import Recipe
from service.gguf.files import read_header
from service.gguf.header import Header, weights
from service.llama.model import Model
from service.llama.quantizer import quantize_model
from service.quantization.layout import weighted_tensors
from service.quantization.log import LogLines, read_started
from service.quantization.options import Applied, apply, listed
from service.quantization.plan import plan_recipe, without_paths

Importance = Mapping[str, NDArray[np.float32]]
"""A weight for each input column, by the tensor's name in the source: flat, all experts one after the other."""

# What libstdc++ and libc++ say when a write to an ofstream fails.
_WRITE_FAILURES = ("iostream error", "basic_ios", "ios_base", "unspecified iostream_category")


@dataclass(frozen=True, slots=True)
class TensorProgress:
    """How far a level is: tensor `index` (from 1) of `count` has begun, or the last one has ended.

    `bytes_done` of `bytes_total` source bytes lie behind it; only at the end are they equal.
    """

    index: int
    count: int
    name: str
    bytes_done: int
    bytes_total: int


def quantize(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    importance: Importance | None = None,
    threads: int,
    progress: Callable[[TensorProgress], None],
) -> Header:
    """Make what `recipe`, checked and with a level, says of `source` at `target`; the header of what was made.

    The bytes made depend on the source, the recipe and the importance alone. `threads` 0 means all cores. On failure
    no file is left at `target`. Raises LossySource, ImportanceMatrixRequired, QuantizationNotApplicable, or
    InvalidParameter for an importance matrix of another model, before any work; DiskFull, QuantizationFailed;
    InvalidModel for the source; and whatever `progress` raised, once llama.cpp has returned.
    """
    header = read_header(source)
    plan, types = plan_recipe(source, header, recipe, has_importance=importance is not None)
    if plan.error is not None:
        raise QuantizationNotApplicable(plan.error, param="to")
    applied = apply(header, recipe)
    if importance is not None:
        _check_importance(header, importance)
    _check_importance_suffices(applied, plan, types, importance)
    _check_lossless(header, recipe)
    done = False
    try:
        _run(source, target, applied, plan, importance, threads, progress)
        made = _read_back(target, plan)
        wrong = [tensor.name for tensor in made.tensors if types.get(tensor.name) != tensor.type]
        if wrong or len(made.tensors) != len(types) or made.file_size != plan.size_bytes:
            raise QuantizationFailed(
                f"The {plan.quantization} file is not what was planned: {len(wrong)} tensors have another type and it "
                f"has {made.file_size} bytes instead of {plan.size_bytes}. Report this with the version of quantry."
            )
        if recipe.metadata or recipe.prune_layers:
            _check_loads(target)
        done = True
        return made
    finally:
        if not done:
            target.unlink(missing_ok=True)


def _check_importance(header: Header, importance: Importance) -> None:
    """Refuse the importance matrix of another model: tensors that this one does not have, or has in another shape."""
    columns = {tensor.name: weights((tensor.shape[0], *tensor.shape[2:])) for tensor in header.tensors}
    strange = [name for name, values in importance.items() if values.size != columns.get(name)]
    if strange:
        raise InvalidParameter(
            f"The importance matrix is of another model: {len(strange)} of its {len(importance)} tensors are not in "
            f"this one, or not with as many columns: {listed(strange)}. Compute one with this model.",
            param="imatrix",
        )


def _check_importance_suffices(
    applied: Applied, plan: LevelPlan, types: Mapping[str, str], importance: Importance | None
) -> None:
    if not plan.needs_imatrix:
        return
    if importance is None:
        raise ImportanceMatrixRequired(
            f"llama.cpp makes {plan.quantization} of this model only with an importance matrix; have one computed with "
            'imatrix "auto", or choose a level that needs none, such as Q2_K or larger.',
            param="to",
        )
    weighted = frozenset(weighted_tensors(applied.header, types, plan.quantization))
    pairs = zip(applied.header.tensors, applied.source_names, strict=True)
    missing = [name for tensor, name in pairs if tensor.name in weighted and name not in importance]
    if missing:
        raise ImportanceMatrixRequired(
            f"The importance matrix has no values for {len(missing)} tensors that {plan.quantization} converts only "
            f"with them: {listed(missing)}. Compute one on more text, or give those tensors another type.",
            param="imatrix",
        )


def _check_lossless(header: Header, recipe: Recipe) -> None:
    if not recipe.allow_requantize and any(tensor.type not in UNQUANTIZED_TYPES for tensor in header.tensors):
        raise LossySource(
            "The source is quantized already, and quantizing it again adds to its loss; use the F16, BF16 or F32 "
            "original, or set allow_requantize.",
            param="allow_requantize",
        )


def _check_loads(target: Path) -> None:
    """Other metadata or fewer blocks may leave a file that llama.cpp cannot read: that shows only here."""
    try:
        Model(target, gpu_layers=0, use_extra_buffers=False).close()
    except LoadFailed as error:
        raise QuantizationFailed(
            f"With this metadata, or without these blocks, the model cannot be loaded. {error.message} Leave metadata "
            "and prune_layers out, or change them."
        ) from None


def _run(
    source: Path,
    target: Path,
    applied: Applied,
    plan: LevelPlan,
    importance: Importance | None,
    threads: int,
    progress: Callable[[TensorProgress], None],
) -> None:
    watcher = _Watcher(applied.header, progress)
    try:
        quantize_model(source, target, applied.recipe, importance=importance, threads=threads, on_log=watcher)
    except QuantizationFailed as error:
        if target.exists() and any(words in error.message for words in _WRITE_FAILURES):
            raise _disk_full(target, plan) from None
        raise QuantizationFailed(without_paths(error.message, source, target)) from None
    watcher.finish()


def _read_back(target: Path, plan: LevelPlan) -> Header:
    """The header of what was written. llama.cpp does not notice every failed write, so a short file is a full disk."""
    if target.stat().st_size < plan.size_bytes:
        raise _disk_full(target, plan)
    try:
        return read_header(target)
    except InvalidModel as error:
        raise QuantizationFailed(f"llama.cpp wrote a {plan.quantization} file that is none: {error.message}") from None


def _disk_full(target: Path, plan: LevelPlan) -> DiskFull:
    written = target.stat().st_size if target.exists() else 0
    free = shutil.disk_usage(target.parent).free + written
    return DiskFull(
        f"The disk could not take the {plan.quantization} file: it needs {plan.size_bytes} bytes, and {free} are free "
        "less any quota or file size limit. Make room, or delete variants that are not needed, and start again."
    )


class _Watcher:
    """Turns llama.cpp's log into progress. An error of the listener is kept until C++ has returned."""

    def __init__(self, header: Header, progress: Callable[[TensorProgress], None]) -> None:
        self._sizes = {tensor.name: tensor.size_bytes for tensor in header.tensors}
        self._total = sum(self._sizes.values())
        self._progress = progress
        self._lines = LogLines()
        self._index = 0
        self._last = ""
        self._done = 0
        self._failure: Exception | None = None

    def __call__(self, piece: str) -> None:
        lines = self._lines.feed(piece)
        for text in (*lines, self._lines.partial):
            started = read_started(text)
            if started is None or started.index <= self._index or started.name not in self._sizes:
                continue
            self._done += self._sizes.get(self._last, 0)
            self._index, self._last = started.index, started.name
            self._tell()

    def finish(self) -> None:
        """After llama.cpp's success: the last report, and the listener's error if it had one."""
        self._done = self._total
        self._tell()
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        if self._failure is not None:
            return
        try:
            self._progress(TensorProgress(self._index, len(self._sizes), self._last, self._done, self._total))
        except Exception as error:  # it must not unwind through C++
            self._failure = error
