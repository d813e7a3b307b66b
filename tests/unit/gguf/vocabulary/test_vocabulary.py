"""What becomes of tokenizers' files; that all of it is llama.cpp's own is tests/integration/gguf/test_reference.py."""

from __future__ import annotations

from typing import Any

import pytest

from service.domain.errors import InvalidModel
from service.gguf.header import MAX_TOKENS
from service.gguf.vocabulary.tokens import Kind, Tokens
from tests.unit.gguf.vocabulary.conftest import MakeTokenizer


def test_ids_that_no_token_has_are_filled(make_tokenizer: MakeTokenizer) -> None:
    fields = make_tokenizer("qwen2").fields()
    assert fields["ggml.tokens"][-16:] == [b"[PAD%d]" % number for number in range(419, 435)]
    assert fields["ggml.token_type"][-16:] == [Kind.UNUSED] * 16


def test_without_a_size_the_vocabulary_is_as_large_as_its_tokens(make_tokenizer: MakeTokenizer) -> None:
    for family in ("qwen2", "gemma2", "bert", "llama2-fast"):
        tokenizer = make_tokenizer(family)
        largest = len([token for token in tokenizer.fields()["ggml.tokens"] if not token.startswith(b"[PAD")])
        tokenizer.size = 0
        assert largest - 1 <= len(tokenizer.fields()["ggml.tokens"]) <= largest + 1


def test_a_vocabulary_smaller_than_its_tokens_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.size -= 1
    with pytest.raises(InvalidModel, match="different models"):
        tokenizer.fields()


@pytest.mark.parametrize("size", [-1, MAX_TOKENS + 1, 1 << 62])
def test_a_size_that_cannot_be_is_refused_before_anything_is_made(size: int) -> None:
    with pytest.raises(InvalidModel, match="Download"):
        Tokens.of(size)


def test_merges_are_written_the_same_from_both_spellings(make_tokenizer: MakeTokenizer) -> None:
    def as_pairs(file: dict[str, Any]) -> None:
        file["model"]["merges"] = [merge.split(" ") for merge in file["model"]["merges"]]

    tokenizer = make_tokenizer("llama")
    texts = tokenizer.fields()["ggml.merges"]
    assert tokenizer.change("tokenizer.json", as_pairs).fields()["ggml.merges"] == texts


