"""Bodies of the laboratory as domain values: names of datasets, variants and recipes are looked up in the store here.

Blocks on the database: the routes call it in a thread. What the job runner checks is not checked twice.
"""

from __future__ import annotations

from dataclasses import replace

from service.api.laboratory_bodies import (
    CalibrateBody,
    CalibrateOptionsBody,
    EvaluateBody,
    EvaluateOptionsBody,
    QuantizeBody,
    RecipeBody,
    SearchBody,
    TargetBody,
    UntilBody,
)
from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.datasets import DatasetKind, DatasetRef
from service.domain.errors import InvalidParameter, ModelNotFound, NotFound
from service.domain.evaluation import Target
from service.domain.jobs import (
    BudgetSpec,
    CalibrateOptions,
    CalibrateSpec,
    EvaluateOptions,
    EvaluateSpec,
    QuantizeSpec,
    SearchOptions,
    StepsBack,
    StoredFile,
)
from service.domain.names import parse_ref
from service.domain.quants import parse_label
from service.domain.recipes import MetadataOverride, Recipe, TypeOverride, check
from service.domain.sizes import parse_size
from service.domain.steps_back import Bound

MIX_FLAVOUR = "mix"


def quantize_spec(services: Services, body: QuantizeBody, source: Variant) -> QuantizeSpec:
    """The levels of a body without `target`."""
    return QuantizeSpec(
        source_name=source.name,
        source_digest=source.digest,
        levels=wanted_levels(body),
        threads=body.threads,
        recipe=recipe_of(services, body),
        calibrate=_calibration(services, body),
        # For a bound alone, speed need not be measured.
        evaluate=_evaluation(
            services, EvaluateOptionsBody(speed=False) if body.until and body.evaluate is False else body.evaluate
        ),
        flavour=body.flavour,
        until=None if body.until is None else _steps_back(body.until),
    )


def budget_spec(services: Services, body: QuantizeBody, source: Variant) -> BudgetSpec:
    """The mix of a body with `target`."""
    assert body.target is not None
    return BudgetSpec(
        source_name=source.name,
        source_digest=source.digest,
        target=target_of(body.target),
        search=_search(services, body.search or SearchBody()),
        recipe=recipe_of(services, body),
        calibrate=_calibration(services, body),
        evaluate=_evaluation(services, body.evaluate),
        flavour=body.flavour or MIX_FLAVOUR,
        threads=body.threads,
    )


def calibrate_spec(services: Services, body: CalibrateBody, source: Variant) -> CalibrateSpec:
    """An importance matrix for the model of `source`."""
    options = None
    if body.dataset is not None:
        text = _dataset(services, body.dataset, DatasetKind.TEXT, "dataset")
        options = CalibrateOptions(text, body.window, body.chunks, body.process_output)
    return CalibrateSpec(source.name, source.digest, options, tuple(body.include), body.threads)


def evaluate_spec(services: Services, body: EvaluateBody) -> EvaluateSpec:
    """What to measure, held to what. Raises InvalidParameter for variants of several models."""
    names = [body.model] if isinstance(body.model, str) else body.model
    variants = list({variant.id: variant for name in names for variant in _meant(services, name)}.values())
    models = {variant.model.folded for variant in variants}
    if len(models) > 1:
        raise InvalidParameter("These are variants of several models; send a request for each model.", param="model")
    base = _base(services, body.base, variants)
    options = _evaluation(services, body)
    assert options is not None
    return EvaluateSpec(
        variants=tuple(_file(variant) for variant in variants),
        base=None if base is None else _file(base),
        options=options,
        threads=body.threads,
    )


def wanted_levels(body: QuantizeBody) -> tuple[str, ...]:
    """Canonical labels in the order asked for, each once. Raises UnknownQuantization."""
    return tuple(dict.fromkeys(parse_label(level, param="to") for level in body.to or ()))


def target_of(body: TargetBody) -> Target:
    """The budget, its size in bytes."""
    size = parse_size(body.size, param="target.size") if isinstance(body.size, str) else body.size
    return Target(size, body.bits_per_weight, body.max_kld, body.min_speed)


def _steps_back(body: UntilBody) -> StepsBack:
    return StepsBack(Bound(body.max_kld, body.max_perplexity_ratio, body.min_same_top), body.keep)


def recipe_of(services: Services, body: QuantizeBody) -> Recipe:
    """The options that all levels share. A name stands for the recipe of that variant; `imatrix` goes before its own.

    Raises ModelNotFound, ImportanceMatrixNotFound, and InvalidParameter for a variant that was not made here and for
    options that no model can have.
    """
    recipe = Recipe()
    if isinstance(body.recipe, RecipeBody):
        recipe = _recipe(body.recipe)
    elif body.recipe is not None:
        recipe = _stored_recipe(services, body.recipe)
    if body.imatrix is not None:
        digest = body.imatrix if isinstance(body.imatrix, str) and body.imatrix != "auto" else None
        if digest is not None:
            digest = services.laboratory.importance_matrix(digest).digest
        recipe = replace(recipe, importance_matrix=digest)
    return check(replace(recipe, allow_requantize=body.allow_requantize))


