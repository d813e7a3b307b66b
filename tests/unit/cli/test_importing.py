"""What an import says where there is nothing to bring in, and how a start that is interrupted ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from service import cli
from service.cli.client import Client
from service.cli.failures import CommandFailed, Problem
from service.cli.importing import import_file
from service.cli.session import open_session


def refusal(path: Path, **options: Any) -> Problem:
    """What an import of `path` fails with, at a server that cannot read it."""

    def answer(request: httpx.Request) -> httpx.Response:
        error = {"code": "invalid_parameter", "message": "It cannot be read.", "type": "x", "param": "path"}
        return httpx.Response(400, json={"error": error})

    url = "http://127.0.0.1:1"
    with Client(url, transport=httpx.MockTransport(answer)) as client, pytest.raises(CommandFailed) as raised:
        import_file(open_session(url, None, True), client, "x", path, **options)
    return raised.value.problem


def test_what_is_nowhere_is_said_to_be_nowhere(tmp_path: Path) -> None:
    nowhere = refusal(tmp_path / "nope.gguf")
    assert "is not on this machine either" in str(nowhere.remedy)
    assert "no file" in refusal(tmp_path / "nope.gguf", upload=True).message
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    assert "--upload" in str(refusal(tmp_path / "here.gguf", upload=False).remedy)


def test_a_folder_of_pickles_gets_their_remedy_and_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "neither a .gguf file nor safetensors" in refusal(tmp_path, upload=True).message
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert "save_pretrained" in refusal(tmp_path, upload=True).message


def test_a_start_that_is_interrupted_ends_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "service.cli.program", Interrupted("program"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
