"""What files are recognised as, and what becomes of them, without a store and without llama.cpp."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.domain.errors import InvalidModel, LabelMismatch, NotSupported
from service.gguf.files import read_header
from service.jobs import intake
from service.jobs.intake import Kind, make_gguf, what_is, whole_file
from service.jobs.messages import NamedPath
from tests import checkpoints


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on what a child may write is for children."""
    monkeypatch.setattr(intake, "limit_file_size", lambda size_bytes: None)


def test_a_folder_is_what_its_files_are(tmp_path: Path, gloss: Path) -> None:
    folder = checkpoints.write(tmp_path / "qwen2", "qwen2")
    assert what_is(folder) is Kind.CHECKPOINT
    assert what_is([NamedPath(path.name, str(path)) for path in folder.iterdir()]) is Kind.CHECKPOINT
    (folder / "config.json").unlink()
    with pytest.raises(InvalidModel, match=r"no config\.json"):
        what_is(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidModel, match="LoRA adapter"):
        what_is(folder)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "README.md").write_text("")
    with pytest.raises(InvalidModel, match="no model here"):
        what_is(whole)
    (whole / "gloss.gguf").symlink_to(gloss)
    assert (what_is(whole), whole_file(whole).name) == (Kind.GGUF, "gloss.gguf")
    assert what_is(gloss) is Kind.GGUF


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.pkl", "model.ckpt"])
def test_pickles_are_refused_without_being_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InvalidModel, match=r"no model here|never are"):
        what_is(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"\x80\x02cposix\nsystem\n.")
    (tmp_path / name).chmod(0)
    with pytest.raises(InvalidModel, match=r"never are.*save_pretrained"):
        what_is(tmp_path)


def test_one_pickle_is_refused_by_its_first_bytes(tmp_path: Path) -> None:
    for start in (b"PK\x03\x04", b"\x80\x02"):
        (tmp_path / "model.bin").write_bytes(start + bytes(60))
        with pytest.raises(InvalidModel, match="safetensors"):
            what_is(tmp_path / "model.bin")


def test_a_checkpoint_becomes_the_same_file_however_it_comes(tmp_path: Path) -> None:
    one = checkpoints.write(tmp_path / "one", "llama")
    three = checkpoints.write(tmp_path / "three", "llama", shards=3)
    said: list[float] = []
    first = make_gguf(one, tmp_path / "a.gguf", None, lambda part, step: said.append(part), name="tiny")
    second = make_gguf(
        [NamedPath(path.name, str(path)) for path in three.iterdir()],
        tmp_path / "b.gguf",
        "F16",
        lambda part, step: None,
    )
    assert first == second
    data = (tmp_path / "a.gguf").read_bytes()
    assert (first.digest, first.size_bytes) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    assert (first.converted_from, first.lossy_source) == ("safetensors (LlamaForCausalLM, F32)", False)
    assert read_header(tmp_path / "a.gguf").architecture == "llama"
    assert said == sorted(said)


def test_a_level_in_the_name_is_held_against_the_result_before_the_work(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "tiny", "llama", dtype="BF16")
    with pytest.raises(LabelMismatch):
        make_gguf(folder, tmp_path / "a.gguf", None, lambda part, step: None, name="tiny:F16")
    assert not (tmp_path / "a.gguf").exists()
    make_gguf(folder, tmp_path / "a.gguf", None, lambda part, step: None, name="tiny:BF16")


def test_what_is_left_in_a_folder_of_pieces_is_told(tmp_path: Path, gloss: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(gloss)
    with pytest.raises(InvalidModel):
        what_is(tmp_path)


def test_a_gguf_file_is_not_converted_and_says_what_to_do_instead() -> None:
    intake.check_unconverted("F16", None)
    intake.check_unconverted("F16", "F16")
    with pytest.raises(NotSupported, match=r"F16 already.*without convert_to.*quantize it to F32"):
        intake.check_unconverted("F16", "F32")
