"""A checkpoint of each family becomes GGUF, levels of quantization are made of that, and llama.cpp generates with them.

The default run takes some levels; `pytest -m slow` takes all of them for every family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.generation import EmbeddingRequest, Failed
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import Recipe
from service.engine.embeddings import Embedder, token_lists
from service.gguf import convert
from service.gguf.checkpoint_files import Files
from service.gguf.files import facts, read_header
from service.gguf.header import Header
from service.llama.model import Model
from service.quantization.plan import plan_levels
from service.quantization.quantize import quantize
from tests import checkpoints
from tests.integration.engine.driving import greedy, running

LEVELS = ("Q8_0", "Q4_K_M", "Q3_K_S")
SHARED = {
    "llama2",
    "llama2-fast",
    "mistral",
    "mixtral",
    "phi3",
    "gemma3-vision",
    "xlm-roberta-slow",
    "mistral-tekken",
}  # their architectures are in others
FEW = {
    family: (LEVELS[place % len(LEVELS)],) for place, family in enumerate(checkpoints.FAMILIES) if family not in SHARED
} | {"llama": LEVELS}
MIXTURES = ("mixtral", "qwen3-moe")


def source_of(folder: Path, family: str) -> Path:
    target = folder / "source.gguf"
    made = checkpoints.write(folder / family, family, dtype="BF16", shards=2)
    convert.convert(Files.of_folder(made), target, "F16", lambda part, step: None)
    return target


def even_importance(header: Header) -> Mapping[str, NDArray[np.float32]]:
    """Every column weighs the same: an importance matrix for levels that refuse to be made without one."""
    return {
        tensor.name: np.ones(tensor.shape[0] * math.prod(tensor.shape[2:]), np.float32)
        for tensor in header.tensors
        if len(tensor.shape) > 1
    }


def made_at(source: Path, level: str, target: Path) -> str | None:
    """Makes one level; the reason where it does not apply."""
    header = read_header(source)
    (plan,) = plan_levels(source, header, [level])
    if plan.error is not None:
        return plan.error
    importance = even_importance(header) if plan.needs_imatrix else None
    made = quantize(source, target, Recipe(level), importance=importance, threads=2, progress=lambda step: None)
    assert facts(made).quantization == level
    return None


def speaks(path: Path, family: str) -> None:
    """Some tokens come out, the same again; or vectors, or ranks."""
    if family in (*checkpoints.ENCODERS, *checkpoints.RERANKERS):
        ranks = family in checkpoints.RERANKERS
        model = Model(path, gpu_layers=0, use_extra_buffers=True)
        embedder = Embedder(model, context_length=128, batch_tokens=128, threads=2, flash_attention=True)
        try:
            texts = ("The quick brown fox", "a small fire")
            request = EmbeddingRequest(texts, query="water?", normalize=False) if ranks else EmbeddingRequest(texts)
            embedder.submit(1, token_lists(request, model), request)
            results = dict(result for _ in range(10) for result in embedder.step())
            assert not isinstance(results[1], Failed), results[1]
            vectors = np.array([np.frombuffer(vector, "<f4") for vector in results[1].vectors])
            assert np.isfinite(vectors).all()
            if ranks:
                assert vectors.shape == (2, 1)
                assert vectors[0] != vectors[1]
            else:
                assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, rel=1e-3)
        finally:
            embedder.close()
            model.close()
        return
    with running(path, slots=2, cells=256, batch_tokens=64) as driver:
        first, again = driver.ask_all(["The quick brown fox jumps over"] * 2, greedy(8))
        assert first.failed is None
        assert first.ends[0].usage.completion_tokens == 8
        assert first.text == again.text


@pytest.mark.parametrize(("family", "level"), [(family, level) for family, few in FEW.items() for level in few])
def test_a_checkpoint_becomes_a_level_that_generates(family: str, level: str, tmp_path: Path) -> None:
    source, target = source_of(tmp_path, family), tmp_path / "level.gguf"
    assert made_at(source, level, target) is None
    speaks(target, family)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_every_level_that_applies_to_a_family_generates(family: str, tmp_path: Path) -> None:
    source, target = source_of(tmp_path, family), tmp_path / "level.gguf"
    refused = {}
    for level in QUANTIZATIONS:
        reason = made_at(source, level, target)
        if reason is None:
            speaks(target, family)
        else:
            refused[level] = reason
        target.unlink(missing_ok=True)
    assert set(refused) == (set() if family in MIXTURES else {"MXFP4_MOE"}), refused