def _recipe(body: RecipeBody) -> Recipe:
    return Recipe(
        pure=body.pure,
        output_type=body.output_type,
        token_embedding_type=body.token_embedding_type,
        keep_output=body.keep_output,
        overrides=tuple(TypeOverride(override.pattern, override.type) for override in body.overrides),
        metadata=tuple(MetadataOverride(key, value) for key, value in sorted(body.metadata.items())),
        prune_layers=tuple(body.prune_layers),
    )


def _stored_recipe(services: Services, name: str) -> Recipe:
    try:
        variant = services.catalog.resolve(name)
    except ModelNotFound as error:
        error.param = "recipe"
        raise
    if variant.lineage.recipe is None:
        raise InvalidParameter(
            f"{variant.name} was imported, so no recipe of it is known; name a variant that was made here, or write "
            "the recipe out.",
            param="recipe",
        )
    return variant.lineage.recipe.at("")


def _calibration(services: Services, body: QuantizeBody) -> CalibrateOptions | None:
    """What to compute first; None where no matrix is asked for, or a stored one."""
    if body.imatrix is None or (isinstance(body.imatrix, str) and body.imatrix != "auto"):
        return None
    options = CalibrateOptionsBody() if isinstance(body.imatrix, str) else body.imatrix
    text = _dataset(services, options.dataset, DatasetKind.TEXT, "imatrix.dataset")
    return CalibrateOptions(text, options.window, options.chunks, options.process_output)


def _evaluation(services: Services, wish: bool | EvaluateOptionsBody) -> EvaluateOptions | None:
    if wish is False:
        return None
    prefix = "" if isinstance(wish, EvaluateBody) else "evaluate."
    options = EvaluateOptionsBody() if wish is True else wish
    text = options.dataset
    return EvaluateOptions(
        text=None if text is None else _dataset(services, text, DatasetKind.TEXT, f"{prefix}dataset"),
        window=options.window,
        chunks=options.chunks,
        tasks=tuple(
            _dataset(services, name, DatasetKind.TASK, f"{prefix}tasks") for name in dict.fromkeys(options.tasks)
        ),
        speed=options.speed,
    )


def _search(services: Services, body: SearchBody) -> SearchOptions:
    return SearchOptions(
        text=_dataset(services, body.dataset, DatasetKind.TEXT, "search.dataset"),
        window=body.window,
        chunks=body.chunks,
        types=tuple(dict.fromkeys(body.types)),
        guide=body.guide,
        max_seconds=body.max_seconds,
    )


def _dataset(services: Services, name: str, kind: DatasetKind, param: str) -> DatasetRef:
    try:
        dataset = services.laboratory.dataset(name)
    except NotFound as error:
        error.param = param
        raise
    if dataset.kind is not kind:
        raise InvalidParameter(
            f"{dataset.name} is a {dataset.kind}, and a {kind} is asked for here; GET /v1/datasets lists the kinds.",
            param=param,
        )
    return DatasetRef(dataset.name, dataset.digest)


def _meant(services: Services, name: str) -> list[Variant]:
    """The variant of a name with a tag; for a bare name every variant of the model that is not damaged."""
    ref = parse_ref(name)
    if ref.tag is None:
        found = [variant for variant in services.catalog.variants(ref.key.display) if not variant.corrupt]
        if found:
            return found
    return [services.catalog.resolve(ref)]  # raises ModelNotFound with the closest names


def _base(services: Services, name: str | None, variants: list[Variant]) -> Variant | None:
    """What the variants are held to: the one named, else the source most of them say they were made from, else the one
    of the model that has lost least. None where all of them are damaged.
    """
    if name is not None:
        try:
            return services.catalog.resolve_source(name)
        except ModelNotFound as error:
            error.param = "base"
            raise
    stored = [v for v in services.catalog.variants(variants[0].model.display) if not v.corrupt]
    by_digest = {variant.digest: variant for variant in stored}
    sources = [by_digest[v.lineage.source_digest] for v in variants if v.lineage.source_digest in by_digest]
    if sources:
        return max(sources, key=lambda source: sum(source.digest == other.digest for other in sources))
    family = [variant for variant in stored if variant.flavour.lower() == variants[0].flavour.lower()]
    return min(family, key=lambda v: (v.lossy, -v.facts.bits_per_weight, v.id), default=None)


def _file(variant: Variant) -> StoredFile:
    return StoredFile(variant.name, variant.digest)
