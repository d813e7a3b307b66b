"""The evaluation of one file, in the job's child: speed, text, divergence from its source, tasks, in one card."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from service.domain.evaluation import Card, Speed, TaskScore, TextFigures
from service.domain.tasks import parse_task
from service.jobs.messages import EvaluateStep, TaskFile, TextWindows
from service.jobs.tasks import count_right
from service.llama.backend import build
from service.llama.model import Model
from service.llama.probe import load_on_processor
from service.machine import description, usable_cores
from service.quantization.base_logits import BaseLogits
from service.quantization.evaluate import Evaluator, check_windows, source_logits
from service.quantization.figures import divergence, perplexity
from service.quantization.scoring import Scores
from service.quantization.speed import forget_memory_peak, measure_speed
from service.quantization.windows import Text

Progress = Callable[[float, str], None]
"""`(share done from 0 to 1, what is going on)`."""

# Shares of the progress; what is not asked for has none.
_SPEED_WEIGHT = 1.0
_WINDOWS_WEIGHT = 10.0
_TASK_WEIGHT = 3.0


def evaluate_file(step: EvaluateStep, *, threads: int, progress: Progress) -> Card:
    """Measure a file as `step` says; `threads` 0 means all usable cores.

    The source's log-probabilities are made at `step.logits` where they are not there yet. Raises InvalidParameter for
    a text that is too short or a window that is too long, LoadFailed, InvalidModel for a damaged file, DiskFull, and
    what `count_right` raises.
    """
    return _Evaluation(step, threads or usable_cores(), progress).run()


class _Evaluation:
    """One run over one file."""

    def __init__(self, step: EvaluateStep, threads: int, progress: Progress) -> None:
        self._step = step
        self._threads = threads
        self._progress = progress
        self._done = 0.0
        self._total = (
            _SPEED_WEIGHT * step.speed
            + _WINDOWS_WEIGHT * ((step.text is not None) + (step.text is not None and step.logits != ""))
            + _TASK_WEIGHT * len(step.tasks)
        )

    def run(self) -> Card:
        step = self._step
        started = time.monotonic()
        with ExitStack() as stack:
            base, scores = None, None
            if step.text is not None and step.logits:
                # First, so that never two models are in memory.
                base, scores = self._base(step.text)
                stack.callback(base.close)
            forget_memory_peak()
            model = load_on_processor(Path(step.path))
            stack.callback(model.close)
            speed = self._speed(model) if step.speed else None
            text = None if step.text is None else self._text(model, step.text, base, scores)
            tasks = tuple(self._task(model, task) for task in step.tasks)
        return Card(
            machine=description(),
            llama_build=build().name,
            seconds=time.monotonic() - started,
            text=text,
            speed=speed,
            tasks=tasks,
        )

    def _base(self, text: TextWindows) -> tuple[BaseLogits, Scores | None]:
        """The source's log-probabilities; and its scores, when it is this file and was computed just now."""
        source = Path(self._step.base or self._step.path)
        stage = self._stage(_WINDOWS_WEIGHT, "source")
        base, scores = source_logits(source, Path(self._step.logits), _cut(text), threads=self._threads, progress=stage)
        return base, scores if self._step.base is None else None

    def _speed(self, model: Model) -> Speed:
        stage = self._stage(_SPEED_WEIGHT, "speed")
        stage(0, 1)
        speed = measure_speed(model, threads=self._threads)
        stage(1, 1)
        return speed

    def _text(self, model: Model, text: TextWindows, base: BaseLogits | None, scores: Scores | None) -> TextFigures:
        windows = _cut(text).cut(model)
        if base is not None:
            check_windows(base, windows, model.vocabulary_size)
        compared = base is not None and self._step.base is not None
        stage = self._stage(_WINDOWS_WEIGHT, "text")
        if scores is None:
            evaluator = Evaluator(model, window=text.window, threads=self._threads)
            try:
                scores = evaluator.score(windows, base if compared else None, stage)
            finally:
                evaluator.close()
        stage(len(windows), len(windows))
        return TextFigures(
            dataset=text.dataset,
            dataset_digest=text.digest,
            window=text.window,
            chunks=len(windows),
            tokens=len(scores.losses),
            perplexity=perplexity(scores.losses),
            divergence=(
                divergence(scores, base_name=self._step.base_name, base_digest=self._step.base_digest)
                if compared
                else None
            ),
        )

    def _task(self, model: Model, task: TaskFile) -> TaskScore:
        items = parse_task(Path(task.path).read_bytes())
        right = count_right(model, items, threads=self._threads, progress=self._stage(_TASK_WEIGHT, task.name))
        return TaskScore(task=task.name, task_digest=task.digest, correct=right, total=len(items))

    def _stage(self, weight: float, name: str) -> Callable[[int, int], None]:
        """A part of the work that takes `weight` of the progress, after all before it."""
        before = self._done
        self._done += weight

        def report(done: int, total: int) -> None:
            self._progress((before + weight * done / total) / self._total, f"{name}: {done} of {total}")

        return report


def _cut(text: TextWindows) -> Text:
    return Text(Path(text.path), text.digest, text.window, text.chunks)
