"""An adapter's meaning: the base with it beside computes what the base with it merged in computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.gguf.checkpoint_files import Files
from service.gguf.files import read_header
from service.gguf.peft import convert_adapter
from service.llama.adapter import Adapter, use_adapters
from service.llama.context import Context
from tests import adapters
from tests.integration.engine.test_tiny_models import context_over

PROMPT = "It was a truth universally acknowledged"


def logits(context: Context, tokens: list[int]) -> NDArray[np.float32]:
    context.forget(0)
    context.batch.clear()
    context.batch.add(tokens, 0, 0, logits=len(tokens))
    assert context.decode() == 0
    return np.array([context.logits(row) for row in range(len(tokens))])


def converted(folder: Path, base: Path) -> Path:
    target = folder / "adapter.gguf"
    convert_adapter(Files.of_folder(folder), read_header(base), target, lambda *_: None)
    return target


@pytest.fixture(scope="module")
def plain(gloss: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gloss in F32."""
    return adapters.write_merged(tmp_path_factory.mktemp("plain") / "gloss-f32.gguf", gloss)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, {"": 2.0}),
        (
            {"alpha_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 12}},
            {"k_proj": 0.5, "layers.1.mlp.up_proj": 3, "": 2},
        ),
    ],
    ids=["one alpha", "an alpha for each module"],
)
def test_the_base_with_an_adapter_computes_what_the_merged_model_computes(
    config: dict[str, object], scales: dict[str, float], plain: Path, tmp_path: Path
) -> None:
    found = adapters.factors(plain, strength=0.25)
    adapter_path = converted(adapters.write_peft(tmp_path / "peft", found, **config), plain)
    changes = {}
    for module, product in adapters.products(found, 1.0).items():
        scale = next(scale for end, scale in scales.items() if module.endswith(end))
        changes[module] = np.float32(scale) * product
    halved = {module: change * np.float32(0.5) for module, change in changes.items()}
    expected = {
        0.0: plain,
        1.0: adapters.write_merged(tmp_path / "merged.gguf", plain, changes),
        0.5: adapters.write_merged(tmp_path / "halved.gguf", plain, halved),
    }
    with context_over(plain) as context:
        tokens = context.model.tokenize(PROMPT, add_special=True, parse_special=False)
        base = logits(context, tokens)
        adapter = Adapter(context.model, adapter_path)
        beside = {}
        for scale in expected:
            use_adapters(context, [(adapter, scale)])
            beside[scale] = logits(context, tokens)
        use_adapters(context, [])
        adapter.close()
    assert np.array_equal(beside[0.0], base)
    for scale, path in expected.items():
        with context_over(path) as context:
            merged = logits(context, tokens)
        # Sums are rounded in another order, and the cache holds 16 bits; what the adapter changes is far beyond that.
        assert np.abs(beside[scale] - merged).max() < 2e-2
        assert np.abs(beside[scale] - merged).mean() < 2e-3
        if scale:
            assert np.abs(merged - base).max() > 1.0
