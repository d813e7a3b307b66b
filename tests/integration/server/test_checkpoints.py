"""Checkpoints over HTTP and by the command: uploaded file by file, converted, and asked for text."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checkpoints
from tests.server import ROOT, MakeServer, Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "open" / "qwen2", "qwen2", dtype="BF16", shards=2)


def uploaded(server: Server, folder: Path, route: str = "/v1/blobs", method: str = "PUT") -> dict[str, str]:
    files = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        files[path.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert server.client.request(method, f"{route}/{files[path.name]}", content=data).status_code in (200, 201)
    return files


def test_a_checkpoint_comes_in_by_path_by_uploads_and_by_the_command(clean_server: Server, folder: Path) -> None:
    server = clean_server
    by_path = server.json("POST", "/v1/models", 201, {"name": "a", "path": str(folder)})
    files = uploaded(server, folder)
    by_files = server.json("POST", "/v1/models", 201, {"name": "b", "files": files, "convert_to": "BF16"})
    assert (by_path["name"], by_files["name"], by_path["digest"]) == ("a:BF16", "b:BF16", by_files["digest"])
    assert by_files["lineage"]["converted_from"] == "safetensors (Qwen2ForCausalLM, BF16)"
    command = [sys.executable, "-P", "-m", "service", "import", "c", str(folder), "--upload", "--convert-to", "f16"]
    environment = {**os.environ, "QUANTRY_URL": server.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.startswith("c:F16: ")) == (0, True), done.stderr
    shown = subprocess.run([*command[:4], "show", "c:F16"], env=environment, capture_output=True, text=True, check=True)
    assert "from safetensors (Qwen2ForCausalLM, BF16)" in shown.stdout
    answer = server.json("POST", "/v1/generate", 200, {"model": "c", "prompt": "the", "max_tokens": 4, "stream": False})
    assert answer["usage"]["completion_tokens"] >= 1


def test_ollamas_create_takes_the_files_of_a_checkpoint(clean_server: Server, folder: Path) -> None:
    server = clean_server
    files = uploaded(server, folder, "/api/blobs", "POST")
    body = {"model": "tiny", "files": files, "quantize": "Q8_0", "stream": True}
    lines = server.client.post("/api/create", json=body).text.splitlines()
    assert "converting model" in lines[0]
    assert "success" in lines[-1]
    assert "tiny:Q8_0" in server.names()


def test_folders_are_bounded_as_files_are(make_server: MakeServer, folder: Path, tmp_path: Path) -> None:
    server = make_server(QUANTRY_IMPORT_FOLDERS=str(tmp_path / "open"))
    outside = checkpoints.write(tmp_path / "closed", "qwen2")
    server.json("POST", "/v1/models", 403, {"name": "a", "path": str(outside)})
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(outside / "config.json")
    refused = server.json("POST", "/v1/models", 422, {"name": "a", "path": str(folder)})
    assert refused["error"]["code"] == "invalid_model"
    assert str(tmp_path) not in refused["error"]["message"]
