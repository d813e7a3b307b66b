"""What the demo finds, and the commands it tells people to try."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

from service.cli.demo import try_these
from service.cli.demo_models import LEVELS, SMOLLM2_FILE, WORDS, expected_answers, find_files
from service.cli.failures import CommandFailed
from service.cli.quantizing import TABLE_LEVELS

DEMO = Path(__file__).parents[3] / "demo"


def test_the_demo_makes_every_level_of_the_table() -> None:
    assert set(LEVELS) == set(TABLE_LEVELS)


def test_every_word_the_demo_may_ask_has_an_expected_answer() -> None:
    assert set(WORDS) <= set(expected_answers(DEMO / "words.json"))


def test_the_model_beside_the_package_is_found(tmp_path: Path) -> None:
    files = find_files({"XDG_CACHE_HOME": str(tmp_path)})
    assert files.gloss.is_file()
    assert files.smollm2 is None


def test_another_folder_can_hold_both_models(tmp_path: Path) -> None:
    (tmp_path / "gloss-5m-f16.gguf").touch()
    (tmp_path / SMOLLM2_FILE).touch()
    files = find_files({"QUANTRY_DEMO_MODELS": str(tmp_path)})
    assert (files.gloss.parent, files.smollm2) == (tmp_path, tmp_path / SMOLLM2_FILE)


def test_the_fetched_model_is_found_in_the_cache(tmp_path: Path) -> None:
    cached = tmp_path / "models" / "b179c9523d0e" / SMOLLM2_FILE
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_files({"QUANTRY_WHEEL_CACHE": str(tmp_path)}).smollm2 == cached


def test_a_folder_without_the_model_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failed:
        find_files({"QUANTRY_DEMO_MODELS": str(tmp_path)})
    assert "QUANTRY_DEMO_MODELS" in str(failed.value.problem.remedy)


@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize("has_smollm2", [True, False])
def test_the_commands_to_try_survive_a_shell(with_key: bool, has_smollm2: bool) -> None:
    curl, run, python = try_these("http://127.0.0.1:9", "it's", has_smollm2=has_smollm2, with_key=with_key)
    body = json.loads(shlex.split(curl)[-1])
    assert body["messages"][0]["content"] == 'What does "it\'s" mean?'
    assert ("$QUANTRY_API_KEY" in curl) is with_key
    assert shlex.split(run)[-1] == ("smollm2" if has_smollm2 else "gloss:Q4_K_M")
    ast.parse(shlex.split(python)[-1])
