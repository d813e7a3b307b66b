"""Whether a quantize request can be carried out, and what is left to do of it. Pure; server process.

Called before a job is queued, and again when it starts: variants may have come and gone meanwhile, or the server
went down after some of the levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.domain.catalog import LevelPlan, Recipe, Variant
from service.domain.errors import (
    BlobCorrupt,
    ImportanceMatrixRequired,
    InvalidParameter,
    LossySource,
    NameTaken,
    QuantizationNotApplicable,
)
from service.domain.jobs import QuantizeSpec
from service.domain.quants import QUANTIZATIONS, parse_label


@dataclass(frozen=True, slots=True)
class Level:
    """One level asked for: `found` when it exists already, else `plan` says what it will be."""

    quantization: str
    plan: LevelPlan | None
    found: Variant | None

    @property
    def size_bytes(self) -> int:
        """Size of the file, made or to be made; exact."""
        if self.found is not None:
            return self.found.size_bytes
        assert self.plan is not None
        return self.plan.size_bytes


def canonical_levels(levels: Iterable[str]) -> tuple[str, ...]:
    """Labels in canonical spelling, each once, in the order asked for.

    Raises UnknownQuantization, and InvalidParameter when there is none.
    """
    found = tuple(dict.fromkeys(parse_label(level, param="to") for level in levels))
    if not found:
        raise InvalidParameter("Name at least one quantization level, e.g. Q4_K_M.", param="to")
    return found


def recipe_of(quantization: str, source: Variant, *, allow_requantize: bool) -> Recipe:
    """The recipe a level of `source` gets. Permission to requantize says nothing where the source is not lossy."""
    return Recipe(quantization=quantization, allow_requantize=allow_requantize and source.lossy)


def admit(
    spec: QuantizeSpec, source: Variant, plans: Sequence[LevelPlan], siblings: Sequence[Variant]
) -> tuple[Level, ...]:
    """The levels of `spec` in order, each with its plan or the variant that is there already.

    `plans` are those of the source's blob, `siblings` the variants of its model. Raises NameTaken for a level whose
    name stands for something else, BlobCorrupt, LossySource, ImportanceMatrixRequired and QuantizationNotApplicable.
    """
    by_label = {plan.quantization: plan for plan in plans}
    there = {variant.quantization: variant for variant in siblings if variant.flavour.lower() == source.flavour.lower()}
    levels = []
    for label in canonical_levels(spec.levels):
        found = source if label == source.quantization else there.get(label)
        if found is not None and found.id != source.id:
            _check_same(found, source, recipe_of(label, source, allow_requantize=spec.allow_requantize))
        levels.append(Level(label, None if found else by_label.get(label), found))
    to_make = [level for level in levels if level.found is None]
    if to_make:
        _check_source(source, spec)
        _check_plans(to_make, source)
    return tuple(levels)


def _check_same(found: Variant, source: Variant, recipe: Recipe) -> None:
    if found.lineage.source_digest == source.digest and found.lineage.recipe == recipe:
        return
    raise NameTaken(
        f"{found.name} is there already and was not made this way from {source.name}; delete it first, or leave "
        f"{found.quantization} out.",
        param="to",
    )


def _check_source(source: Variant, spec: QuantizeSpec) -> None:
    if source.corrupt:
        raise BlobCorrupt(f"The bytes of {source.name} on disk no longer match their digest; import it again first.")
    if source.lossy and not spec.allow_requantize:
        raise LossySource(
            f"{source.name} has lost precision already ({source.quantization}); quantizing it again adds to the loss. "
            "Import an F16, BF16 or F32 file and quantize that, or set allow_requantize.",
            param="model",
        )


def _check_plans(levels: Sequence[Level], source: Variant) -> None:
    need_imatrix = [
        level.quantization
        for level in levels
        if (QUANTIZATIONS[level.quantization].needs_imatrix if level.plan is None else level.plan.needs_imatrix)
    ]
    if need_imatrix:
        raise ImportanceMatrixRequired(
            f"llama.cpp refuses {', '.join(need_imatrix)} without an importance matrix; leave "
            f"{'it' if len(need_imatrix) == 1 else 'them'} out.",
            param="to",
        )
    for level in levels:
        reason = "no plan is stored for it; import the file again" if level.plan is None else level.plan.error
        if reason is not None:
            raise QuantizationNotApplicable(
                f"{level.quantization} cannot be made of {source.name}: {reason.rstrip('.')}. "
                "The plan of the model lists the levels that can.",
                param="to",
            )
