"""Which files of a folder make up a checkpoint, and what of its JSON is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import MAX_JSON_DEPTH, Files
from service.gguf.shards import shard_names

HERE = Path("/nowhere")


def files(*names: str) -> Files:
    return Files({name: HERE / name for name in names})


def indexed(folder: Path, weight_map: object, *names: str) -> Files:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in names:
        (folder / name).write_bytes(b"")
    return Files.of_folder(folder)


def test_one_file_is_the_checkpoint() -> None:
    assert shard_names(files("config.json", "model.safetensors", "consolidated.safetensors")) == ("model.safetensors",)
    assert shard_names(files("gptq_model-4bit-128g.safetensors")) == ("gptq_model-4bit-128g.safetensors",)
    assert shard_names(files("adapter_model.safetensors"), "adapter_model") == ("adapter_model.safetensors",)


def test_numbered_files_belong_together_and_none_may_be_missing() -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert shard_names(files(*reversed(names))) == tuple(names)
    with pytest.raises(InvalidModel, match="shard 2 of 3 is missing"):
        shard_names(files(names[0], names[2]))
    with pytest.raises(InvalidModel, match="do not belong to one set"):
        shard_names(files(*names, "model-00001-of-00002.safetensors"))


def test_an_index_says_which_files_and_never_where_they_lie(tmp_path: Path) -> None:
    found = indexed(
        tmp_path, {"a": "model-b.safetensors", "b": "model-a.safetensors"}, "model-a.safetensors", "x.safetensors"
    )
    with pytest.raises(InvalidModel, match=r"model-b\.safetensors is missing"):
        shard_names(found)
    (tmp_path / "model-b.safetensors").write_bytes(b"")
    assert shard_names(Files.of_folder(tmp_path)) == ("model-a.safetensors", "model-b.safetensors")


def test_a_single_file_goes_before_an_index_that_was_left_behind(tmp_path: Path) -> None:
    found = indexed(tmp_path, {"a": "model-00001-of-00002.safetensors"}, "model.safetensors")
    assert shard_names(found) == ("model.safetensors",)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".safetensors", "a.bin", 7]
)
def test_an_index_that_names_anything_else_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(InvalidModel, match="no shards"):
        shard_names(indexed(tmp_path, {"a": name}))


def test_pickles_are_refused_with_what_to_do() -> None:
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.ckpt"):
        with pytest.raises(InvalidModel, match=r"never are.*save_pretrained"):
            shard_names(files("config.json", name))
    with pytest.raises(InvalidModel, match="no safetensors files"):
        shard_names(files("config.json"))


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", "nonsense", '{"a": ' + "9" * 5000 + "}", '{"a": ' * 2000, "\0", '{"a":' * 70 + "1" + "}" * 70],
)
def test_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidModel):
        Files.of_folder(tmp_path).json("config.json")


def test_json_may_be_as_deep_as_any_tokenizer(tmp_path: Path) -> None:
    deep = '{"a":' * (MAX_JSON_DEPTH - 1) + "{}" + "}" * (MAX_JSON_DEPTH - 1)
    (tmp_path / "config.json").write_text(deep)
    assert Files.of_folder(tmp_path).json("config.json") == json.loads(deep)
    assert Files.of_folder(tmp_path).json("absent.json") is None


def test_a_folder_gives_its_files_and_the_configs_below_it(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "1_Pooling" / "model.bin").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert Files.of_folder(tmp_path).names == ("1_Pooling/config.json", "config.json")


def test_a_folder_gives_its_chat_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    found = Files.of_folder(tmp_path)
    assert found.names == ("additional_chat_templates/tool_use.jinja",)
    assert found.text("additional_chat_templates/tool_use.jinja") == "{{ tools }}"


def test_a_link_out_of_the_folders_that_may_be_imported_from_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    models = tmp_path / "models"
    (models / "additional_chat_templates").mkdir(parents=True)
    (models / "config.json").write_text("{}")
    assert Files.of_folder(models, (models,)).names == ("config.json",)
    (models / "additional_chat_templates" / "a.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModel, match="is a link to somewhere outside"):
        Files.of_folder(models, (models,))


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gguf.checkpoint_files.MAX_FILES", 3)
    for name in "abcd":
        (tmp_path / name).write_text("")
    with pytest.raises(InvalidModel, match="at most 3 files"):
        Files.of_folder(tmp_path)