def test_a_space_inside_of_a_merge_becomes_the_letter_of_its_byte(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("qwen3")
    tokenizer.change("tokenizer.json", lambda file: file["model"]["merges"].append(["a b", " c"]))
    assert tokenizer.fields()["ggml.merges"][-1] == "aĠb Ġc".encode()


def test_added_tokens_are_control_where_they_are_special_or_look_so(make_tokenizer: MakeTokenizer) -> None:
    def add(file: dict[str, Any]) -> None:
        texts = ("<|looks_special|>", "<plain>", "▁word", "Ġspaced")
        for number, text in enumerate(texts, start=423):
            file["added_tokens"].append({"id": number, "content": text, "special": False, "normalized": False})

    tokenizer = make_tokenizer("qwen3").change("tokenizer.json", add)
    fields = tokenizer.fields()
    assert fields["ggml.tokens"][423:427] == [b"<|looks_special|>", b"<plain>", b" word", b" spaced"]
    assert fields["ggml.token_type"][423:427] == [Kind.CONTROL, *[Kind.USER_DEFINED] * 3]


def test_tokens_that_only_tokenizer_config_adds_are_there(make_tokenizer: MakeTokenizer) -> None:
    def add(config: dict[str, Any]) -> None:
        config["added_tokens_decoder"]["430"] = {"content": "<extra>", "special": True}

    fields = make_tokenizer("qwen2").change("tokenizer_config.json", add).fields()
    assert (fields["ggml.tokens"][430], fields["ggml.token_type"][430]) == (b"<extra>", Kind.CONTROL)


def test_two_tokens_with_one_text_are_refused_for_llama_cpp_would_abort(make_tokenizer: MakeTokenizer) -> None:
    def twice(file: dict[str, Any]) -> None:
        file["model"]["vocab"]["##same"] = 7
        file["model"]["vocab"]["same"] = 8
        file["added_tokens"].append({"id": 9, "content": "same", "special": True})

    with pytest.raises(InvalidModel, match="same text"):
        make_tokenizer("bert").change("tokenizer.json", twice).fields()


def test_texts_that_are_one_up_to_a_zero_byte_are_refused(make_tokenizer: MakeTokenizer) -> None:
    tokens = Tokens.of(2)
    tokens.put(0, "a\0b", Kind.NORMAL)
    tokens.put(1, "a\0c", Kind.NORMAL)
    with pytest.raises(InvalidModel, match="same text"):
        tokens.fields(scores=False)


def test_bert_is_read_from_vocab_txt_alone(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("bert")
    whole = tokenizer.fields()
    (tokenizer.folder / "tokenizer.json").unlink()
    listed = tokenizer.fields()
    assert (listed["ggml.tokens"], listed["ggml.token_type"]) == (whole["ggml.tokens"], whole["ggml.token_type"])
    assert listed["ggml.cls_token_id" if "ggml.cls_token_id" in whole else "ggml.bos_token_id"] == 4
    assert listed["ggml.normalizer.lowercase"] is True


def test_gemma_begins_no_text_with_a_space_and_phi_3_keeps_its_marks(make_tokenizer: MakeTokenizer) -> None:
    gemma = make_tokenizer("gemma2").fields()
    assert gemma["ggml.add_space_prefix"] is False
    assert b"  " in gemma["ggml.tokens"]  # "▁▁" in the file
    assert make_tokenizer("phi3").fields()["ggml.tokens"].count(b"<|user|>") == 1


def test_a_gemma_without_tokenizer_model_takes_ranks_as_scores(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("mistral")
    pieces = tokenizer.fields()
    (tokenizer.folder / "tokenizer.model").unlink()
    merged = tokenizer.fields()
    assert merged["ggml.model"] == "llama"
    assert merged["ggml.tokens"] == pieces["ggml.tokens"]
    learned = [number for number, kind in enumerate(pieces["ggml.token_type"]) if kind is Kind.NORMAL]
    by_score = sorted(learned, key=lambda number: -pieces["ggml.scores"][number])
    ranked = [number for number in by_score if merged["ggml.scores"][number] > min(merged["ggml.scores"])]
    assert ranked == sorted(ranked, key=lambda number: -merged["ggml.scores"][number])


def test_a_phi_4_with_gpt_2s_tokenizer_is_byte_level(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama3")
    tokenizer.family = "phi3"
    (tokenizer.folder / "tokenizer.model").write_bytes(b"not looked at")
    tokenizer.change("tokenizer_config.json", lambda config: config.update(tokenizer_class="GPT2Tokenizer"))
    assert tokenizer.fields()["ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(("family", "missing"), [("llama", "tokenizer.json"), ("gemma2", "tokenizer.model")])
def test_a_checkpoint_without_its_tokenizer_is_refused_with_a_remedy(
    family: str, missing: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(family)
    (tokenizer.folder / missing).unlink()
    with pytest.raises(InvalidModel, match="save_pretrained"):
        tokenizer.fields()


# ---- special tokens ----


def test_a_token_named_in_tokenizer_config_goes_before_an_id_in_config_json(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.change("config.json", lambda config: config.update(eos_token_id=0, unk_token_id=5, mask_token_id=3))
    fields = tokenizer.fields()
    assert fields["ggml.eos_token_id"] == 2  # <|im_end|>
    assert fields["ggml.unknown_token_id"] == 0
    assert fields["ggml.mask_token_id"] == 3  # named nowhere else


@pytest.mark.parametrize("number", [[1, 2], True, None, "2", 1 << 40])
def test_ids_that_are_none_or_outside_are_left_out(number: object, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama2").change("config.json", lambda config: config.update(bos_token_id=number))
    assert "ggml.bos_token_id" not in tokenizer.fields()


def test_of_several_tokens_that_end_a_text_the_first_is_the_end(make_tokenizer: MakeTokenizer) -> None:
    """Without one llama.cpp presets one of its own: a comma, in a byte-level vocabulary."""

    def several(config: dict[str, Any]) -> None:
        config.update(eos_token_id=[2, 5])

    assert make_tokenizer("llama2").change("config.json", several).fields()["ggml.eos_token_id"] == 2


def test_a_negative_id_is_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(InvalidModel, match="negative"):
        make_tokenizer("llama2").change("config.json", lambda config: config.update(bos_token_id=-1)).fields()


def test_names_given_as_objects_count_as_names(make_tokenizer: MakeTokenizer) -> None:
    """The reference compares them with texts, and so takes Llama 2's begin token away."""

    def as_object(config: dict[str, Any]) -> None:
        config["bos_token"] = {"__type": "AddedToken", "content": "<s>"}

    fields = make_tokenizer("mistral").change("tokenizer_config.json", as_object).fields()
    assert (fields["ggml.bos_token_id"], fields["ggml.add_bos_token"]) == (1, True)


def test_what_the_post_processor_adds_goes_before_what_the_configuration_says(make_tokenizer: MakeTokenizer) -> None:
    def contradict(config: dict[str, Any]) -> None:
        config.update(add_bos_token=False, add_eos_token=True)

    fields = make_tokenizer("llama3").change("tokenizer_config.json", contradict).fields()
    assert (fields["ggml.add_bos_token"], fields["ggml.add_eos_token"]) == (True, False)


def test_a_token_that_ends_each_text_makes_the_named_one_the_end_of_a_turn(make_tokenizer: MakeTokenizer) -> None:
    def end(file: dict[str, Any]) -> None:
        file["post_processor"]["processors"][1]["single"].append({"SpecialToken": {"id": "<|end_of_text|>"}})

    fields = make_tokenizer("llama3").change("tokenizer.json", end).fields()
    assert (fields["ggml.eos_token_id"], fields["ggml.eot_token_id"]) == (417, 423)


def test_encoders_get_begin_and_end_and_separators(make_tokenizer: MakeTokenizer) -> None:
    bert, roberta = make_tokenizer("bert").fields(), make_tokenizer("roberta").fields()
    assert [bert[f"ggml.add_{role}_token"] for role in ("bos", "eos", "sep")] == [True, True, False]
    assert [roberta[f"ggml.add_{role}_token"] for role in ("bos", "eos", "sep")] == [True, True, True]
    assert (bert["ggml.bos_token_id"], bert["ggml.eos_token_id"], bert["ggml.seperator_token_id"]) == (4, 5, 5)


# ---- chat templates ----


def test_templates_come_from_three_places(make_tokenizer: MakeTokenizer) -> None:
    for family in ("llama", "smollm3", "gemma3"):
        assert make_tokenizer(family).fields()["chat_template"].startswith("{")


def test_named_templates_keep_their_names(make_tokenizer: MakeTokenizer) -> None:
    fields = make_tokenizer("qwen3").fields()
    assert fields["chat_templates"] == [b"tool_use"]
    assert fields["chat_template.tool_use"] == "{# tools #}" + fields["chat_template"]


def test_templates_in_a_folder_of_their_own_are_named_by_their_files(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("smollm3")
    more = tokenizer.folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ tools }}")
    (more / "notes.txt").write_text("no template")
    fields = tokenizer.fields()
    assert fields["chat_template.tool_use"] == "{{ tools }}"
    assert fields["chat_templates"] == [b"tool_use"]
    assert "<|im_start|>" in fields["chat_template"]


def test_names_of_templates_are_letters_and_digits(make_tokenizer: MakeTokenizer) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["chat_template"] = [
            {"name": "a.b/ü\n", "template": "x"},
            {"name": "", "template": "y"},
            {"name": "c"},
            7,
        ]

    fields = make_tokenizer("qwen3").change("tokenizer_config.json", rename).fields()
    assert fields["chat_templates"] == [b"a_b__" + b"_"]
    assert "chat_template" not in fields


def test_a_template_longer_than_the_engine_renders_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.change("tokenizer_config.json", lambda config: config.update(chat_template="x" * (128 * 1024 + 1)))
    with pytest.raises(InvalidModel, match="shorter"):
        tokenizer.fields()


def test_a_template_of_another_type_is_left_out(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama").change("tokenizer_config.json", lambda config: config.update(chat_template=7))
    assert "chat_template" not in tokenizer.fields()
