"""`--adapter NAME[:SCALE]`, and what `quantry adapters` asks of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli.adapters import _add, adapter_uses
from service.cli.client import Client
from service.cli.conversation import Conversation
from service.cli.failures import CommandFailed
from service.cli.session import Session, open_session

ADAPTER = {
    "name": "tone", "model": "gloss", "digest": "sha256:" + "0" * 64, "size_bytes": 10, "architecture": "llama",
    "rank": 4, "alpha": 8.0, "tensors": 2, "parameters": 100, "general_name": None, "corrupt": False,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


def test_an_adapter_has_the_scale_after_its_last_colon() -> None:
    assert adapter_uses(["tone", "voice:0.5", "v1.2:-1"]) == [
        {"name": "tone"}, {"name": "voice", "scale": 0.5}, {"name": "v1.2", "scale": -1.0},
    ]  # fmt: skip
    asked = Conversation("gloss", adapters=adapter_uses(["tone"])).ask("Hi")
    assert asked["adapters"] == [{"name": "tone"}]
    assert "adapters" not in Conversation("gloss").ask("Hi")


@pytest.mark.parametrize("written", ["tone:", "tone:much"])
def test_a_scale_that_is_no_number_is_told(written: str) -> None:
    with pytest.raises(CommandFailed, match="no adapter with its scale"):
        adapter_uses([written])


@pytest.fixture
def session() -> Session:
    return open_session("http://127.0.0.1:1", None, True).silenced()


def served(asked: list[tuple[str, str, Any]], refuses_paths: bool = False) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.method == "POST" else None
        asked.append((request.method, request.url.path, body))
        if request.method == "HEAD":
            return httpx.Response(404)
        if request.method == "PUT":
            digest = request.url.path.rpartition("/")[2]
            return httpx.Response(201, json={"digest": digest, "size_bytes": len(request.content)})
        if refuses_paths and "path" in body:
            error = {"code": "forbidden", "message": "no", "type": "permission_error", "param": "path"}
            return httpx.Response(403, json={"error": error})
        return httpx.Response(201, json=ADAPTER)

    return httpx.MockTransport(answer)


def test_a_server_on_this_machine_gets_the_path(session: Session, tmp_path: Path) -> None:
    asked: list[tuple[str, str, Any]] = []
    client = Client("http://127.0.0.1:1", transport=served(asked))
    added = _add(session, client, {"model": "gloss", "name": "tone"}, tmp_path, None)
    assert added.name == "tone"
    assert asked == [("POST", "/v1/adapters", {"model": "gloss", "name": "tone", "path": str(tmp_path)})]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://elsewhere:1"])
def test_a_server_that_does_not_take_the_path_gets_the_files_that_are_the_adapter(
    url: str, session: Session, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt"):
        (tmp_path / name).write_text(name)
    asked: list[tuple[str, str, Any]] = []
    _add(session, Client(url, transport=served(asked, refuses_paths=True)), {"model": "m", "name": "n"}, tmp_path, None)
    method, path, body = asked[-1]
    assert (method, path) == ("POST", "/v1/adapters")
    assert sorted(body["files"]) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {path for method, path, _ in asked if method == "PUT"} == {
        f"/v1/blobs/{one}" for one in body["files"].values()
    }


def test_a_path_that_is_not_there_is_told_before_anything_is_sent(session: Session) -> None:
    asked: list[tuple[str, str, Any]] = []
    with pytest.raises(CommandFailed):
        _add(session, Client("http://127.0.0.1:1", transport=served(asked)), {}, Path("nowhere.gguf"), None)
    assert asked == []
