"""The search step, in the job's child: files in, the mix of a budget and how it was found out.

What the parts are is in `service.quantization` (choices, sensitivity, guide, knapsack, search); here they are put
together around one source: the copy that is measured on, the speeds where they matter, the file made at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter, LossySource
from service.domain.evaluation import Estimate, SearchReport
from service.domain.quants import UNQUANTIZED_TYPES
from service.domain.recipes import Recipe
from service.gguf.files import dimensions, read_header
from service.gguf.header import Header
from service.jobs.messages import SearchStep
from service.llama.quantizer import quantize_model
from service.machine import usable_cores
from service.quantization.choices import Choices, find_choices, mix_recipe
from service.quantization.importance import check_belongs, weights
from service.quantization.importance_files import read_importance
from service.quantization.known import Known
from service.quantization.losses import Meter
from service.quantization.patches import Patches
from service.quantization.quantize import TensorProgress, quantize
from service.quantization.search import Found, Search, budget
from service.quantization.sensitivity import Bench
from service.quantization.type_speeds import tensor_seconds, type_seconds
from service.quantization.windows import read_text

Report = Callable[[float, str], None]

_MEASURED_TYPES = frozenset({"F16", "F32"})  # what the bench can overwrite
# Shares of the progress; the rest is making the mix.
_COPY_SHARE = 0.03
_SPEED_SHARE = 0.1
_SEARCH_SHARE = 0.9
_MADE_SHARE = 0.97
_ATTEMPTS = 3  # at a bound on the divergence


def search(step: SearchStep, source: Path, *, threads: int, progress: Report) -> tuple[Header, Recipe, SearchReport]:
    """Find the mix for `step.target`, make it at `step.made`; its header, its recipe and the report.

    `threads` 0 means all usable cores. `step.max_seconds` bounds the search, not the making of files. Raises
    InvalidParameter for a target that cannot be kept or that the source keeps already, LossySource, what
    `find_choices`, `Search` and `quantize` raise, and whatever `progress` raises. On failure nothing is left.
    """
    with ExitStack() as stack:
        return _Run(step, source, threads or usable_cores(), progress, stack).result()


class _Run:
    """One search step; what it opens is closed with `stack`."""

    def __init__(self, step: SearchStep, source: Path, threads: int, progress: Report, stack: ExitStack) -> None:
        self._started = time.monotonic()
        self._step = step
        self._source = source
        self._threads = threads
        self._progress = progress
        self._stack = stack
        self._header = read_header(source)
        _check_source(self._header, step.recipe)
        self._importance = _importance(step, self._header)

    def result(self) -> tuple[Header, Recipe, SearchReport]:
        """Search, make, look at what was made."""
        step = self._step
        self._progress(0.0, "what each tensor may be")
        choices = find_choices(self._source, self._header, step.recipe, step.types, frozenset(self._importance or ()))
        target = budget(step.target, choices)
        seconds = None if target.seconds is None else self._speeds(choices)
        bench, meter = self._prepared(choices, after=_COPY_SHARE + _SPEED_SHARE * (seconds is not None))
        losses = meter.learn(read_text(Path(step.text.path)), chunks=step.text.chunks, how=step.guide)
        engine = Search(meter, choices, losses, seconds=seconds)
        attempt = 0
        while True:
            found = engine.choose(target)
            _check_anything_to_make(found, choices)
            made, recipe = self._make(found, choices, attempt)
            kld = self._measured(bench)
            if step.target.max_kld is None or kld.value <= step.target.max_kld:
                self._progress(1.0, "done")
                return made, recipe, replace(found, kld=kld).report(step.target, step.text.dataset)
            # Kernels round activations too, which no patch does: the target moves by what that costs.
            Path(step.made).unlink()
            attempt += 1
            if attempt == _ATTEMPTS:
                raise InvalidParameter(
                    f"No mix was found that keeps the divergence: the last one measured {kld.value:.3g}. Allow more.",
                    param="target.max_kld",
                )
            target = replace(target, kld=max(step.target.max_kld - (kld.value - found.kld.value), 0.0))

    def _measured(self, bench: Bench) -> Estimate:
        made = Path(self._step.made)
        try:
            return bench.measure_file(made, self._source, lambda share: self._progress(_MADE_SHARE, "checking the mix"))
        except BaseException:
            made.unlink(missing_ok=True)
            raise

    def _prepared(self, choices: Choices, *, after: float) -> tuple[Bench, Meter]:
        """What to measure with. `after` is the share of the progress that lies behind."""
        step = self._step
        copy, copy_header = self._measurable(Path(f"{step.made}.f16"))
        patches = Patches(copy, copy_header, self._importance, threads=self._threads)
        self._stack.callback(patches.close)
        bench = Bench(copy, copy_header, patches, window=step.text.window, threads=self._threads)
        self._stack.callback(bench.close)
        meter = Meter(
            bench,
            patches,
            choices,
            self._stack.enter_context(Known(Path(step.known))),
            started=self._started,
            max_seconds=step.max_seconds,
            report=lambda share, detail: self._progress(after + (_SEARCH_SHARE - after) * share, detail),
        )
        return bench, meter

    def _speeds(self, choices: Choices) -> dict[str, dict[str, float]]:
        measured = type_seconds(
            self._source,
            self._header,
            sorted({kind for sizes in choices.options.values() for kind in sizes}),
            self._importance,
            Path(f"{self._step.made}.speed"),
            threads=self._threads,
            progress=lambda share, detail: self._progress(_SPEED_SHARE * share, detail),
        )
        return tensor_seconds(self._header, choices, measured)

    def _measurable(self, copy: Path) -> tuple[Path, Header]:
        """The file to measure on: the source, or where its matrices are no plain floats a copy of it at F16.

        The rounding of the copy is far below what any type loses.
        """
        if all(tensor.type in _MEASURED_TYPES for tensor in self._header.tensors if dimensions(tensor.shape) > 1):
            return self._source, self._header
        self._stack.callback(lambda: copy.unlink(missing_ok=True))
        quantize_model(self._source, copy, Recipe("F16", allow_requantize=True), threads=self._threads)
        return copy, read_header(copy)

    def _make(self, found: Found, choices: Choices, attempt: int) -> tuple[Header, Recipe]:
        recipe, _ = mix_recipe(
            self._source,
            self._header,
            self._step.recipe,
            choices,
            found.types,
            has_importance=self._importance is not None,
        )

        def making(told: TensorProgress) -> None:
            share = 0.0 if attempt else told.bytes_done / max(1, told.bytes_total)
            share = _SEARCH_SHARE + (_MADE_SHARE - _SEARCH_SHARE) * max(share, float(attempt > 0))
            self._progress(share, f"making the mix, tensor {told.index} of {told.count}")

        made = quantize(
            self._source,
            Path(self._step.made),
            recipe,
            importance=self._importance,
            threads=self._threads,
            progress=making,
        )
        return made, recipe


def _check_anything_to_make(found: Found, choices: Choices) -> None:
    if all(choices.kept.get(name) == kind for name, kind in found.types.items()):
        raise InvalidParameter(
            "The source keeps to this target as it is, so there is nothing to make; use it, or ask for less.",
            param="target",
        )


def _importance(step: SearchStep, header: Header) -> dict[str, NDArray[np.float32]] | None:
    if step.importance is None:
        return None
    importance = read_importance(Path(step.importance))
    check_belongs(importance, header)
    return weights(importance)


def _check_source(header: Header, recipe: Recipe) -> None:
    if not recipe.allow_requantize and any(tensor.type not in UNQUANTIZED_TYPES for tensor in header.tensors):
        raise LossySource(
            "The source is quantized already, and a mix of it adds to its loss; use the F16, BF16 or F32 original, or "
            "set allow_requantize.",
            param="allow_requantize",
        )
