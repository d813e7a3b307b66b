"""Measurements: the job that makes them, and the part of other jobs that does. Server process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from service import machine
from service.domain.catalog import Variant
from service.domain.errors import BlobCorrupt, InvalidParameter, ModelNotFound
from service.domain.evaluation import Card
from service.domain.jobs import EvaluateOptions, EvaluateSpec
from service.domain.steps_back import Bound
from service.jobs.assignments.bench import Bench, LaboratoryAssignment, Part, nothing
from service.jobs.assignments.work import text_tokens, text_weight, tokens_weight
from service.jobs.messages import Evaluated, EvaluateStep, Outcome, TaskFile, TextWindows
from service.store.derived import key_of

_SPEED_TOKENS = 2000  # what measuring the speed takes, in tokens of prompt
_BYTES_PER_LOG_PROBABILITY = 2


def _say_nothing(_card: Card) -> None:
    pass


class Evaluation:
    """What a job measures on one variant after the other, each against `base`.

    `base` None: none is stored that they could be held to.
    """

    def __init__(self, bench: Bench, options: EvaluateOptions, base: Variant | None) -> None:
        """Raises BlobNotFound when a text, a task or the base is gone; BlobCorrupt; DiskFull for what would not fit."""
        self._bench = bench
        self._options = options
        self._base = base
        self._base_path = None if base is None else self.path_of(base)
        text = options.text
        self._text: TextWindows | None = None
        self._logits = ""
        if text is not None:
            path = bench.blob(text.digest, f"dataset {text.name}")
            self._text = TextWindows(path, text.name, text.digest, options.window, options.chunks)
            if base is not None:
                self._logits = self._logits_path(base)
        self._tasks = tuple(
            TaskFile(bench.blob(task.digest, f"dataset {task.name}"), task.name, task.digest) for task in options.tasks
        )

    def path_of(self, variant: Variant) -> str:
        """Where the file of a variant lies that is to be measured. Raises BlobNotFound, BlobCorrupt."""
        if variant.corrupt:
            raise BlobCorrupt(
                f"The bytes of {variant.name} no longer match their digest; import or make it again.", param="model"
            )
        return self._bench.blob(variant.digest, variant.name)

    def conditions(self, digest: str) -> str:
        """A hash of what is measured on the file with that digest, against what and where."""
        base = None if self._base is None or self._base.digest == digest else self._base.digest
        return key_of("conditions", self._options, base, machine.machine_id())

    def measured(self, variant: Variant) -> bool:
        """Whether the same has been measured on it already."""
        return variant.id in self._bench.stores.laboratory.measured_under(self.conditions(variant.digest))

    def card(self, variant: Variant) -> Card | None:
        """What was measured on it under the same conditions, if it was."""
        return self._bench.stores.laboratory.card_under(variant.id, self.conditions(variant.digest))

    def part(
        self,
        name: str,
        like: Variant,
        path: str,
        variant: Callable[[], Variant],
        *,
        bound: Bound | None = None,
        then: Callable[[Card], str | None] = _say_nothing,
    ) -> Part:
        """The step that measures the file `path` of the model of `like`; its card goes to what `variant` says then.

        The task ends at a file that breaks `bound`. What `then` makes of the card is said of the step.
        """
        is_base = self._base is not None and path == self._base_path
        base = None if is_base else self._base
        step = EvaluateStep(
            path=path,
            base=None if base is None else self._base_path,
            base_name="" if base is None else base.name,
            base_digest="" if base is None else base.digest,
            text=self._text,
            logits=self._logits,
            tasks=self._tasks,
            speed=self._options.speed,
            bound=bound,
        )

        def land(outcome: Outcome) -> str | None:
            assert isinstance(outcome, Evaluated)
            measured = variant()
            conditions = self.conditions(measured.digest)
            with suppress(ModelNotFound):  # deleted meanwhile
                self._bench.stores.laboratory.add_card(
                    measured.id, outcome.card, job_id=self._bench.job_id, conditions=conditions
                )
            return then(outcome.card)

        return Part(f"evaluate {name}", self.weight(like), step, land)

    def done_part(self, name: str, like: Variant, detail: str = "already measured") -> Part:
        """The step of a variant that has been measured."""
        return Part(f"evaluate {name}", self.weight(like), None, nothing, detail)

    def weight(self, like: Variant) -> int:
        """The work of measuring a file of that model."""
        options, weight = self._options, 1
        if options.text is not None:
            weight += text_weight(self._bench, like, options.text.digest, options.window, options.chunks)
        for task in options.tasks:
            weight += tokens_weight(like, text_tokens(self._bench, task.digest, 0, None))
        return weight + (tokens_weight(like, _SPEED_TOKENS) if options.speed else 0)

    def _logits_path(self, base: Variant) -> str:
        text, options = self._options.text, self._options
        assert text is not None
        path = self._bench.derive("logits", base.digest, text.digest, options.window, options.chunks)
        if not path.exists():
            scored = text_tokens(self._bench, text.digest, options.window, options.chunks) // 2
            self._bench.stores.blobs.check_space(scored * base.facts.shape.vocabulary * _BYTES_PER_LOG_PROBABILITY)
        return str(path)


class EvaluateAssignment(LaboratoryAssignment):
    """The variants that this job has not measured yet."""

    def __init__(self, spec: EvaluateSpec, bench: Bench) -> None:
        """Raises ModelNotFound, Conflict when a name is another file by now, BlobCorrupt, BlobNotFound, DiskFull."""
        if not spec.variants:
            raise InvalidParameter("Name at least one variant to measure.", param="model")
        base = None if spec.base is None else bench.variant(spec.base.name, spec.base.digest, param="base")
        variants = [bench.variant(file.name, file.digest) for file in spec.variants]
        # The source first: what it says of the text is what the others are held to.
        ordered = sorted(variants, key=lambda variant: base is None or variant.digest != base.digest)
        evaluation = Evaluation(bench, spec.options, base)
        self._measured = set(bench.stores.laboratory.measured_by(bench.job_id))
        parts = []
        for variant in ordered:
            if variant.id in self._measured:
                parts.append(evaluation.done_part(variant.tag, variant))
            else:
                path = evaluation.path_of(variant)
                parts.append(evaluation.part(variant.tag, variant, path, self._noting(variant)))
        self._variants = variants
        super().__init__(
            bench.blob((base or variants[0]).digest, (base or variants[0]).name),
            parts,
            threads=spec.threads or bench.threads,
            niceness=bench.niceness,
        )

    def _noting(self, variant: Variant) -> Callable[[], Variant]:
        def note() -> Variant:
            self._measured.add(variant.id)
            return variant

        return note

    def result(self) -> tuple[str, ...]:
        """The names of the variants measured so far, in the order asked for."""
        return tuple(variant.name for variant in self._variants if variant.id in self._measured)
