"""What a quantize request may ask for, decided without a process, a file or a database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.domain.catalog import FileFacts, LevelPlan, Lineage, ModelShape, Variant
from service.domain.datasets import DatasetRef
from service.domain.errors import (
    BlobCorrupt,
    ImportanceMatrixRequired,
    InvalidParameter,
    LossySource,
    NameTaken,
    QuantizationNotApplicable,
    UnknownQuantization,
)
from service.domain.jobs import CalibrateOptions, QuantizeSpec
from service.domain.names import parse_ref
from service.domain.recipes import Recipe, TypeOverride
from service.jobs.admission import admit, canonical_levels, recipe_of

PLANS = [
    LevelPlan("Q8_0", 800, 8.5, needs_imatrix=False),
    LevelPlan("Q4_K_M", 400, 4.5, needs_imatrix=False),
    LevelPlan("IQ2_XS", 200, 2.3, needs_imatrix=True),
    LevelPlan("IQ1_S", 100, 1.6, needs_imatrix=True),
    LevelPlan("MXFP4_MOE", 0, 0.0, needs_imatrix=False, error="Only for mixture models."),
]


def variant(quantization: str, *, number: int = 1, lineage: Lineage | None = None, quantized: bool = False) -> Variant:
    facts = FileFacts(quantization, 10, 16.0, 20, ModelShape("llama"), quantized_tensors=quantized)
    digest = f"sha256:{number:064x}"
    origin = lineage or Lineage("imported")
    return Variant(number, parse_ref("gloss").key, "", quantization, digest, 1000 * number, facts, origin, "2026")


SOURCE = variant("F16")


CALIBRATE = CalibrateOptions(DatasetRef("calibration", "sha256:" + "c" * 64))
MATRIX = "sha256:" + "d" * 64


def ask(
    *levels: str,
    source: Variant = SOURCE,
    siblings: tuple[Variant, ...] = (),
    allow: bool = False,
    computed: str | None = None,
    plans: list[LevelPlan] = PLANS,
    **options: object,
):
    recipe = options.pop("recipe", Recipe())
    spec = QuantizeSpec(source.name, source.digest, levels, recipe=replace(recipe, allow_requantize=allow), **options)
    by_label = {plan.quantization: plan for plan in plans}
    return admit(spec, source, by_label, (source, *siblings), importance_matrix=computed)


def test_levels_are_canonical_once_and_in_the_order_asked_for():
    assert canonical_levels(("q8_0", "q4_k", "Q4_K_M", "Q8_0")) == ("Q8_0", "Q4_K_M")


def test_unknown_and_no_levels_are_refused():
    with pytest.raises(UnknownQuantization):
        canonical_levels(("Q4_K_M", "Q9"))
    with pytest.raises(InvalidParameter):
        canonical_levels(())


def test_levels_to_make_carry_their_plans():
    assert [(level.quantization, level.size_bytes, level.found) for level in ask("Q8_0", "Q4_K_M")] == [
        ("Q8_0", 800, None),
        ("Q4_K_M", 400, None),
    ]


def test_the_level_of_the_source_is_there_already():
    (level,) = ask("f16")
    assert level.found is SOURCE


def test_a_level_made_the_same_way_is_there_already():
    lineage = Lineage("quantized", SOURCE.digest, SOURCE.name, Recipe("Q8_0"))
    made = variant("Q8_0", number=2, lineage=lineage, quantized=True)
    found, todo = ask("Q8_0", "Q4_K_M", siblings=(made,))
    assert found.found is made
    assert todo.found is None


@pytest.mark.parametrize(
    "lineage",
    [
        Lineage("imported"),
        Lineage("quantized", "sha256:" + "f" * 64, "gloss:F32", Recipe("Q8_0")),
        Lineage("quantized", SOURCE.digest, SOURCE.name, Recipe("Q8_0", allow_requantize=True)),
    ],
)
def test_a_level_made_another_way_keeps_its_name(lineage):
    with pytest.raises(NameTaken, match="delete it first"):
        ask("Q8_0", siblings=(variant("Q8_0", number=2, lineage=lineage),))


def test_another_flavour_is_another_model():
    other = replace(variant("Q8_0", number=2), flavour="chat")
    assert ask("Q8_0", siblings=(other,))[0].found is None


def test_levels_that_need_an_importance_matrix_are_all_named():
    with pytest.raises(ImportanceMatrixRequired, match="IQ2_XS, IQ1_S"):
        ask("IQ2_XS", "Q8_0", "IQ1_S")


def test_a_level_that_the_model_cannot_take_is_refused_with_the_reason():
    with pytest.raises(QuantizationNotApplicable, match="Only for mixture models"):
        ask("MXFP4_MOE")


def test_a_level_without_a_plan_is_refused():
    with pytest.raises(QuantizationNotApplicable, match="import the file again"):
        ask("Q5_K_M")


LOSSY = [variant("Q4_1", quantized=True), variant("F32", lineage=Lineage("quantized", lossy_source=True))]


@pytest.mark.parametrize("source", LOSSY)
def test_a_lossy_source_needs_permission(source):
    with pytest.raises(LossySource, match="allow_requantize"):
        ask("Q8_0", source=source)
    assert ask("Q8_0", source=source, allow=True)[0].found is None
    assert recipe_of("Q8_0", source, Recipe(allow_requantize=True)) == Recipe("Q8_0", allow_requantize=True)


def test_permission_to_requantize_is_no_part_of_the_recipe_of_a_lossless_source():
    assert recipe_of("Q8_0", SOURCE, Recipe(allow_requantize=True)) == Recipe("Q8_0")


def test_nothing_is_made_of_a_damaged_blob():
    with pytest.raises(BlobCorrupt):
        ask("Q8_0", source=replace(SOURCE, corrupt=True))


def made_with(quantization: str, recipe: Recipe, flavour: str = "") -> Variant:
    lineage = Lineage("quantized", SOURCE.digest, SOURCE.name, recipe)
    return replace(variant(quantization, number=2, lineage=lineage, quantized=True), flavour=flavour)


def test_levels_that_need_an_importance_matrix_are_fine_with_one():
    for options in ({"calibrate": CALIBRATE}, {"recipe": Recipe(importance_matrix=MATRIX)}):
        assert [level.quantization for level in ask("IQ2_XS", "IQ1_S", **options)] == ["IQ2_XS", "IQ1_S"]


def test_the_same_level_by_another_recipe_keeps_its_name_and_a_flavour_is_the_way_out():
    stock = made_with("Q8_0", Recipe("Q8_0"))
    pure = Recipe(pure=True)
    with pytest.raises(NameTaken, match="flavour"):
        ask("Q8_0", siblings=(stock,), recipe=pure)
    (level,) = ask("Q8_0", siblings=(stock,), recipe=pure, flavour="pure")
    assert level.found is None
    assert level.recipe == Recipe("Q8_0", pure=True)


def test_a_level_of_a_flavour_made_the_same_way_is_there_already():
    overrides = (TypeOverride("ffn_down", "Q6_K"),)
    made = made_with("Q4_K_M", Recipe("Q4_K_M", overrides=overrides), flavour="Mine")
    (level,) = ask("Q4_K_M", siblings=(made,), recipe=Recipe(overrides=overrides), flavour="mine")
    assert level.found is made


def test_a_level_made_with_a_matrix_is_there_once_that_matrix_is_known_to_be_the_one():
    made = made_with("Q4_K_M", Recipe("Q4_K_M", importance_matrix=MATRIX))
    assert ask("Q4_K_M", siblings=(made,), calibrate=CALIBRATE, computed=MATRIX)[0].found is made
    with pytest.raises(NameTaken):
        ask("Q4_K_M", siblings=(made,), calibrate=CALIBRATE)
    with pytest.raises(NameTaken):
        ask("Q4_K_M", siblings=(made,), calibrate=CALIBRATE, computed="sha256:" + "e" * 64)
    with pytest.raises(NameTaken):
        ask("Q4_K_M", siblings=(made,))


def test_a_level_without_a_matrix_is_no_answer_to_a_request_for_one_that_is_still_to_be_computed():
    with pytest.raises(NameTaken):
        ask("Q4_K_M", siblings=(made_with("Q4_K_M", Recipe("Q4_K_M")),), calibrate=CALIBRATE)


def test_the_sources_own_level_with_options_is_another_file():
    assert ask("F16", calibrate=CALIBRATE)[0].found is SOURCE
    with pytest.raises(NameTaken):
        ask("F16", recipe=Recipe(prune_layers=(1,)))


def test_a_recipe_that_nobody_has_planned_yet_is_let_in_and_its_size_is_not_known():
    (level,) = ask("Q8_0", recipe=Recipe(pure=True), plans=[])
    assert (level.plan, level.size_bytes) == (None, 0)
