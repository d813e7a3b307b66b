"""A variant made again from its recipe: its digest is confirmed, and a damaged blob is mended. Server process."""

from __future__ import annotations

from service.domain.errors import BlobCorrupt, BlobNotFound, Conflict, DigestMismatch
from service.domain.jobs import RebuildSpec
from service.jobs.assignments.bench import Bench, LaboratoryAssignment, Part
from service.jobs.messages import LevelStep, Made, Outcome


class RebuildAssignment(LaboratoryAssignment):
    """One variant, made a second time and compared."""

    def __init__(self, spec: RebuildSpec, bench: Bench) -> None:
        """Raises ModelNotFound, Conflict for one that was imported, BlobCorrupt for its source, DiskFull.

        And BlobNotFound, ImportanceMatrixNotFound when what it was made from is gone.
        """
        stores = bench.stores
        self._bench = bench
        self._variant = variant = bench.variant(spec.variant.name, spec.variant.digest)
        self._confirmed = False
        recipe, source_digest = variant.lineage.recipe, variant.lineage.source_digest
        if recipe is None or source_digest is None:
            raise Conflict(f"{variant.name} was imported, not made here: there is no recipe to follow.", param="model")
        source = stores.catalog.blob(source_digest)
        if source is None or not stores.blobs.has(source_digest):
            raise BlobNotFound(
                f"The source of {variant.name}, {variant.lineage.source_name}, is gone; import the same file again.",
                param="model",
            )
        if source.corrupt:
            raise BlobCorrupt(
                f"The bytes of {variant.lineage.source_name} no longer match their digest; mend it first."
            )
        importance = None
        if recipe.importance_matrix is not None:
            stores.laboratory.importance_matrix(recipe.importance_matrix)
            importance = bench.blob(recipe.importance_matrix, "its importance matrix")
        stores.blobs.check_space(variant.size_bytes)
        step = LevelStep(
            target=str(bench.temp("rebuild")),
            recipe=recipe,
            expected_bytes=variant.size_bytes,
            importance=importance,
        )
        super().__init__(
            str(stores.blobs.path(source_digest)),
            [Part(variant.quantization, variant.size_bytes, step, self._land)],
            threads=spec.threads or bench.threads,
            niceness=bench.niceness,
        )

    def result(self) -> tuple[str, ...]:
        """The variant's name, once its digest is confirmed."""
        return (self._variant.name,) if self._confirmed else ()

    def _land(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Made)
        file, variant = outcome.file, self._variant
        if file.digest != variant.digest:
            raise DigestMismatch(
                f"{variant.name} came out different: {file.digest} instead of {variant.digest}. It was made by "
                f"{variant.lineage.llama_build}, and again by {outcome.llama_build}; rebuild it with the former."
            )
        self._bench.commit(self._bench.temp("rebuild"), file.digest, file.size_bytes)
        self._confirmed = True
