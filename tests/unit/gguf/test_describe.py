"""What a file says of itself, read by a child: short facts always, long arrays where asked for."""

from __future__ import annotations

import json
import sys

import pytest

from service.domain.errors import InvalidModel
from service.gguf.describe import describe, main
from tests.server import GLOSS


def test_arrays_are_read_only_where_asked_for():
    short, long = describe(GLOSS, arrays=False), describe(GLOSS, arrays=True)
    assert short.metadata["general.architecture"] == long.metadata["general.architecture"] == "llama"
    assert short.metadata["tokenizer.ggml.tokens"] is None
    assert len(long.metadata["tokenizer.ggml.tokens"]) == 4096
    assert list(short.metadata) == list(long.metadata)
    assert [tensor.name for tensor in short.tensors] == [tensor.name for tensor in long.tensors]
    scalars = {key: value for key, value in short.metadata.items() if value is not None}
    assert scalars == {key: long.metadata[key] for key in scalars}


def test_a_file_that_is_no_model_is_an_error_and_no_trace(tmp_path, monkeypatch, capfdbinary):
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF and nothing more")
    with pytest.raises(InvalidModel):
        describe(path, arrays=True)
    monkeypatch.setattr("service.gguf.describe.bind_to_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["describe", str(path)])
    assert main() == 0
    assert json.loads(capfdbinary.readouterr().out)["error"]
