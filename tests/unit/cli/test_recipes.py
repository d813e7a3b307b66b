"""Options of the quantizer and of measuring become fields of a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.api.laboratory_bodies import EvaluateBody, QuantizeBody, RecipeBody
from service.cli import measuring, recipes
from service.cli.failures import CommandFailed, ExitCode


def test_without_options_there_are_no_fields() -> None:
    assert recipes.fields(dict.fromkeys(recipes.OPTIONS)) == {}
    assert measuring.fields(dict.fromkeys(measuring.OPTIONS)) == {}


def test_every_option_is_a_field_of_the_request() -> None:
    given: dict[str, Any] = {
        "imatrix": "auto",
        "flavour": "hq",
        "pure": True,
        "output_type": "q8_0",
        "token_embedding_type": "Q6_K",
        "keep_output": True,
        "override": ["ffn_down=Q6_K", "blk=0=F16"],
        "metadata": ["general.name=a = b", "x=3", "y=0.5", "z=true", "w=[1]"],
        "prune_layers": "1, 2",
        "allow_requantize": True,
        "recipe": None,
    }
    assert given.keys() == recipes.OPTIONS.keys()
    body = recipes.fields(given)
    assert body["recipe"]["overrides"] == [
        {"pattern": "ffn_down", "type": "Q6_K"}, {"pattern": "blk=0", "type": "F16"},
    ]  # fmt: skip
    assert body["recipe"]["metadata"] == {"general.name": "a = b", "x": 3, "y": 0.5, "z": True, "w": "[1]"}
    assert body["recipe"]["prune_layers"] == [1, 2]
    asked = QuantizeBody.model_validate_json(json.dumps({"model": "gloss", "to": ["Q4_K_M"], **body}))
    assert (asked.imatrix, asked.flavour, asked.allow_requantize) == ("auto", "hq", True)
    assert isinstance(asked.recipe, RecipeBody)


def test_a_recipe_comes_from_a_file_or_from_a_variant(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    shown = {"quantization": "Q4_K_M", "allow_requantize": False, "importance_matrix": None, "pure": True}
    file.write_text(json.dumps(shown | {"output_type": "Q8_0"}))
    found = recipes.fields({"recipe": str(file), "output_type": "F16"})
    assert found == {"recipe": {"pure": True, "output_type": "F16"}}
    assert recipes.fields({"recipe": "gloss:hq-Q4_K_M"}) == {"recipe": "gloss:hq-Q4_K_M"}


@pytest.mark.parametrize(
    "options",
    [
        {"override": ["Q6_K"]}, {"override": ["=Q6_K"]}, {"override": ["a="]}, {"metadata": ["a"]},
        {"metadata": ["=1"]}, {"prune_layers": "1-2"}, {"prune_layers": ","}, {"recipe": "gloss:Q8_0", "pure": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_that_cannot_be_read_is_a_wrong_command_line(options: dict[str, Any]) -> None:
    with pytest.raises(CommandFailed) as failed:
        recipes.fields(options)
    assert failed.value.problem.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_file_that_holds_no_options_is_a_wrong_command_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(content)
    with pytest.raises(CommandFailed, match=r"recipe\.json"):
        recipes.fields({"recipe": str(file)})


@pytest.mark.parametrize(
    ("which", "field"),
    [("auto", "auto"), ("sha256:00", "sha256:00"), ("calibration", {"dataset": "calibration"})],
)
def test_an_importance_matrix_is_named_computed_or_taken(which: str, field: Any) -> None:
    assert recipes.importance(which) == field


def test_what_to_measure_becomes_fields() -> None:
    given = {"text": "none", "chunks": 3, "window": 256, "task": ["words"], "no_speed": True}
    assert given.keys() == measuring.OPTIONS.keys()
    body = measuring.fields(given)
    assert body == {"dataset": None, "chunks": 3, "window": 256, "tasks": ["words"], "speed": False}
    assert EvaluateBody.model_validate_json(json.dumps({"model": "gloss", **body})).tasks == ["words"]
    assert measuring.fields({"text": "mine"}) == {"dataset": "mine"}
