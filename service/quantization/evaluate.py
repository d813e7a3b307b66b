"""What a text costs a model, and how far the model is from its source. In the job's child.

Windows go through llama.cpp a few at a time; their second half is scored (scoring.py) and, for a source, kept
(base_logits.py). Files and loaded models in, scores out; what they mean together is `figures.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.domain.errors import InvalidModel, InvalidParameter
from service.llama.backend import build
from service.llama.model import Model
from service.llama.probe import load_on_processor
from service.llama.windows import WindowContext
from service.quantization.base_logits import BaseLogits, BaseLogitsPart, open_base, scored_rows
from service.quantization.compact import compact_width
from service.quantization.scoring import RowScorer, Scores
from service.quantization.windows import Text, Windows

# Two windows of 512 share a micro-batch, each looking back on less: a few percent faster than one, as fast as four.
_BATCH_TOKENS = 1024
_LOGITS_BYTES = 256 * 1024 * 1024
_RETRY_SECONDS = 0.5

Progress = Callable[[int, int], None]
"""`(windows done, windows in all)`."""


class Evaluator:
    """Scores windows of one shape with one loaded model, as often as one likes. Close it before the model."""

    def __init__(self, model: Model, *, window: int, threads: int, flash_attention: bool = True) -> None:
        """Reserve cells and buffers. Raises what `WindowContext` raises."""
        self._first = window // 2
        most = _LOGITS_BYTES // (4 * (window - self._first) * model.vocabulary_size)
        sequences = max(1, min(_BATCH_TOKENS // window, most))
        self._context = WindowContext(
            model,
            window=window,
            sequences=sequences,
            threads=threads,
            flash_attention=flash_attention,
            max_rows=sequences * (window - self._first),
        )
        self._rows = RowScorer(model.vocabulary_size, threads=threads)
        self._base_rows = np.empty((scored_rows(window), compact_width(model.vocabulary_size)), dtype=np.uint16)
        self.vocabulary = model.vocabulary_size

    def close(self) -> None:
        """Free everything; the model stays."""
        self._rows.close()
        self._context.close()

    def score(self, windows: Windows, base: BaseLogits | None, progress: Progress) -> Scores:
        """Score the windows; against the first windows of `base` when there is one, which must be the same.

        Raises InvalidModel for logits that are no numbers, LoadFailed when llama.cpp fails.
        """
        each = scored_rows(windows.shape[1])
        scores = Scores.empty(each * len(windows), compared=base is not None)
        for start in range(0, len(windows), self._context.sequences):
            batch = windows[start : start + self._context.sequences]
            self._context.decode(list(batch), self._first)
            logits = self._context.logits()
            for offset, window in enumerate(batch):
                number = start + offset
                first_row = offset * (each + 1)  # the last token's successor is not in the window
                self._rows.score(
                    logits[first_row : first_row + each],
                    window[self._first + 1 :],
                    scores.part(slice(number * each, (number + 1) * each)),
                    None if base is None else base.chunk(number, self._base_rows),
                )
            progress(start + len(batch), len(windows))
        _check(scores)
        return scores

    def keep(self, windows: Windows, part: BaseLogitsPart, progress: Progress) -> Scores | None:
        """Compute the windows that `part` lacks, and finish it. Their scores, None when some had been there before.

        Raises as `score` does, and OSError.
        """
        each = scored_rows(windows.shape[1])
        scores = None if part.done else Scores.empty(each * len(windows), compared=False)
        losses = np.empty(each)
        rows = part.empty_chunk()
        progress(part.done, len(windows))
        while part.done < len(windows):
            # Always the same batches, wherever the work was broken off: the same bytes come of it.
            start = part.done - part.done % self._context.sequences
            batch = windows[start : start + self._context.sequences]
            self._context.decode(list(batch), self._first)
            logits = self._context.logits()
            for offset, window in enumerate(batch):
                if start + offset < part.done:
                    continue
                own = logits[offset * (each + 1) :][:each]
                self._rows.compact(own, window[self._first + 1 :], losses, rows)
                if not np.isfinite(losses).all():
                    raise _no_numbers()
                if scores is not None:
                    scores.losses[part.done * each : (part.done + 1) * each] = losses
                part.add(rows)
            progress(part.done, len(windows))
        part.finish()
        return scores


def check_windows(base: BaseLogits, windows: Windows, vocabulary: int) -> None:
    """Raise InvalidParameter unless the base has just these windows, of a model with the same vocabulary."""
    if base.vocabulary != vocabulary or not np.array_equal(base.windows, windows):
        raise InvalidParameter(
            "This variant and its base make other tokens of the text, so they cannot be compared; evaluate it without "
            "a base.",
            param="base",
        )


def source_logits(
    source: Path, logits: Path, text: Text, *, threads: int, progress: Progress
) -> tuple[BaseLogits, Scores | None]:
    """The log-probabilities that the model at `source` gives a text, from the file `logits`; made first where needed.

    The name of the file must depend on the source; that it is of this text and of this build is checked. While another
    process makes it this one waits, or takes over when that one ends. Close what comes back; the scores are the
    source's own, None unless all of it was computed just now. Raises InvalidParameter for a text that is too short,
    DiskFull, and what `Evaluator.keep` raises.
    """
    origin = {
        "text": text.digest,
        "window": str(text.window),
        "chunks": "all" if text.chunks is None else str(text.chunks),
        "llama_build": build().name,
    }
    scores = None
    while (base := open_base(logits, origin)) is None:
        try:
            part = BaseLogitsPart(logits, origin)
        except BlockingIOError:
            progress(0, 1)
            time.sleep(_RETRY_SECONDS)
            continue
        with part:
            scores = _fill(part, source, text, threads, progress)
    return base, scores


def _fill(part: BaseLogitsPart, source: Path, text: Text, threads: int, progress: Progress) -> Scores | None:
    model = load_on_processor(source)
    try:
        windows = text.cut(model)
        part.begin(windows, model.vocabulary_size)
        evaluator = Evaluator(model, window=text.window, threads=threads)
        try:
            return evaluator.keep(windows, part, progress)
        finally:
            evaluator.close()
    finally:
        model.close()


def _check(scores: Scores) -> None:
    if not (np.isfinite(scores.losses).all() and np.isfinite(scores.divergences).all()):
        raise _no_numbers()


def _no_numbers() -> InvalidModel:
    return InvalidModel("The model computes values that are no numbers: its weights are damaged. Make or get it again.")
