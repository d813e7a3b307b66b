"""Promises of a recipe that need no model: what cannot be one for any is refused, naming the field."""

from __future__ import annotations

import pytest

from service.domain.errors import InvalidParameter, UnknownQuantization
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import STOCK, WRITABLE_TYPES, MetadataOverride, Recipe, TypeOverride, check


def test_a_recipe_comes_back_in_its_canonical_form() -> None:
    recipe = Recipe(
        "q4_k",
        output_type="q8_0",
        token_embedding_type="Q6_k",
        overrides=(TypeOverride("ffn_down", "iq4_nl"),),
        metadata=(MetadataOverride("general.name", "a"), MetadataOverride("x.y", 1.5)),
        prune_layers=(3, 1, 3),
    )
    assert check(recipe) == Recipe(
        "Q4_K_M",
        output_type="Q8_0",
        token_embedding_type="Q6_K",
        overrides=(TypeOverride("ffn_down", "IQ4_NL"),),
        metadata=(MetadataOverride("general.name", "a"), MetadataOverride("x.y", 1.5)),
        prune_layers=(1, 3),
    )
    assert check(check(recipe)) == check(recipe)
    assert check(STOCK) == STOCK
    assert not check(recipe).is_stock


def test_every_base_type_can_be_asked_for() -> None:
    assert {level.base_type for level in QUANTIZATIONS.values()} <= WRITABLE_TYPES
    assert not {"Q8_1", "Q8_K", "F64", "I32"} & WRITABLE_TYPES


@pytest.mark.parametrize(
    ("recipe", "param"),
    [
        (Recipe(output_type="Q8_K"), "recipe.output_type"),
        (Recipe(token_embedding_type="Q4_K_M"), "recipe.token_embedding_type"),
        (Recipe(output_type="Q8_0", keep_output=True), "recipe.keep_output"),
        (Recipe(overrides=(TypeOverride("a", "Q8_0"), TypeOverride("a", "I32"))), "recipe.overrides.1.type"),
        (Recipe(overrides=(TypeOverride("(a+)+", "Q8_0"),)), "recipe.overrides.0.pattern"),
        (Recipe(overrides=(TypeOverride(".*.*.*.*x", "Q8_0"),)), "recipe.overrides.0.pattern"),
        (Recipe(overrides=(TypeOverride(".*.*.*x", "Q8_0"),) * 5), "recipe.overrides.4.pattern"),
        (Recipe(overrides=(TypeOverride("a", "Q8_0"),) * 10_001), "recipe.overrides"),
        (Recipe(prune_layers=(-1,)), "recipe.prune_layers"),
        (Recipe(prune_layers=(512,)), "recipe.prune_layers"),
        (Recipe(metadata=tuple(MetadataOverride(f"k{number}", 1) for number in range(65))), "recipe.metadata"),
        (Recipe(metadata=(MetadataOverride("a", 1), MetadataOverride("a", 2))), "recipe.metadata"),
    ],
)
def test_what_no_model_could_take_is_refused_with_the_field(recipe: Recipe, param: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check(recipe)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "key",
    [
        "", "a b", "ä", "a\n", "k" * 128, "general.architecture", "general.alignment", "general.file_type",
        "general.quantization_version", "split.count", "llama.block_count",
    ],
)  # fmt: skip
def test_keys_that_the_quantizer_owns_or_cannot_write_are_refused(key: str) -> None:
    with pytest.raises(InvalidParameter):
        check(Recipe(metadata=(MetadataOverride(key, 1),)))


@pytest.mark.parametrize(
    "value", [-1, 2**32, float("inf"), float("nan"), 1e39, "x" * 128, "ä" * 64, "a\nb", "\ud800", "a\0b"]
)
def test_values_that_llama_cpp_would_write_otherwise_are_refused(value: int | float | str) -> None:
    with pytest.raises(InvalidParameter):
        check(Recipe(metadata=(MetadataOverride("a.b", value),)))


@pytest.mark.parametrize("value", [0, 2**32 - 1, True, -1.5, 3e38, "", "x" * 127, "ä" * 63])
def test_values_that_fit_are_taken(value: bool | int | float | str) -> None:
    check(Recipe(metadata=(MetadataOverride("a.b-c_D", value),)))


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(UnknownQuantization):
        check(Recipe("Q9"))
