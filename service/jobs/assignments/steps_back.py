"""Levels from the largest down to the first that breaks a bound; the last good one is kept. Server process.

    largest ──make, measure──> within: what the job made above it goes ──> next
                                 └──> broken: the child ends, it goes as well; the last good one is the result

A level that was there before the job stays. After a crash the lowest level that the job has made tells how far it was:
all above it kept to the bound.
"""

from __future__ import annotations

from contextlib import suppress

from service.domain.catalog import Variant
from service.domain.errors import Conflict, JobFailed, ModelNotFound
from service.domain.evaluation import Card
from service.domain.jobs import QuantizeSpec
from service.domain.names import parse_ref
from service.domain.steps_back import Verdict, judge
from service.jobs.admission import Level, has_importance
from service.jobs.assignments.bench import Bench, Part, Remark, nothing
from service.jobs.assignments.evaluate import Evaluation
from service.jobs.assignments.quantize import QuantizeAssignment

_DELETED = "deleted again"
_PASSED = "keeps to the bound"


class StepsBackAssignment(QuantizeAssignment):
    """The levels of one source, in the order of the spec, until one breaks its bound."""

    def __init__(self, spec: QuantizeSpec, bench: Bench) -> None:
        """Raises as `QuantizeAssignment`."""
        assert spec.until is not None
        self._until = spec.until
        self._verdicts: dict[int, Verdict] = {}  # by the level's place
        self._first_step: list[int] = []  # of each level, in the job
        self._remarks: list[Remark] = []
        super().__init__(spec, bench)

    def result(self) -> tuple[str, ...]:
        """The last good level; with `keep` "all" the others that were measured after it."""
        good = self._good()
        names = [variant.name for variant in self._made[good : good + 1] if variant is not None] if good >= 0 else []
        if self._until.keep == "all":
            judged = sorted(index for index in self._verdicts if index < self._end() and index != good)
            names += [variant.name for index in judged if (variant := self._made[index]) is not None]
        return tuple(names)

    def remarks(self) -> tuple[Remark, ...]:
        """Levels that were deleted, and those that are left out."""
        remarks, self._remarks = tuple(self._remarks), []
        return remarks

    def conclude(self) -> None:
        """Raises JobFailed where not even the first level keeps to the bound."""
        if self._good() < 0:
            first = self._levels[0].quantization
            matrix = "" if has_importance(self._spec) else ", use an importance matrix"
            raise JobFailed(
                f"Not even {first}, the first level, keeps to the bound: {self._verdicts[0].figures}. Loosen the "
                f"bound{matrix}, or name a level that loses less."
            )

    def settle(self) -> None:
        """Delete what the job has made but for the last good level."""
        self._delete_all_but(self._good())

    def _plan_parts(self) -> list[Part]:
        evaluation = self._evaluation
        assert evaluation is not None, "nothing can be judged without being measured"
        known = [self._judged_before(evaluation, level) for level in self._levels]
        self._verdicts = {index: verdict for index, verdict in enumerate(known) if verdict is not None}
        resumed = max((index for index, variant in enumerate(self._made) if self._is_mine(variant)), default=0)
        end = self._end()
        parts = self._first_parts(any(level.found is None for level in self._levels[resumed:end]))
        for index, level in enumerate(self._levels):
            self._first_step.append(len(parts))
            if index < resumed and level.found is None:
                parts += self._passed(evaluation, level)
            elif index < end:
                parts.append(self._level_part(index, level))
                if level.found is None or level.found.id != self._source.id:
                    parts.append(self._evaluation_part(evaluation, index, level))
            else:
                parts += [
                    Part(name, 1, None, nothing, self._reason(end), left_out=True)
                    for name in (level.quantization, f"evaluate {level.quantization}")
                ]
        return parts

    def _evaluation_part(self, evaluation: Evaluation, index: int, level: Level) -> Part:
        label, found, verdict = level.quantization, level.found, self._verdicts.get(index)

        def then(card: Card) -> str:
            return self._measured(index, card)

        if found is None:
            path, bound = self._kept(label), self._until.bound
            return evaluation.part(label, self._source, path, lambda: self._landed(index), bound=bound, then=then)
        if verdict is not None:
            return evaluation.done_part(label, found, verdict.figures)
        path = evaluation.path_of(found)
        return evaluation.part(label, found, path, lambda: found, bound=self._until.bound, then=then)

    def _judged_before(self, evaluation: Evaluation, level: Level) -> Verdict | None:
        if level.found is None:
            return None
        if level.found.id == self._source.id:
            return Verdict(True, "the source itself")
        card = evaluation.card(level.found)
        return None if card is None else judge(self._until.bound, card)

    def _passed(self, evaluation: Evaluation, level: Level) -> list[Part]:
        """A level that an earlier run of the job has made, measured and deleted."""
        label, said = level.quantization, self._bench.said
        return [
            Part(label, max(1, level.size_bytes), None, nothing, said.get(label, _DELETED)),
            evaluation.done_part(label, self._source, said.get(f"evaluate {label}", _PASSED)),
        ]

    def _measured(self, index: int, card: Card) -> str:
        verdict = self._verdicts[index] = judge(self._until.bound, card)
        if verdict.within:
            self._delete_all_but(index)
        else:
            rest = (*self._first_step, len(self.steps))[index + 1]
            reason = self._reason(index + 1)
            self._remarks += [Remark(step, reason, left_out=True) for step in range(rest, len(self.steps))]
        return verdict.figures

    def _end(self) -> int:
        """How many levels there are up to the first that is known to break the bound, that one included."""
        broken = (index + 1 for index, verdict in self._verdicts.items() if not verdict.within)
        return min(broken, default=len(self._levels))

    def _reason(self, end: int) -> str:
        return f"left out: {self._levels[end - 1].quantization} breaks the bound"

    def _good(self) -> int:
        """The place of the last level that is there and keeps to the bound; -1 for none."""
        end = self._end()
        return max(
            (
                index
                for index, verdict in self._verdicts.items()
                if index < end and verdict.within and self._made[index] is not None
            ),
            default=-1,
        )

    def _is_mine(self, variant: Variant | None) -> bool:
        return variant is not None and variant.lineage.job_id == self._bench.job_id

    def _delete_all_but(self, kept: int) -> None:
        if self._until.keep == "all":
            return
        for index, variant in enumerate(self._made):
            if variant is None or index == kept or not self._is_mine(variant):
                continue
            with suppress(ModelNotFound, Conflict):  # someone else was faster
                catalog = self._bench.stores.catalog
                catalog.variant(variant.id)
                catalog.delete(parse_ref(variant.name))
            self._made[index] = None
            self._remarks.append(Remark(self._first_step[index], _DELETED))
