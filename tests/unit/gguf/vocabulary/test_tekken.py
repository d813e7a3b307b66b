"""tekken.json, where a checkpoint has no other tokenizer."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from service.domain.errors import InvalidModel
from service.gguf.vocabulary.tokens import Kind
from tests.unit.gguf.vocabulary.conftest import MakeTokenizer

Change = Callable[[dict[str, Any]], Any]


def test_special_tokens_come_first_and_those_without_a_name_are_numbered(make_tokenizer: MakeTokenizer) -> None:
    fields = make_tokenizer("mistral-tekken").fields()
    assert (fields["ggml.model"], fields["ggml.pre"]) == ("gpt2", "tekken")
    assert fields["ggml.tokens"][:3] == [b"<unk>", b"<s>", b"</s>"]
    assert fields["ggml.tokens"][20] == b"<SPECIAL_20>"
    assert fields["ggml.token_type"][20:22] == [Kind.CONTROL, Kind.NORMAL]
    assert b"not" not in fields["ggml.tokens"][-1]  # behind what config says is used
    assert (fields["ggml.bos_token_id"], fields["ggml.eos_token_id"], fields["ggml.padding_token_id"]) == (1, 2, 10)
    assert (fields["ggml.add_bos_token"], fields["ggml.add_eos_token"]) == (True, False)


def test_the_end_pads_where_no_token_does(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("mistral-tekken").change("tekken.json", lambda file: file["special_tokens"].pop(10))
    fields = tokenizer.fields()
    assert fields["ggml.tokens"][10] == b"<SPECIAL_10>"
    assert fields["ggml.padding_token_id"] == 2


def test_tokenizer_json_goes_before_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("mistral-nemo").change("tekken.json", lambda file: file.update(nothing="of use"))
    assert tokenizer.fields()["ggml.tokens"][6] == b"<SPECIAL_14>"


def token(rank: int, text: bytes) -> dict[str, Any]:
    return {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.pop("special_tokens"), r"tokenizer\.json"),
        (lambda file: file["special_tokens"].append({"rank": 2, "token_str": "<again>"}), "one too many"),
        (lambda file: file["special_tokens"].append({"rank": 900, "token_str": "<far>"}), "one too many"),
        (lambda file: file["special_tokens"].pop(1), "begin and end"),
        (lambda file: file["config"].update(default_vocab_size=3), "tokens where -18 belong"),
        (lambda file: file["config"].update(default_vocab_size=9000), "tokens where"),
        (lambda file: file["config"].update(default_num_special_tokens=2**30), "tokenizer"),
        (lambda file: file["config"].update(pattern=r"\w+"), "not known here"),
        (lambda file: file["vocab"].__setitem__(7, token(7, b"x")), "none at 7"),
        (lambda file: file["vocab"].__setitem__(300, token(299, b"xy")), "none at 300"),
        (lambda file: file["vocab"].__setitem__(300, {"rank": 300, "token_bytes": "?"}), "none at 300"),
        (lambda file: file["vocab"].__setitem__(300, token(300, b"a" * 513)), "none at 300"),
        (lambda file: file["vocab"].__setitem__(300, token(300, b"qqqzzz")), "no two others"),
        (lambda file: file["vocab"].__setitem__(300, file["vocab"][299] | {"rank": 300}), "token twice"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_kind_is_refused(
    change: Change, said: str, make_tokenizer: MakeTokenizer
) -> None:
    with pytest.raises(InvalidModel, match=said):
        make_tokenizer("mistral-tekken").change("tekken.json", change).fields()
