"""Checkpoints of tests/checkpoints.py without their weights, and how to read what is made of their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.gguf.checkpoint_files import Files
from service.gguf.vocabulary import read_vocabulary
from tests import checkpoints

ARCHITECTURES = {
    "llama2": "llama",
    "llama2-fast": "llama",
    "llama3": "llama",
    "mistral": "llama",
    "mistral-nemo": "llama",
    "mistral-tekken": "llama",
    "mixtral": "llama",
    "qwen3-moe": "qwen3moe",
    "gemma3-vision": "gemma3",
    "phi3-long": "phi3",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "xlm-roberta-slow": "bert",
    "reranker": "bert",
}


class Tokenizer:
    """The tokenizer's files of a family, to be changed, and its fields by key without "tokenizer."."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = folder
        self.family = family
        folder.mkdir()
        self.size = len(checkpoints.FAMILIES[family].tokenizer(folder)) + checkpoints.FAMILIES[family].padding

    def change(self, name: str, change: Callable[[dict[str, Any]], Any]) -> Tokenizer:
        """`change` edits a JSON file in place; one that is not there begins empty."""
        path = self.folder / name
        value = json.loads(path.read_text()) if path.exists() else {}
        change(value)
        path.write_text(json.dumps(value))
        return self

    def fields(self) -> dict[str, Any]:
        architecture = ARCHITECTURES.get(self.family, self.family)
        vocabulary = read_vocabulary(Files.of_folder(self.folder), architecture, self.size)
        values = {field.key.removeprefix("tokenizer."): field.value for field in vocabulary.fields}
        assert len(values["ggml.tokens"]) == len(values["ggml.token_type"]) == vocabulary.size
        return values


MakeTokenizer = Callable[[str], Tokenizer]


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    return lambda family: Tokenizer(tmp_path / family, family)
