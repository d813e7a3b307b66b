"""The rules by which tokenizers cut words are known by their definition, as models publish it; others are refused."""

from __future__ import annotations

from typing import Any

import pytest

from service.domain.errors import InvalidModel
from service.gguf.vocabulary.definition import Definition
from service.gguf.vocabulary.pre_tokenizers import pre_tokenizer
from tests.checkpoint_tokenizers import LLAMA3_PATTERN, QWEN2_PATTERN, TEKKEN_PATTERN

GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HAN = "[一-龥ࠀ-一가-퟿]+"


def split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def bytes_step(**more: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | more


BYTES = bytes_step(use_regex=False)
DIGITS = {"type": "Digits", "individual_digits": True}


def named(*steps: dict[str, Any], ignore_merges: bool = False, processors: tuple[dict[str, Any], ...] = ()) -> str:
    nothing: dict[str, int] = {}
    return pre_tokenizer(Definition("BPE", nothing, (), (), False, ignore_merges, False, (), steps, processors))


@pytest.mark.parametrize(
    ("name", "steps", "ignore_merges"),
    [
        ("gpt-2", [bytes_step(use_regex=True)], False),
        ("gpt-2", [bytes_step()], False),  # files from before use_regex was a setting
        ("smollm", [DIGITS, bytes_step(use_regex=True)], False),
        ("llama-bpe", [split(LLAMA3_PATTERN), BYTES], True),
        ("smaug-bpe", [split(LLAMA3_PATTERN), BYTES], False),
        ("qwen2", [split(QWEN2_PATTERN), BYTES], False),
        ("tekken", [split(TEKKEN_PATTERN), BYTES], False),
        ("tekken", [split(TEKKEN_PATTERN), BYTES], True),
        ("gpt-4o", [split(GPT4O_PATTERN, "Removed", invert=True), BYTES], False),  # as Phi 4 mini has it
        (
            "deepseek-coder",
            [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(HAN), DIGITS, BYTES],
            False,
        ),
    ],
)
def test_published_rules_have_llama_cpps_name(name: str, steps: list[dict[str, Any]], ignore_merges: bool) -> None:
    assert named(*steps, ignore_merges=ignore_merges) == name


def test_roberta_is_gpt_2_with_separators() -> None:
    assert named(bytes_step(use_regex=True), processors=({"type": "RobertaProcessing"},)) == "roberta-bpe"


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [BYTES],
        [split(LLAMA3_PATTERN.replace("{1,3}", "{1,2}")), BYTES],
        [split(LLAMA3_PATTERN)],
        [split(LLAMA3_PATTERN, "Removed"), BYTES],
        [split(LLAMA3_PATTERN, invert=True), BYTES],
        [{"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}],
        [{"type": "Whitespace"}, BYTES],
        [{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, BYTES],
        [{"type": "Digits", "individual_digits": False}, bytes_step(use_regex=True)],
        [{}],
    ],
)
def test_other_rules_are_refused_with_a_way_out(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidModel, match=r"convert_hf_to_gguf\.py"):
        named(*steps)


def test_merges_that_are_ignored_where_llama_cpp_would_not_are_refused() -> None:
    with pytest.raises(InvalidModel):
        named(split(QWEN2_PATTERN), BYTES, ignore_merges=True)
