"""The search for a mix within a budget: found, made, entered under a free name, measured. Server process."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import msgspec

from service.domain.catalog import Variant
from service.domain.errors import NotFound
from service.domain.jobs import BudgetSpec
from service.domain.names import check_not_reserved
from service.jobs.admission import check_source, recipe_of
from service.jobs.assignments.bench import Bench, LaboratoryAssignment, Part, nothing
from service.jobs.assignments.calibrate import Calibration
from service.jobs.assignments.evaluate import Evaluation
from service.jobs.assignments.quantize import enter, measure
from service.jobs.assignments.work import text_weight
from service.jobs.messages import Made, Outcome, SearchStep, TextWindows
from service.store.naming import check_canonical

_SEARCH, _TEMP, _KEPT = "search", "mix", "keep-mix"
_LONGEST_LABEL = "MXFP4_MOE"
_PASSES = 50  # through the search text, about: a guess for progress


class BudgetAssignment(LaboratoryAssignment):
    """One mix within a budget."""

    def __init__(self, spec: BudgetSpec, bench: Bench) -> None:
        """Raises ModelNotFound, Conflict, LossySource, BlobCorrupt, BlobNotFound, InvalidName, DiskFull.

        And ImportanceMatrixNotFound for one that the request names and the store does not have.
        """
        self._spec = spec
        self._bench = bench
        self._source = source = bench.variant(spec.source_name, spec.source_digest)
        check_source(source, spec.recipe)
        check_not_reserved(spec.flavour)
        check_canonical(source.model, f"{spec.flavour}-00", _LONGEST_LABEL)
        bench.stores.blobs.check_space(spec.target.size_bytes or 0)
        self._calibration = None if spec.calibrate is None else Calibration(bench, source, spec.calibrate)
        self._mix = self._made_before()
        self._evaluation = None if spec.evaluate is None else Evaluation(bench, spec.evaluate, source)
        super().__init__(
            bench.blob(source.digest, source.name),
            self._plan_parts(),
            threads=spec.threads or bench.threads,
            niceness=bench.niceness,
        )

    def result(self) -> tuple[str, ...]:
        """The name of the mix."""
        return () if self._mix is None else (self._mix.name,)

    def _made_before(self) -> Variant | None:
        """The mix that an earlier run of this job has reported."""
        for name in self._bench.done:
            with suppress(NotFound):
                variant = self._bench.stores.catalog.resolve(name)
                if variant.lineage.search is not None and variant.lineage.source_digest == self._source.digest:
                    return variant
        return None

    def _plan_parts(self) -> list[Part]:
        parts: list[Part] = []
        # A job that goes on keeps its steps.
        if self._calibration is not None and (self._mix is None or self._calibration.digest is not None):
            parts.append(self._calibration.part())
        parts.append(self._search_part())
        if self._evaluation is not None:
            parts += self._evaluation_parts(self._evaluation)
        return parts

    def _search_part(self) -> Part:
        spec, bench, source, search = self._spec, self._bench, self._source, self._spec.search
        weight = source.size_bytes + _PASSES * text_weight(
            bench, source, search.text.digest, search.window, search.chunks
        )
        if self._mix is not None:
            return Part(_SEARCH, weight, None, nothing)
        text = TextWindows(
            bench.blob(search.text.digest, f"dataset {search.text.name}"),
            search.text.name,
            search.text.digest,
            search.window,
            search.chunks,
        )
        importance, depends_on = self._importance()
        base = (source.digest, search.text.digest, search.window, search.chunks)
        options = recipe_of("", source, spec.recipe)
        step = SearchStep(
            made=str(bench.temp(_TEMP)),
            recipe=options,
            target=spec.target,
            text=text,
            logits=str(bench.derive("logits", *base)),
            known=str(bench.derive("sensitivities", *base, depends_on)),
            types=search.types,
            guide=search.guide,
            max_seconds=search.max_seconds,
            importance=importance,
            keep="" if spec.evaluate is None else str(bench.temp(_KEPT)),
        )
        return Part(_SEARCH, weight, step, self._land)

    def _importance(self) -> tuple[str | None, str | None]:
        """Where the importance matrix will be, and what it depends on."""
        if self._calibration is not None:
            return self._calibration.path, self._calibration.made_from
        digest = self._spec.recipe.importance_matrix
        if digest is None:
            return None, None
        self._bench.stores.laboratory.importance_matrix(digest)
        return self._bench.blob(digest, "the importance matrix"), digest

    def _land(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Made)
        assert outcome.recipe is not None, "a search says what it found"
        digest = None if self._calibration is None else self._calibration.digest
        recipe = recipe_of(outcome.recipe.quantization, self._source, outcome.recipe, digest)
        flavour = self._free_flavour(recipe.quantization, outcome.file.digest)
        self._mix = enter(self._bench, self._source, flavour, msgspec.structs.replace(outcome, recipe=recipe), _TEMP)

    def _free_flavour(self, quantization: str, digest: str) -> str:
        """`flavour`, or with a number after it: an hour of searching must not end at a name that is taken."""
        siblings = self._bench.stores.catalog.variants(self._source.model.display)
        taken = {
            variant.flavour.lower()
            for variant in siblings
            if variant.quantization == quantization and variant.digest != digest
        }
        wanted = self._spec.flavour
        numbered = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
        return next(flavour for flavour in numbered if flavour.lower() not in taken)

    def _evaluation_parts(self, evaluation: Evaluation) -> list[Part]:
        source, mix = self._source, self._mix
        if mix is not None:
            return [measure(evaluation, source), measure(evaluation, mix, "mix")]
        kept = str(self._bench.temp(_KEPT))
        return [measure(evaluation, source), evaluation.part("mix", source, kept, self._landed)]

    def _landed(self) -> Variant:
        assert self._mix is not None, "a mix is measured after it has landed"
        return self._mix
