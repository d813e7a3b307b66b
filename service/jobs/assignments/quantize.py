"""The levels of one source: an importance matrix for all of them, each made, and each measured. Server process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import msgspec

from service.domain.catalog import LevelPlan, Lineage, Variant
from service.domain.errors import ModelNotFound
from service.domain.jobs import QuantizeSpec
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import Recipe
from service.jobs.admission import Level, admit, canonical_levels, has_importance, is_stock, recipe_of
from service.jobs.assignments.bench import Bench, LaboratoryAssignment, Part, nothing
from service.jobs.assignments.calibrate import Calibration
from service.jobs.assignments.evaluate import Evaluation
from service.jobs.messages import LevelStep, Made, Outcome
from service.store.naming import check_canonical


class QuantizeAssignment(LaboratoryAssignment):
    """The levels of one source that are not there yet, and the measurements that are missing."""

    def __init__(self, spec: QuantizeSpec, bench: Bench) -> None:
        """Raises what `admit` raises, ModelNotFound, Conflict when the source's name is another file by now, DiskFull.

        And BlobNotFound, ImportanceMatrixNotFound for what the request names and the store does not have.
        """
        self._spec = spec
        self._bench = bench
        self._source = source = bench.variant(spec.source_name, spec.source_digest)
        self._flavour = source.flavour if spec.flavour is None else spec.flavour
        self._calibration = None if spec.calibrate is None else Calibration(bench, source, spec.calibrate)
        self._importance = self._importance_path()
        self._levels = self._admit()
        self._made: list[Variant | None] = [level.found for level in self._levels]
        self._evaluation = None if spec.evaluate is None else Evaluation(bench, spec.evaluate, source)
        parts = self._plan_parts()
        needed_bytes = sum(part.task.expected_bytes for part in parts if isinstance(part.task, LevelStep))
        if needed_bytes:
            bench.stores.blobs.check_space(needed_bytes)
        super().__init__(
            bench.blob(source.digest, source.name),
            parts,
            threads=spec.threads or bench.threads,
            niceness=bench.niceness,
        )

    def result(self) -> tuple[str, ...]:
        """The names of the levels that are there, in the order asked for."""
        return tuple(variant.name for variant in self._made if variant is not None)

    def _importance_path(self) -> str | None:
        if self._calibration is not None:
            return self._calibration.path
        digest = self._spec.recipe.importance_matrix
        if digest is None:
            return None
        self._bench.stores.laboratory.importance_matrix(digest)
        return self._bench.blob(digest, "the importance matrix")

    def _admit(self) -> tuple[Level, ...]:
        spec, source, catalog = self._spec, self._source, self._bench.stores.catalog
        labels = canonical_levels(spec.levels)
        for label in labels:
            check_canonical(source.model, self._flavour, label)
        plans = plans_of(spec, source, labels, self._bench)
        digest = None if self._calibration is None else self._calibration.digest
        return admit(spec, source, plans, catalog.variants(source.model.display), importance_matrix=digest)

    def _first_parts(self, to_make: bool) -> list[Part]:
        parts: list[Part] = []
        # A job that goes on keeps its steps: a matrix that is there stays one of them when no level is left to make.
        if self._calibration is not None and (to_make or self._calibration.digest is not None):
            parts.append(self._calibration.part())
        if self._evaluation is not None:
            # What the source says of the text is what each level is held to.
            parts.append(measure(self._evaluation, self._source))
        return parts

    def _plan_parts(self) -> list[Part]:
        evaluation, source = self._evaluation, self._source
        parts = self._first_parts(any(level.found is None for level in self._levels))
        for index, level in enumerate(self._levels):
            parts.append(self._level_part(index, level))
            if evaluation is not None and (level.found is None or level.found.id != source.id):
                parts.append(self._evaluation_part(evaluation, index, level))
        return parts

    def _level_part(self, index: int, level: Level) -> Part:
        label = level.quantization
        if level.found is not None:
            return Part(label, level.size_bytes, None, nothing)
        step = LevelStep(
            target=str(self._bench.temp(label)),
            recipe=level.recipe,
            expected_bytes=level.size_bytes,
            importance=self._importance,
            keep="" if self._evaluation is None else self._kept(label),
        )
        nominal_bytes = int(self._source.facts.parameters * QUANTIZATIONS[label].bits_per_weight / 8)
        return Part(label, level.size_bytes or nominal_bytes, step, self._landing(index, level))

    def _evaluation_part(self, evaluation: Evaluation, index: int, level: Level) -> Part:
        if level.found is not None:
            return measure(evaluation, level.found)
        label = level.quantization
        return evaluation.part(label, self._source, self._kept(label), lambda: self._landed(index))

    def _landed(self, index: int) -> Variant:
        variant = self._made[index]
        assert variant is not None, "a level is measured after it has landed"
        return variant

    def _kept(self, label: str) -> str:
        return str(self._bench.temp(f"keep-{label}"))

    def _landing(self, index: int, level: Level) -> Callable[[Outcome], None]:
        def land(outcome: Outcome) -> None:
            assert isinstance(outcome, Made)
            recipe = level.recipe
            if self._calibration is not None:
                recipe = replace(recipe, importance_matrix=self._calibration.digest)
            made = msgspec.structs.replace(outcome, recipe=recipe)
            self._made[index] = enter(self._bench, self._source, self._flavour, made, level.quantization)

        return land


def plans_of(spec: QuantizeSpec, source: Variant, labels: Iterable[str], bench: Bench) -> dict[str, LevelPlan]:
    """The plans that are known of these levels of `source` with the options of `spec`, by level."""
    if is_stock(spec):
        return {plan.quantization: plan for plan in bench.stores.catalog.plans(source.digest)}
    found = (
        bench.plan_of(source.digest, recipe_of(label, source, spec.recipe), has_importance(spec)) for label in labels
    )
    return {plan.quantization: plan for plan in found if plan is not None}


def enter(bench: Bench, source: Variant, flavour: str, made: Made, temp: str) -> Variant:
    """Commit what was made of `source` and enter it beside it under `flavour`; `temp` names the job's file."""
    assert made.recipe is not None
    catalog, file, recipe = bench.stores.catalog, made.file, made.recipe
    lineage = Lineage(
        origin="quantized",
        source_digest=source.digest,
        source_name=source.name,
        recipe=recipe,
        llama_build=made.llama_build,
        duration_seconds=round(file.duration_seconds, 3),
        lossy_source=source.lossy,
        search=made.search,
        job_id=bench.job_id,
    )
    bench.commit(bench.temp(temp), file.digest, file.size_bytes)
    # Every tensor has the type that was planned, so the level is the one asked for, however its mix may read.
    verdict = None if _changes_template(recipe) else source.facts.template_verdict
    facts = replace(file.facts, quantization=recipe.quantization, template_verdict=verdict)
    named = replace(file, facts=facts)
    variant = catalog.add_variant((source.model, flavour), named, lineage)
    with suppress(ModelNotFound):  # deleted at once
        catalog.add_measurement(variant.id, "quantize_seconds", file.duration_seconds, "seconds")
    return variant


def _changes_template(recipe: Recipe) -> bool:
    return any(override.key.startswith("tokenizer.") for override in recipe.metadata)


def measure(evaluation: Evaluation, variant: Variant, name: str = "") -> Part:
    """The part that measures a variant that is there; `name` in place of its level's."""
    if evaluation.measured(variant):
        return evaluation.done_part(name or variant.quantization, variant)
    return evaluation.part(name or variant.quantization, variant, evaluation.path_of(variant), lambda: variant)
