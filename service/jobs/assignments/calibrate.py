"""Importance matrices: the job that makes one, and the part of other jobs that does. Server process."""

from __future__ import annotations

from service.domain.catalog import Variant
from service.domain.errors import InvalidParameter
from service.domain.jobs import CalibrateOptions, CalibrateSpec
from service.jobs.assignments.bench import CHECKPOINT, Bench, LaboratoryAssignment, Part, nothing
from service.jobs.assignments.work import text_weight
from service.jobs.messages import Calibrated, CalibrateStep, Outcome
from service.store.derived import key_of

_NAME = "importance matrix"
# Merging and writing, against computing: a small matter.
_READ_WEIGHT_BYTES = 1024**2


class Calibration:
    """The importance matrix of `source` that a job finds stored, or computes."""

    def __init__(
        self, bench: Bench, source: Variant, options: CalibrateOptions | None, include: tuple[str, ...] = ()
    ) -> None:
        """Raises BlobNotFound when the text or one of `include` is gone."""
        self._bench = bench
        self._source = source
        self._options = options
        self._include = tuple(bench.blob(digest, "an importance matrix") for digest in include)
        self.made_from = key_of("importance", source.digest, options, sorted(include))
        self._temp = bench.temp("importance")
        self._text = None if options is None else bench.blob(options.text.digest, f"dataset {options.text.name}")
        found = bench.stores.laboratory.find_importance_matrix(self.made_from)
        if found is not None and not bench.stores.blobs.has(found.digest):
            found = None
        self.digest = None if found is None else found.digest
        """Of the matrix, once it is there."""
        self.path = str(bench.temp("keep-importance") if found is None else bench.stores.blobs.path(found.digest))
        """Where the child finds it when its turn comes."""

    def part(self) -> Part:
        """The step that computes it; done where it is stored."""
        options = self._options
        weight = _READ_WEIGHT_BYTES
        if options is not None:
            weight += text_weight(self._bench, self._source, options.text.digest, options.window, options.chunks)
        if self.digest is not None:
            return Part(_NAME, weight, None, nothing)
        step = CalibrateStep(
            target=str(self._temp),
            text=self._text,
            dataset="" if options is None else options.text.name,
            window=0 if options is None else options.window,
            chunks=None if options is None else options.chunks,
            process_output=options is not None and options.process_output,
            include=self._include,
            checkpoint=str(self._bench.derive(CHECKPOINT, self.made_from)),
            keep=self.path,
        )
        return Part(_NAME, weight, step, self._land)

    def _land(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Calibrated)
        stores = self._bench.stores
        self._bench.commit(self._temp, outcome.digest, outcome.size_bytes)
        stores.laboratory.add_importance_matrix(
            self._source.model,
            outcome.digest,
            outcome.size_bytes,
            outcome.facts,
            made_from=self.made_from,
            source_digest=None if self._options is None else self._source.digest,
            dataset_digest=None if self._options is None or self._include else self._options.text.digest,
        )
        self.digest = outcome.digest
        stores.derived.discard([self._bench.derive(CHECKPOINT, self.made_from)])


class CalibrateAssignment(LaboratoryAssignment):
    """One importance matrix."""

    def __init__(self, spec: CalibrateSpec, bench: Bench) -> None:
        """Raises ModelNotFound, Conflict, BlobNotFound, InvalidParameter when there is nothing to compute or read."""
        if spec.options is None and not spec.include:
            raise InvalidParameter("Name a text to compute from, or importance matrices to merge.", param="dataset")
        source = bench.variant(spec.source_name, spec.source_digest)
        self._calibration = Calibration(bench, source, spec.options, spec.include)
        super().__init__(
            bench.blob(source.digest, source.name),
            [self._calibration.part()],
            threads=spec.threads or bench.threads,
            niceness=bench.niceness,
        )

    def result(self) -> tuple[str, ...]:
        """Its digest."""
        return () if self._calibration.digest is None else (self._calibration.digest,)
