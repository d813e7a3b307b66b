"""Calibration: a text is computed, and what every weight was multiplied with becomes an importance matrix.

Child processes only. Files in, numbers out; the work so far is kept in a checkpoint, so that a killed run goes on. The
definitions are llama-imatrix's (tools/imatrix/imatrix.cpp): every token of every window counts, in its own window only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel, InvalidParameter
from service.llama.model import Model
from service.llama.observe import MatrixInput, MatrixInputs
from service.llama.windows import WindowContext
from service.quantization.calibration_checkpoint import fingerprint, load_sums, save_sums
from service.quantization.importance import Entry, Importance
from service.quantization.importance_files import MAX_WEIGHT_NAME_BYTES
from service.quantization.windows import Windows, cut_windows

_MICRO_BATCH_TOKENS = 512  # windows shorter than this share a decode
_FEWEST_WINDOWS = 2  # as llama-imatrix asks for
# The tied embedding is the output matrix of models that have no other.
_OUTPUT_WEIGHTS = ("output.weight", "token_embd.weight")
_ROWS_AT_ONCE = 64  # their squares are summed while they are in the processor's cache


def collect(
    model: Path,
    text: str,
    *,
    dataset: str,
    window: int,
    chunks: int | None,
    process_output: bool,
    threads: int,
    checkpoint: Path | None,
    progress: Callable[[int, int], None],
    use_extra_buffers: bool = False,
    checkpoint_seconds: float = 20.0,
) -> Importance:
    """The importance matrix of the model file on the first `chunks` windows of the text (None: all of them).

    `process_output` takes in the output matrix as well, or the embedding where that is both. `dataset` names the text.
    With `checkpoint`, what is done is written there every `checkpoint_seconds`, and a run of the same model, text and
    options goes on from it with the same result. `progress` gets the windows done and their number.
    Raises InvalidParameter for a text that is too short and a window that is too long, InvalidModel when the model
    computes values that are no numbers, LoadFailed, NotSupported, and what `progress` raises.
    """
    loaded = Model(model, gpu_layers=0, use_extra_buffers=use_extra_buffers)
    try:
        windows = _windows(loaded, text, window, chunks)
        together = max(1, _MICRO_BATCH_TOKENS // window)
        mark = fingerprint(model, text, window=window, together=together, process_output=process_output)
        sums, done = _Sums(), 0
        if checkpoint is not None:
            sums.sums, sums.counts, done = load_sums(checkpoint, mark, at_most=len(windows))

        def wants(name: str) -> bool:
            inside = name.startswith("blk.") and " (" not in name  # "name (view)" is none that the quantizer looks up
            return (inside or (process_output and name in _OUTPUT_WEIGHTS)) and len(name) <= MAX_WEIGHT_NAME_BYTES

        inputs = MatrixInputs(wants, sums.take)
        context = WindowContext(loaded, window=window, sequences=together, threads=threads, observer=inputs)
        try:
            saved_at = time.monotonic()
            progress(done, len(windows))
            while done < len(windows):
                batch = windows[done : done + together]
                context.decode(list(batch), 0)
                inputs.check()
                inputs.end_after_last(batch.size)
                done += len(batch)
                progress(done, len(windows))
                if checkpoint is not None and time.monotonic() - saved_at >= checkpoint_seconds:
                    save_sums(checkpoint, mark, sums.sums, sums.counts, done)
                    saved_at = time.monotonic()
        finally:
            context.close()
        return sums.importance(done, window, dataset)
    finally:
        loaded.close()


def _windows(model: Model, text: str, window: int, chunks: int | None) -> Windows:
    windows = cut_windows(model, text, window=window, chunks=None)
    if len(windows) < _FEWEST_WINDOWS:
        each = len(text) / len(model.tokenize(text, add_special=True, parse_special=False))
        raise InvalidParameter(
            f"The calibration text fills {len(windows)} window of {window} tokens, and {_FEWEST_WINDOWS} are needed: "
            f"about {round(_FEWEST_WINDOWS * window * each)} characters, and it has {len(text)}. Use a longer text or "
            "a smaller window.",
            param="text",
        )
    return windows[:chunks]


@dataclass(slots=True)
class _Sums:
    """Sums of squares so far, float64 (experts, columns), and tokens, int64 (experts,), by weight."""

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    # Query, key and value matrices have one input, as gate and up matrices have: it is squared once.
    _last: tuple[tuple[int, int], NDArray[np.float64], NDArray[np.int64]] | None = None

    def take(self, shown: MatrixInput) -> None:
        """Add one product's input."""
        if self._last is not None and shown.repeated and self._last[0] == shown.stack:
            _, sums, counts = self._last
        else:
            sums, counts = _dense(shown) if shown.experts is None else _by_expert(shown, shown.experts)
            if not np.isfinite(sums).all():
                raise InvalidModel(
                    f"The model computes values that are no numbers before {shown.weight}: its weights are damaged, or "
                    "too large for their type. Get it again, in BF16 or F32."
                )
            self._last = (shown.stack, sums, counts)
        if shown.weight not in self.sums:
            self.sums[shown.weight], self.counts[shown.weight] = sums.copy(), counts.copy()
        else:
            self.sums[shown.weight] += sums
            self.counts[shown.weight] += counts

    def importance(self, chunks: int, window: int, dataset: str) -> Importance:
        """What has been summed, as it is stored."""
        entries = {
            name: Entry(self.sums[name].astype(np.float32), self.counts[name].astype(np.float32)) for name in self.sums
        }
        return Importance(entries, chunks, window, (dataset,))


def _dense(shown: MatrixInput) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shapes (1, matrices * columns) and (1,): a stack of matrices has one count, and its sums one after the other."""
    outer, stacked, rows, columns = shown.values.shape
    wide, deep = shown.stack
    if wide * deep == 1:
        sums = squares(shown.values.reshape(-1, columns))
    else:
        each = np.zeros((wide * deep, columns))
        for i in range(outer):
            for j in range(stacked):
                each[(i % wide) * deep + j % deep] += squares(shown.values[i, j])
        sums = each.ravel()
    return sums[np.newaxis], np.array([outer * stacked * rows // (wide * deep)])


def _by_expert(shown: MatrixInput, experts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shapes (experts, columns) and (experts,): each expert's own tokens."""
    _, tokens, slots, columns = shown.values.shape
    count, used = shown.stack[1], experts.shape[1]
    if experts.min() < 0 or experts.max() >= count:
        raise InvalidModel(f"The model sends tokens to experts that {shown.weight} does not have; get it again.")
    chosen = experts.ravel()  # by token, then by place
    row = np.arange(tokens)[:, np.newaxis] * slots + np.arange(used) % slots
    values, rows = shown.values.reshape(-1, columns), row.ravel()
    counts = np.bincount(chosen, minlength=count).astype(np.int64)
    order = np.argsort(chosen, kind="stable")
    sums = np.zeros((count, columns))
    start = 0
    for expert in np.flatnonzero(counts):
        end = start + int(counts[expert])
        sums[expert] = squares(values[rows[order[start:end]]])
        start = end
    return sums, counts


def squares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums of squares of each column of (rows, columns)."""
    sums = np.zeros(values.shape[1])
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block = values[start : start + _ROWS_AT_ONCE]
        sums += np.einsum("rc,rc->c", block, block)
    return sums
