"""Unigram vocabularies: XLM-RoBERTa's and those of encoders that took it over."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from service.domain.errors import InvalidModel
from service.gguf.vocabulary.tokens import Kind
from tests.unigram_tokenizers import LETTERS, charsmap
from tests.unit.gguf.vocabulary.conftest import MakeTokenizer

NORMALIZER = "ggml.remove_extra_whitespaces"


def test_tokenizer_json_gives_pieces_scores_and_the_map_of_letters(make_tokenizer: MakeTokenizer) -> None:
    fields = make_tokenizer("xlm-roberta").fields()
    assert fields["ggml.model"] == "t5"
    assert fields["ggml.tokens"][:4] == [b"<s>", b"<pad>", b"</s>", b"<unk>"]
    assert fields["ggml.token_type"][:5] == [Kind.CONTROL, Kind.CONTROL, Kind.CONTROL, Kind.UNKNOWN, Kind.NORMAL]
    assert fields["ggml.tokens"][-9] == b"<mask>"
    assert set(fields["ggml.token_type"][-8:]) == {Kind.UNUSED}  # rows that no token has
    assert fields["ggml.scores"][0] == 0.0 > max(fields["ggml.scores"][4:-9])
    assert fields["ggml.precompiled_charsmap"] == charsmap(LETTERS)
    assert fields["ggml.unknown_token_id"] == 3


def test_both_kinds_of_files_give_the_same_but_for_the_mask(make_tokenizer: MakeTokenizer) -> None:
    fast, slow = make_tokenizer("xlm-roberta").fields(), make_tokenizer("xlm-roberta-slow").fields()
    for key in ("tokens", "scores", "token_type"):
        assert fast[f"ggml.{key}"][:-9] == slow[f"ggml.{key}"][:-9]
    arrays = {"ggml.tokens", "ggml.scores", "ggml.token_type"}
    named_by_one = {"ggml.mask_token_id"}
    for key in (set(fast) | set(slow)) - arrays - named_by_one:
        assert fast[key] == slow[key], key


def test_tokenizer_json_goes_before_the_model_it_was_made_of(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("xlm-roberta")
    (tokenizer.folder / "sentencepiece.bpe.model").write_bytes(b"not looked at")
    assert b"<mask>" in tokenizer.fields()["ggml.tokens"]


def test_a_bert_with_a_unigram_tokenizer_gets_that(make_tokenizer: MakeTokenizer) -> None:
    """As multilingual E5 small: BERT's positions, XLM-RoBERTa's tokens, and a padding id in config.json of neither."""
    tokenizer = make_tokenizer("xlm-roberta").change("config.json", lambda config: config.update(pad_token_id=0))
    fields = tokenizer.fields()
    assert (fields["ggml.model"], fields["ggml.padding_token_id"]) == ("t5", 1)


def test_tokens_added_later_keep_their_places(make_tokenizer: MakeTokenizer) -> None:
    slow = make_tokenizer("xlm-roberta-slow")
    last = slow.size - 1
    slow.change("added_tokens.json", lambda added: added.update({"<query>": last}))
    slow.change(
        "tokenizer_config.json",
        lambda config: config.update(added_tokens_decoder={str(last - 1): {"content": "<text>", "special": True}}),
    )
    fields = slow.fields()
    assert fields["ggml.tokens"][-2:] == [b"<text>", b"<query>"]
    assert fields["ggml.token_type"][-2:] == [Kind.CONTROL, Kind.USER_DEFINED]


def test_a_model_with_more_pieces_than_rows_is_refused(make_tokenizer: MakeTokenizer) -> None:
    for family in ("xlm-roberta", "xlm-roberta-slow"):
        tokenizer = make_tokenizer(family)
        tokenizer.size -= 10
        with pytest.raises(InvalidModel, match="belong"):
            tokenizer.fields()


def test_spaces_are_merged_where_the_tokenizer_merges_them(make_tokenizer: MakeTokenizer) -> None:
    def with_steps(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> dict[str, Any]:
        tokenizer = make_tokenizer("xlm-roberta")
        tokenizer.change(
            "tokenizer.json",
            lambda file: file.update(
                normalizer={"type": "Sequence", "normalizers": normalizers},
                pre_tokenizer={"type": "Sequence", "pretokenizers": pre_tokenizers},
            ),
        )
        try:
            return tokenizer.fields()
        finally:
            for path in sorted(tokenizer.folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            tokenizer.folder.rmdir()

    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    merged = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    assert with_steps([], [metaspace])[NORMALIZER] is False
    assert with_steps([merged], [metaspace])[NORMALIZER] is True
    assert with_steps([], [{"type": "WhitespaceSplit"}, metaspace])[NORMALIZER] is True
    assert "ggml.precompiled_charsmap" not in with_steps([], [metaspace])
    for normalizers, pre_tokenizers in (
        ([{"type": "Lowercase"}], [metaspace]),
        ([], [{"type": "BertPreTokenizer"}]),
        ([merged], [metaspace | {"prepend_scheme": "never"}]),
    ):
        with pytest.raises(InvalidModel, match=r"convert_hf_to_gguf\.py"):
            with_steps(normalizers, pre_tokenizers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unk_id": None}, "unknown letters"),
        ({"unk_id": 100_000}, "unknown letters"),
        ({"byte_fallback": True}, "unknown letters"),
        ({"vocab": []}, "has 0 tokens"),
        ({"vocab": [["a", "b"]]}, "no scored piece"),
        ({"vocab": [["a", 1e39]]}, "no scored piece"),
        ({"vocab": [["a", float("nan")]]}, "no scored piece"),
        ({"vocab": {"a": 1}}, "not a list"),
    ],
)
def test_a_unigram_model_that_llama_cpp_would_read_wrong_is_refused(
    change: dict[str, Any], said: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer("xlm-roberta").change("tokenizer.json", lambda file: file["model"].update(change))
    with pytest.raises(InvalidModel, match=said):
        tokenizer.fields()


@pytest.mark.parametrize("text", ["?", "AAAA", base64.b64encode(struct.pack("<I", 99) + b"abc").decode()])
def test_a_damaged_map_of_letters_is_refused(text: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("xlm-roberta")
    tokenizer.change("tokenizer.json", lambda file: file["normalizer"].update(precompiled_charsmap=text))
    with pytest.raises(InvalidModel, match="precompiled_charsmap"):
        tokenizer.fields()
