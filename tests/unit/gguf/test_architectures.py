"""What configurations become: rules for tensors, fields, and refusals with what is wrong."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.architectures import FAMILIES, layout_of
from service.gguf.architectures.config import Config
from service.gguf.architectures.rules import (
    Layout,
    Weights,
    apply,
    first_rows,
    interleaved,
    plus_one,
    without_first_rows,
)
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import Tensor

NO_FILES = Files({})
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def layout(**changes: Any) -> Layout:
    return layout_of(Config({**LLAMA, **changes}), NO_FILES)


def fields(found: Layout) -> dict[str, Any]:
    return {field.key.removeprefix(f"{found.architecture}."): field.value for field in found.fields}


def matrix(values: np.ndarray, name: str = "m") -> Weights:
    rows = values.reshape(-1, values.shape[-1])
    return Weights(name, values.shape, lambda start, stop: rows[start:stop])


def tensors(found: Layout) -> dict[str, Tensor]:
    made = {}
    for rule in found.rules:
        for source in rule.sources:
            values = np.zeros(rule.shape, np.float32)
            made[source] = Tensor(source, rule.shape, "F32", lambda start, stop, values=values: values[start:stop])
    return made


def test_sizes_and_heads_are_llama_cpps() -> None:
    found = fields(layout())
    assert (found["block_count"], found["attention.head_count"], found["attention.head_count_kv"]) == (2, 4, 2)
    assert (found["rope.dimension_count"], found["rope.freq_base"], found["context_length"]) == (16, 10_000.0, 512)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "known are LlamaForCausalLM"),
        ({"architectures": []}, "no architecture"),
        ({"architectures": [7]}, "no architecture"),
        ({"hidden_size": None}, "does not give hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 513}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": 2**21}, "vocab_size"),
        ({"num_key_value_heads": 3}, "4 heads of 16 for 3"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_scaling": "linear"}, "a JSON object"),
        ({"rope_scaling": {"rope_type": "exotic"}}, "'exotic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "factor as 0"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "Phi-3 alone"),
        ({"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}}, "cannot be"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        layout(**changes)
    assert said in refused.value.message


def test_of_classifiers_those_with_one_result_are_rerankers() -> None:
    roberta = {**LLAMA, "architectures": ["XLMRobertaForSequenceClassification"], "pad_token_id": 1}
    found = fields(layout_of(Config({**roberta, "id2label": {"0": "LABEL_0"}}), NO_FILES))
    assert (found["pooling_type"], found["classifier.output_labels"]) == (4, [b"LABEL_0"])
    for labels, said in (({"0": "no", "1": "yes"}, "2 classes"), ({}, "2 classes"), ({"0": 0, "1": 1, "2": 2}, "3 cl")):
        with pytest.raises(InvalidModel, match=said):
            layout_of(Config({**roberta, "id2label": labels}), NO_FILES)


def test_scaled_positions_are_found_under_either_spelling() -> None:
    old = fields(layout(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 8}))
    new = fields(layout(rope_parameters={"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0}))
    assert old == new
    assert (old["rope.scaling.type"], old["rope.scaling.factor"], old["rope.freq_base"]) == ("linear", 8.0, 500.0)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32}
    found = fields(layout(rope_scaling=yarn))
    assert (found["rope.scaling.original_context_length"], found["rope.scaling.yarn_beta_fast"]) == (128, 32.0)


def test_llama_3s_frequencies_are_left_alone_stretched_and_blended() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = layout(head_dim=128, hidden_size=512, rope_theta=500_000.0, rope_scaling=scaling)
    (divisors,) = found.computed
    values = divisors.read(0, 1)[0]
    wavelengths = 2 * math.pi * 500_000.0 ** (np.arange(64) / 64)
    assert (values[wavelengths < 2048] == 1).all()
    assert (values[wavelengths > 8192] == 8).all()
    between = values[(wavelengths >= 2048) & (wavelengths <= 8192)]
    assert ((between >= 1) & (between <= 8)).all()
    assert (np.diff(between) > 0).all()


def test_gemma_3_keeps_its_windows_and_both_bases() -> None:
    gemma = {**LLAMA, "architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 128}
    found = fields(layout_of(Config({**gemma, "rope_theta": 1e6, "rope_local_base_freq": 1e4}), NO_FILES))
    assert (found["rope.freq_base"], found["rope.freq_base_swa"], found["attention.sliding_window"]) == (1e6, 1e4, 128)
    assert "attention.sliding_window_pattern" not in found
    kinds = ["sliding_attention", "full_attention"]
    found = fields(layout_of(Config({**gemma, "layer_types": kinds}), NO_FILES))
    assert found["attention.sliding_window_pattern"] == 2
    with pytest.raises(InvalidModel, match="regular pattern"):
        layout_of(Config({**gemma, "layer_types": kinds[::-1]}), NO_FILES)
    text = {"text_config": {**gemma, "architectures": None}, "architectures": ["Gemma3ForConditionalGeneration"]}
    assert layout_of(Config(text), NO_FILES).architecture == "gemma3"


def test_pooling_is_what_sentence_transformers_says(tmp_path: Path) -> None:
    config = Config({**LLAMA, "architectures": ["BertModel"], "type_vocab_size": 2})
    (tmp_path / "1_Pooling").mkdir()

    def pooling(text: str, kind: str = "sentence_transformers.models.Normalize") -> Any:
        modules = '[{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}, {"type": "%s"}]'
        (tmp_path / "modules.json").write_text(modules % kind)
        (tmp_path / "1_Pooling" / "config.json").write_text(text)
        return fields(layout_of(config, Files.of_folder(tmp_path)))["pooling_type"]

    assert pooling('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}') == 1
    assert pooling('{"pooling_mode_cls_token": true}') == 2
    assert pooling('{"pooling_mode": "lasttoken"}') == 3
    for text in (
        "{}",
        '{"pooling_mode_max_tokens": true}',
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
    ):
        with pytest.raises(InvalidModel, match="pools"):
            pooling(text)
    with pytest.raises(InvalidModel, match="Dense"):
        pooling('{"pooling_mode_cls_token": true}', "sentence_transformers.models.Dense")
    assert "pooling_type" not in fields(layout_of(config, NO_FILES))


@pytest.mark.parametrize("folder", ["2_Pooling", "\x00", "\x1b[31m", "../1_Pooling", "\ud800"])
def test_a_pooling_folder_that_is_not_there_is_named_in_printable_letters(tmp_path: Path, folder: str) -> None:
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": folder}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    config = Config({**LLAMA, "architectures": ["BertModel"], "type_vocab_size": 2})
    with pytest.raises(InvalidModel, match=r"which modules\.json names") as refused:
        layout_of(config, Files.of_folder(tmp_path))
    assert refused.value.message.isprintable()


# --- tensors -----------------------------------------------------------------------------------------------------


def test_every_tensor_of_a_checkpoint_is_placed_or_refused() -> None:
    found = layout(tie_word_embeddings=True)
    complete = tensors(found)
    del complete["lm_head.weight"]
    names = [weights.name for weights in apply(found, complete)]
    assert names[:2] == ["token_embd.weight", "output_norm.weight"]
    assert "output.weight" not in names
    without = {name: tensor for name, tensor in complete.items() if name != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(InvalidModel, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        apply(found, without)
    extra = complete | {"model.layers.0.extra.weight": complete["model.norm.weight"]}
    with pytest.raises(InvalidModel, match="no part of a llama model"):
        apply(found, extra)
    wrong = complete | {"model.norm.weight": Tensor("n", (63,), "F32", lambda start, stop: np.zeros(63))}
    with pytest.raises(InvalidModel, match=r"63, where config\.json makes it 64"):
        apply(found, wrong)
    packed = complete | {"model.norm.weight": Tensor("n", (64,), "I32", lambda start, stop: np.zeros(64))}
    with pytest.raises(InvalidModel, match="whole numbers"):
        apply(found, packed)
    vision = complete | {"model.rotary_emb.inv_freq": complete["model.norm.weight"]}
    assert len(apply(found, vision)) == len(names)


def test_an_output_matrix_that_is_not_tied_must_be_there() -> None:
    found = layout(tie_word_embeddings=False)
    made = {name: tensor for name, tensor in tensors(found).items() if name != "lm_head.weight"}
    with pytest.raises(InvalidModel, match=r"no tensor 'lm_head\.weight'"):
        apply(found, made)
    for tied in (layout(), layout(tie_word_embeddings=True)):
        assert "output.weight" not in {weights.name for weights in apply(tied, made)}
    encoder = layout(tie_word_embeddings=False, architectures=["Qwen3Model"], head_dim=16)  # which has none
    assert all(rule.optional for rule in encoder.rules if rule.target == "output.weight")


def test_a_missing_optional_bias_is_no_fault_and_a_present_one_is_kept() -> None:
    found = layout()
    names = {weights.name for weights in apply(found, tensors(found))}
    assert "blk.0.attn_q.bias" in names


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 4, 8]),
    st.tuples(st.integers(0, 32), st.integers(0, 32)).map(sorted),
)
def test_rows_of_heads_are_interleaved_whatever_rows_are_asked_for(heads: int, length: int, rows: list[int]) -> None:
    values = np.random.default_rng(0).standard_normal((heads * length, 3)).astype(np.float32)
    start, stop = min(rows[0], len(values)), min(rows[1], len(values))
    # Row 2i of a head is the old row i, row 2i + 1 the old row i + d/2.
    order = [
        head * length + half * length // 2 + i for head in range(heads) for i in range(length // 2) for half in (0, 1)
    ]
    changed = interleaved(heads)(matrix(values))
    assert np.array_equal(changed.read(start, stop), values[order][start:stop])
    bias = interleaved(heads)(matrix(values[:, 0]))
    assert np.array_equal(bias.read(0, 1)[0], values[order, 0])


def test_other_changes_are_what_they_are_called() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert np.array_equal(plus_one(matrix(values)).read(1, 3), values[1:3] + 1)
    assert np.array_equal(without_first_rows(2)(matrix(values)).read(0, 2), values[2:])
    assert without_first_rows(2)(matrix(values)).shape == (2, 3)
    assert first_rows(matrix(values), 3).rows == 3


def test_experts_are_stacked_and_read_across_their_borders() -> None:
    mixtral = {**LLAMA, "architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 2}
    found = layout_of(Config(mixtral), NO_FILES)
    made = {
        name: Tensor(
            name, tensor.shape, "F32", lambda start, stop, shape=tensor.shape, of=number: np.full(shape, of)[start:stop]
        )
        for number, (name, tensor) in enumerate(tensors(found).items())
    }
    up = next(weights for weights in apply(found, made) if weights.name == "blk.0.ffn_up_exps.weight")
    assert up.shape == (3, 96, 64)
    rows = up.read(90, 200)
    assert [len(np.unique(rows[:6])), len(np.unique(rows[6:102])), len(np.unique(rows))] == [1, 1, 3]


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(
        st.sampled_from(
            [
                *LLAMA,
                "rope_scaling",
                "rope_parameters",
                "rope_theta",
                "head_dim",
                "sliding_window",
                "layer_types",
                "text_config",
                "num_experts",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 2**34) | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "type"]), inner)
            ),
            max_leaves=4,
        ),
        max_size=4,
    ),
)
def test_whatever_the_configuration_says_nothing_but_invalid_model_is_raised(
    family: str, changes: dict[str, Any]
) -> None:
    with suppress(InvalidModel):
        layout_of(Config({**LLAMA, **changes, "architectures": [family]}), NO_FILES)
