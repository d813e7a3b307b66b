"""all-MiniLM-L6-v2 from its checkpoint to `/v1/embeddings`, held against the original's vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.bert import Bert
from tests.server import Server

TEXTS = (
    "hello world",
    "The quick brown fox jumps over the lazy dog.",
    "A file of weights is only as good as what reads it; convert it, then compare!",
    "Naïve café résumés cost 3.14 EUR (or so) in 2026?",
    "quantization",
)
# The least cosine with the original that each level must reach on each of TEXTS, a little below what was measured:
# 0.999999, 0.9992 and 0.9904.
LEAST = {"F16": 0.9999, "Q8_0": 0.998, "Q4_K_M": 0.98}


@pytest.fixture(scope="module")
def original(minilm: Path) -> np.ndarray:
    bert = Bert(minilm)
    return np.array([bert.vector(text) for text in TEXTS])


def vectors(server: Server, model: str) -> np.ndarray:
    answer = server.client.post(f"{server.url}/v1/embeddings", json={"model": model, "input": list(TEXTS)})
    assert answer.status_code == 200, answer.text
    return np.array([entry["embedding"] for entry in answer.json()["data"]])


def test_every_level_of_a_converted_checkpoint_embeds_as_the_original(
    clean_server: Server, minilm: Path, original: np.ndarray
) -> None:
    server = clean_server
    made = server.client.post(f"{server.url}/v1/models", json={"name": "minilm", "path": str(minilm)})
    assert made.status_code == 201, made.text
    variant = made.json()
    assert (variant["name"], variant["lossy"]) == ("minilm:F16", False)
    assert variant["lineage"]["converted_from"] == "safetensors (BertModel, F32)"
    server.quantize(*(level for level in LEAST if level != "F16"), model="minilm")
    found = {level: (vectors(server, f"minilm:{level}") * original).sum(axis=1) for level in LEAST}
    assert {level: cosines.min() > LEAST[level] for level, cosines in found.items()} == dict.fromkeys(LEAST, True)
