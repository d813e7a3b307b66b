"""Packed checkpoints become the GGUF files of the floats that they mean, and old and split files come in by path.

Packed here by tests/packing.py; what the libraries pack is in test_packed_by_libraries.py.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.gguf import convert
from service.gguf.checkpoint_files import Files
from tests import checkpoints
from tests.integration.engine.driving import greedy, running
from tests.old_files import contents, write_ggjt, write_gguf_v1, write_llama, write_split
from tests.packing import FORMATS, pack_checkpoint
from tests.server import Server


@pytest.fixture
def server(clean_server: Server) -> Server:
    return clean_server


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("llama") / "llama", "llama")


def bring(server: Server, body: dict[str, Any], status: int = 201) -> Any:
    answer = server.client.post("/v1/models", json=body)
    if answer.status_code == 202:
        job = server.wait_for_job(answer.json()["id"])
        assert job["status"] == "succeeded", job
        return server.json("GET", f"/v1/variants/{job['result'][0]}", 200)
    assert answer.status_code == status, answer.text
    return answer.json()


def text(server: Server, model: str) -> str:
    body = {"model": model, "prompt": "The quick brown fox", "max_tokens": 12, "temperature": 0}
    return str(server.json("POST", "/v1/generate", 200, body)["text"])


@pytest.mark.parametrize("form", FORMATS)
def test_a_packed_checkpoint_becomes_the_file_of_the_floats_it_means(form: str, llama: Path, tmp_path: Path) -> None:
    pack_checkpoint(llama, tmp_path / "packed", tmp_path / "plain", form)
    for name in ("packed", "plain"):
        convert.convert(Files.of_folder(tmp_path / name), tmp_path / f"{name}.gguf", "F16", lambda part, what: None)
    assert contents(tmp_path / "packed.gguf") == contents(tmp_path / "plain.gguf")
    with running(tmp_path / "packed.gguf", slots=1, cells=64, batch_tokens=32) as driver:
        assert driver.ask("The quick brown fox", greedy(8)).text


FORMATS_SERVED = [pytest.param(form, marks=() if form == "gptq" else pytest.mark.slow, id=form) for form in FORMATS]


@pytest.mark.parametrize("form", FORMATS_SERVED)
def test_a_packed_checkpoint_is_imported_marked_lossy_and_served(
    form: str, llama: Path, tmp_path: Path, server: Server
) -> None:
    name = form.replace(".", "-")
    pack_checkpoint(llama, tmp_path / name, tmp_path / "plain", form)
    variant = bring(server, {"name": name, "path": str(tmp_path / name)})
    assert (variant["name"], variant["lossy"]) == (f"{name}:F16", True)
    described = variant["lineage"]["converted_from"]
    assert described.startswith("safetensors (LlamaForCausalLM, ")
    assert FORMATS[form][2] in described
    refused = server.json("POST", "/v1/quantize", 400, {"model": f"{name}:F16", "to": ["Q8_0"]})["error"]
    assert refused["code"] == "lossy_source"
    body = {"model": f"{name}:F16", "to": ["Q8_0"], "allow_requantize": True}
    assert server.wait_for_job(server.json("POST", "/v1/quantize", 202, body)["id"])["status"] == "succeeded"
    assert text(server, f"{name}:Q8_0")


def test_pieces_of_a_split_model_come_in_by_the_path_of_any_of_them(
    server: Server, gloss: Path, tmp_path: Path
) -> None:
    pieces = write_split(gloss, tmp_path / "split", most_tensors=20)
    variant = bring(server, {"name": "split", "path": str(pieces[1])})
    assert variant["lineage"]["converted_from"] == f"GGUF in {len(pieces)} pieces"
    assert not variant["lossy"]
    folder = bring(server, {"name": "folder", "path": str(tmp_path / "split")})
    assert folder["digest"] == variant["digest"]


def upload(server: Server, path: Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    answer = server.client.put(f"/v1/blobs/{digest}", content=data)
    assert answer.status_code in (200, 201), answer.text
    return digest


def test_uploaded_pieces_are_joined_and_a_single_one_is_refused_with_what_to_do(
    server: Server, gloss: Path, tmp_path: Path
) -> None:
    pieces = write_split(gloss, tmp_path / "split", most_tensors=20)
    files = {piece.name: upload(server, piece) for piece in pieces}
    variant = bring(server, {"name": "uploaded", "files": files})
    assert variant["lineage"]["converted_from"] == f"GGUF in {len(pieces)} pieces"
    refused = server.json("POST", "/v1/models", 422, {"name": "one", "digest": files[pieces[0].name]})["error"]
    assert refused["code"] == "invalid_model"
    assert f"one of {len(pieces)} pieces" in refused["message"]
    assert "files" in refused["message"]
    shutil.copy(pieces[0], tmp_path / pieces[0].name)
    refused = server.json("POST", "/v1/models", 422, {"name": "one", "path": str(tmp_path / pieces[0].name)})["error"]
    assert pieces[1].name in refused["message"]


def test_old_files_come_in_as_what_they_were(server: Server, tmp_path: Path) -> None:
    original = write_llama(tmp_path / "llama.gguf", "Q5_1")
    for name, old, described in (
        ("ggjt", write_ggjt(original, tmp_path / "old.bin"), "ggjt version 3"),
        ("one", write_gguf_v1(original, tmp_path / "old.gguf"), "GGUF version 1"),
    ):
        variant = bring(server, {"name": name, "path": str(old)})
        assert variant["name"] == f"{name}:Q5_1"
        assert variant["lineage"]["converted_from"].startswith(described)
        assert variant["lossy"]
        uploaded = bring(server, {"name": f"{name}-uploaded", "digest": upload(server, old)})
        assert uploaded["digest"] == variant["digest"]
    too_old = write_ggjt(original, tmp_path / "older.bin", version=1)
    refused = server.json("POST", "/v1/models", 422, {"name": "old", "path": str(too_old)})["error"]
    assert "fetch the model's GGUF file" in refused["message"]
