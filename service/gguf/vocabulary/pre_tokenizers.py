"""llama.cpp's name for how a byte-level BPE tokenizer cuts a text into words before merging.

Runs in job children. llama.cpp's converter knows tokenizers by a hash of what they make of one text; here they are
known by their definition, so that another vocabulary over the same rules is known too. What is not known is refused:
with wrong words a model reads text that it was never trained on, and nothing says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.vocabulary.definition import Definition

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_LLAMA3 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _SIGNS, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _SIGNS, _SPACES))
_TEKKEN = "|".join((_CASED, _UPPER, r"\p{N}", _SIGNS_AND_SLASHES, _SPACES))
_GPT4O = "|".join(
    (f"{_CASED}{_CONTRACTIONS}?", f"{_UPPER}{_CONTRACTIONS}?", r"\p{N}{1,3}", _SIGNS_AND_SLASHES, _SPACES)
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CHINESE_AND_KOREAN = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_LLM_SIGNS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"  # noqa: RUF001
_LATIN_GREEK_CYRILLIC_BEGIN = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ"

# What a step is to the table below: a pattern, or a word for a step that is none.
_DIGITS = "digits, one by one"
_GPT2_BYTES = "bytes, cut by GPT-2's pattern"
_BYTES = "bytes"
_LETTERS_OF_SOME_SCRIPTS = "letters of Latin, Greek, Cyrillic and the like"

_NAMES: Mapping[tuple[str, ...], str] = {
    (_GPT2_BYTES,): "gpt-2",
    (_GPT2, _BYTES): "gpt-2",
    (_DIGITS, _GPT2_BYTES): "smollm",
    (_QWEN2, _BYTES): "qwen2",
    (_TEKKEN, _BYTES): "tekken",
    (_GPT4O, _BYTES): "gpt-4o",
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_AND_KOREAN, _DIGITS, _BYTES): "deepseek-coder",
    (
        "[\r\n]",
        _LETTERS_OF_SOME_SCRIPTS,
        _DEEPSEEK_LLM_SIGNS,
        r"\s+$",
        _CHINESE_AND_KOREAN,
        _DIGITS,
        _BYTES,
    ): "deepseek-llm",
}

# llama.cpp takes a word that is in the vocabulary as it is, merges or not, for these; for all others never.
_IGNORES_MERGES = {"tekken"}


def pre_tokenizer(definition: Definition) -> str:
    """The value of `tokenizer.ggml.pre`. Raises InvalidModel when llama.cpp has none, or none known here, for it."""
    normalizers = {step.get("type") for step in definition.normalizers} - {"NFC"}  # llama.cpp composes nothing
    steps = tuple(_step(step) for step in definition.pre_tokenizers)
    if normalizers or definition.affixes or None in steps:
        raise _unknown()
    if steps == (_LLAMA3, _BYTES):
        return "llama-bpe" if definition.ignore_merges else "smaug-bpe"  # Llama 3's without that rule
    name = _NAMES.get(tuple(step for step in steps if step is not None))
    if name is None or (definition.ignore_merges and name not in _IGNORES_MERGES):
        raise _unknown()
    if name == "gpt-2" and any(step.get("type") == "RobertaProcessing" for step in definition.processors):
        return "roberta-bpe"
    return name


def _step(step: Mapping[str, Any]) -> str | None:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return _BYTES if step.get("use_regex") is False else _GPT2_BYTES
        case {"type": "Digits", "individual_digits": True}:
            return _DIGITS
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            # Patterns that match every character cut the same way whether their matches or what lies between count.
            whole = pattern.endswith(r"|\s+")
            kept = (step.get("behavior"), step.get("invert", False))
            if kept != ("Isolated", False) and not (whole and kept == ("Removed", True)):
                return None
            if pattern.startswith(_LATIN_GREEK_CYRILLIC_BEGIN) and pattern.endswith("]+") and "\\p" not in pattern:
                return _LETTERS_OF_SOME_SCRIPTS
            return pattern
    return None


def _unknown() -> InvalidModel:
    return InvalidModel(
        "The tokenizer cuts texts into words by rules that are not known here, and with other rules the model would "
        "read its prompts wrong. If llama.cpp knows this model, convert it with its convert_hf_to_gguf.py and import "
        "the GGUF file."
    )
