"""Whether a quantize request can be carried out, and what is left to do of it. Pure; server process.

Called before a job is queued, and again when it starts: variants may have come and gone meanwhile, or the server
went down after some of the levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from service.domain.catalog import LevelPlan, Variant
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
from service.domain.recipes import STOCK, Recipe

_IMPORTED_PLANS = "no plan is stored for it; import the file again"


@dataclass(frozen=True, slots=True)
class Level:
    """One level asked for: `found` when it exists already, else `plan` says what it will be, where that is known."""

    quantization: str
    recipe: Recipe
    plan: LevelPlan | None
    found: Variant | None

    @property
    def size_bytes(self) -> int:
        """Size of the file, made or to be made; exact, and 0 where nothing has been planned."""
        if self.found is not None:
            return self.found.size_bytes
        return 0 if self.plan is None else self.plan.size_bytes


def canonical_levels(levels: Iterable[str]) -> tuple[str, ...]:
    """Labels in canonical spelling, each once, in the order asked for.

    Raises UnknownQuantization, and InvalidParameter when there is none.
    """
    found = tuple(dict.fromkeys(parse_label(level, param="to") for level in levels))
    if not found:
        raise InvalidParameter("Name at least one quantization level, e.g. Q4_K_M.", param="to")
    return found


def recipe_of(quantization: str, source: Variant, options: Recipe, importance_matrix: str | None = None) -> Recipe:
    """The recipe a level of `source` gets. Permission to requantize says nothing where the source is not lossy.

    `importance_matrix` is the digest of the one that the job computes; None: the one that the options name.
    """
    return replace(
        options,
        quantization=quantization,
        allow_requantize=options.allow_requantize and source.lossy,
        importance_matrix=importance_matrix or options.importance_matrix,
    )


def has_importance(spec: QuantizeSpec) -> bool:
    """Whether the levels will be made with an importance matrix."""
    return spec.calibrate is not None or spec.recipe.importance_matrix is not None


def is_stock(spec: QuantizeSpec) -> bool:
    """Whether the plans made at import hold for this request."""
    return not has_importance(spec) and replace(spec.recipe, allow_requantize=False) == STOCK


def admit(
    spec: QuantizeSpec,
    source: Variant,
    plans: Mapping[str, LevelPlan],
    siblings: Sequence[Variant],
    *,
    importance_matrix: str | None = None,
) -> tuple[Level, ...]:
    """The levels of `spec` in order, each with its plan or the variant that is there already.

    `plans` are by level and for the options of `spec`, `siblings` the variants of its model, `importance_matrix` the
    digest of the one asked for where it has been computed. Raises NameTaken for a level whose name stands for something
    else, BlobCorrupt, LossySource, ImportanceMatrixRequired and QuantizationNotApplicable.
    """
    flavour = (source.flavour if spec.flavour is None else spec.flavour).lower()
    there = {variant.quantization: variant for variant in siblings if variant.flavour.lower() == flavour}
    levels = []
    for label in canonical_levels(spec.levels):
        recipe = recipe_of(label, source, spec.recipe, importance_matrix)
        found = there.get(label)
        if found is not None and (found.id != source.id or not _leaves_as_it_is(spec.recipe)):
            known = spec.calibrate is None or importance_matrix is not None
            _check_same(found, source, recipe if known else None)
        levels.append(Level(label, recipe, None if found else plans.get(label), found))
    to_make = [level for level in levels if level.found is None]
    if to_make:
        check_source(source, spec.recipe)
        _check_plans(to_make, source, spec)
    return tuple(levels)


def check_source(source: Variant, options: Recipe) -> None:
    """Whether something may be made of `source`. Raises BlobCorrupt, LossySource."""
    if source.corrupt:
        raise BlobCorrupt(f"The bytes of {source.name} on disk no longer match their digest; import it again first.")
    if source.lossy and not options.allow_requantize:
        raise LossySource(
            f"{source.name} has lost precision already ({source.quantization}); quantizing it again adds to the loss. "
            "Import an F16, BF16 or F32 file and quantize that, or set allow_requantize.",
            param="model",
        )


def _leaves_as_it_is(options: Recipe) -> bool:
    """Whether the source's own level with these options is the source itself."""
    return replace(options, allow_requantize=False, importance_matrix=None) == STOCK


def _check_same(found: Variant, source: Variant, recipe: Recipe | None) -> None:
    """`recipe` None: it names an importance matrix that nothing can have been made with yet."""
    if found.lineage.source_digest == source.digest and recipe is not None and found.lineage.recipe == recipe:
        return
    raise NameTaken(
        f"{found.name} is there already and was not made this way from {source.name}; give the new ones a flavour of "
        f"their own, delete it first, or leave {found.quantization} out.",
        param="to",
    )


def _check_plans(levels: Sequence[Level], source: Variant, spec: QuantizeSpec) -> None:
    need_imatrix = [
        level.quantization
        for level in levels
        if (QUANTIZATIONS[level.quantization].needs_imatrix if level.plan is None else level.plan.needs_imatrix)
    ]
    if need_imatrix and not has_importance(spec):
        raise ImportanceMatrixRequired(
            f"llama.cpp refuses {', '.join(need_imatrix)} without an importance matrix; give one, let one be computed, "
            f"or leave {'it' if len(need_imatrix) == 1 else 'them'} out.",
            param="to",
        )
    for level in levels:
        reason = level.plan.error if level.plan is not None else _IMPORTED_PLANS if is_stock(spec) else None
        if reason is not None:
            raise QuantizationNotApplicable(
                f"{level.quantization} cannot be made of {source.name}: {reason.rstrip('.')}. "
                "The plan of the model lists the levels that can.",
                param="to",
            )
