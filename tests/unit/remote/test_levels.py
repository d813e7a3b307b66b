"""Which files make which level, by the names that people give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import ModelNotFound
from service.domain.quants import QUANTIZATIONS
from service.domain.remote import RemoteFile
from service.remote.levels import chosen, level_in, levels_of, recommended


def files(*names, size=10):
    return [RemoteFile(name, f"https://hub/{name}", size) for name in names]


def shown(*names):
    return {level.choice: [file.name for file in level.files] for level in levels_of(files(*names))}


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("Llama-3.2-1B-Instruct.q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("m.f16.gguf", "F16"),
        ("m-BF16.gguf", "BF16"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m_Q4_K_L.gguf", "Q4_K_L"),
        ("m-Q4_K_L.gguf", "Q4_K_L"),
        ("Q8_0/m-00001-of-00002.gguf", "Q8_0"),
        ("IQ2_XXS/m-IQ3_M.gguf", "IQ3_M"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("gemma-3-4b.gguf", None),
        ("m-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
    ],
)
def test_a_files_name_says_its_level(name, level):
    assert level_in(name) == level


@pytest.mark.parametrize("label", QUANTIZATIONS)
def test_every_level_of_ours_is_read_from_a_name(label):
    assert level_in(f"sub/model-1.5b-{label.lower()}.gguf") == label


def test_levels_are_files_and_what_is_no_model_is_left_out():
    assert shown(
        "README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-F16.gguf", "m-mmproj-F16.gguf", "imatrix.gguf",
        "m-imatrix.gguf", "m-vocab.gguf", "m-Q4_K_M.txt", "m-lora-F16.gguf",
    ) == {"Q4_K_M": ["m-Q4_K_M.gguf"], "Q8_0": ["m-Q8_0.gguf"]}  # fmt: skip


def test_pieces_are_one_level_in_their_order_and_only_if_all_are_there():
    pieces = [f"Q8_0/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert shown(*reversed(pieces)) == {"Q8_0": pieces}
    assert shown(*pieces[:2]) == {}


def test_a_second_file_of_a_level_is_chosen_by_its_name():
    assert shown("a-Q4_0.gguf", "b-Q4_0.gguf", "c.gguf") == {
        "Q4_0": ["a-Q4_0.gguf"],
        "b-Q4_0.gguf": ["b-Q4_0.gguf"],
        "c.gguf": ["c.gguf"],
    }


def test_files_of_one_name_in_two_folders_are_told_apart_by_their_paths():
    listed = files("one/model.gguf", "two/model.gguf", "Q4_0/m.gguf", "Q8_0/m.gguf")
    levels = levels_of(listed)
    assert sorted(level.choice for level in levels) == ["Q4_0", "Q8_0", "model.gguf", "two/model.gguf"]
    for file in listed:
        assert chosen(levels, listed, file.name).files == (file,)
    assert chosen(levels, listed, "model.gguf").files == (listed[0],)


def test_a_checkpoint_is_a_level_to_be_made():
    names = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json",
             "model.safetensors.index.json", "1_Pooling/config.json", "pytorch_model.bin", "onnx/model.onnx",
             "other.safetensors", "run.py")  # fmt: skip
    (level,) = levels_of(files(*names), "BF16")
    assert (level.level, level.choice, level.converts) == ("BF16", "BF16", True)
    assert {file.name for file in level.files} == {
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json",
        "model.safetensors.index.json", "1_Pooling/config.json",
    }  # fmt: skip
    both = levels_of(files("config.json", "model.safetensors", "m-F16.gguf"))
    assert [level.choice for level in both] == ["F16", "safetensors"]
    assert chosen(both, [], "safetensors").converts
    assert recommended(both).choice == "F16"
    assert levels_of(files("model.safetensors")) == ()


def test_the_recommended_level_is_the_best_that_fits():
    sizes = {"m-Q8_0.gguf": 80, "m-Q4_K_M.gguf": 50, "m-Q2_K.gguf": 30}
    levels = levels_of([RemoteFile(name, "", size) for name, size in sizes.items()])
    assert recommended(levels).level == "Q4_K_M"
    assert recommended(levels, 1000).level == "Q4_K_M"
    assert recommended(levels, 40).level == "Q2_K"
    assert recommended(levels, 1).level == "Q2_K"
    assert recommended(()) is None
    assert recommended(levels_of(files("m-UD-Q4_K_XL.gguf", "m-Q2_K.gguf"))).level == "UD-Q4_K_XL"


def test_a_choice_is_a_level_or_a_file_and_else_says_what_there_is():
    listed = files("a-UD-Q4_K_M.gguf", "b-Q8_0.gguf")
    levels = levels_of(listed)
    assert chosen(levels, listed, "q8_0").level == "Q8_0"
    assert chosen(levels, listed, "b-q8_0.GGUF").level == "Q8_0"
    assert chosen(levels, listed, "Q4_K_M").level == "UD-Q4_K_M"
    with pytest.raises(ModelNotFound, match="there are Q8_0, UD-Q4_K_M"):
        chosen(levels, listed, "Q5_0")
    with pytest.raises(ModelNotFound, match="pickled"):
        chosen((), files("pytorch_model.bin"), None)
    with pytest.raises(ModelNotFound, match="neither"):
        chosen((), files("README.md"), None)


@given(st.lists(st.text(alphabet="mQ48_KIX-./0123456789of.gs", max_size=30), max_size=8))
def test_any_listing_gives_levels_that_can_be_chosen(names):
    listed = files(*dict.fromkeys([*names, *(f"{name}.gguf" for name in names)]))
    levels = levels_of(listed)
    choices = [level.choice for level in levels]
    for level in levels:
        assert level.files
        if choices.count(level.choice) == 1:
            assert chosen(levels, listed, level.choice) is level
