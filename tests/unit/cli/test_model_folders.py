"""The models of other programs are found under sensible names, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.model_folders import find_models, name_of
from service.cli.program import build

GGUF = b"GGUF\x03\x00\x00\x00"


def put(path: Path, content: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
        ("gloss.f16.GGUF", "gloss"),
        ("my model (final) v2.gguf", "my-model-final-v2"),
        ("big-00001-of-00003.gguf", "big"),
        ("äöü.gguf", None),
    ],
)
def test_a_file_is_called_what_it_is_called_without_its_level(file: str, name: str | None) -> None:
    assert name_of(Path(file)) == name


def test_folders_at_any_depth_are_read_and_only_whole_models_in_them(tmp_path: Path) -> None:
    first = put(tmp_path / "publisher" / "repo" / "alpha-Q8_0.gguf")
    put(tmp_path / "mmproj-alpha-f16.gguf")
    put(tmp_path / "alpha.imatrix.gguf")
    put(tmp_path / "notes.gguf", b"no model")
    put(tmp_path / "readme.md")
    put(tmp_path / ".hidden.gguf")
    pieces = [put(tmp_path / f"big-0000{number}-of-00002.gguf") for number in (1, 2)]
    snapshot = tmp_path / "hub" / "snapshots" / "abc" / "beta-Q4_0.gguf"
    target = put(tmp_path / "hub" / "blobs" / ("0" * 64))
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(target)
    found = find_models(tmp_path)
    assert [(one.name, one.path, one.whole) for one in found] == [
        ("alpha", first, True),
        ("beta", target, True),
        ("big", pieces[0], False),
    ]


def test_the_store_of_ollama_is_read_by_its_manifests(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    blob = put(tmp_path / "blobs" / digest.replace(":", "-"))
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "b" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
    ]
    manifest = json.dumps({"layers": layers}).encode()
    put(tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest", manifest)
    put(tmp_path / "manifests" / "registry.ollama.ai" / "people" / "other" / "1b", manifest)
    put(tmp_path / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest", b"{")
    evil = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]
    put(tmp_path / "manifests" / "h" / "n" / "evil" / "latest", json.dumps({"layers": evil}).encode())
    # One file, one model.
    assert [(one.name, one.path) for one in find_models(tmp_path)] == [("tiny", blob)]
    (tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest").unlink()
    assert [one.name for one in find_models(tmp_path)] == ["people/other:1b"]


def test_without_yes_adopt_only_says_what_it_would_do(tmp_path: Path) -> None:
    put(tmp_path / "alpha-Q8_0.gguf")
    result = CliRunner().invoke(build(), ["adopt", str(tmp_path)])
    assert result.exit_code == 0
    assert "alpha" in result.stdout
    assert "--yes" in result.output
    listed = json.loads(CliRunner().invoke(build(), ["adopt", str(tmp_path), "--json"]).stdout)["data"]
    assert [one["name"] for one in listed] == ["alpha"]
    assert CliRunner().invoke(build(), ["adopt", str(tmp_path / "none")]).exit_code == 1
    assert CliRunner().invoke(build(), ["adopt", str(tmp_path), "--as", "theft"]).exit_code == 2
