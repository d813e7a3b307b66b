"""Promises of LoRA adapters with real llama.cpp: they change text by their scale, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from service.domain.errors import LoadFailed
from service.llama.adapter import Adapter, use_adapters
from service.llama.model import Model
from tests import tiny_models
from tests.integration.engine.test_tiny_models import context_over, greedy

PROMPT = "It was a truth universally"


@pytest.mark.parametrize("kind", ["gloss", "llama", "recurrent", "hybrid"])
def test_text_follows_the_adapters_in_use_and_switching_back_brings_it_back(
    kind: str, tiny: dict[str, Path], gloss: Path, tmp_path: Path
) -> None:
    base = gloss if kind == "gloss" else tiny[kind]
    for seed in (6, 7):
        tiny_models.write_adapter(tmp_path / f"{seed}.gguf", base, seed=seed)
    with context_over(base) as context:
        model = context.model
        prompt = model.tokenize(PROMPT, add_special=True, parse_special=False)
        one, other = Adapter(model, tmp_path / "6.gguf"), Adapter(model, tmp_path / "7.gguf")
        sets = [(), ((one, 0.0),), ((one, 1.0),), ((other, 1.0),), ((one, 1.0), (other, 0.5)), ((one, -1.0),)]
        first = []
        for adapters in sets:
            use_adapters(context, adapters)
            first.append(greedy(context, prompt, 16))
        assert first[0] == first[1]
        assert len({tuple(text) for text in first}) == len(sets) - 1
        for index in (2, 0, 4, 3, 3, 5, 1):
            use_adapters(context, sets[index])
            assert greedy(context, prompt, 16) == first[index]
        use_adapters(context, ((other, 0.5), (one, 1.0)))
        assert greedy(context, prompt, 16) == first[4]
        use_adapters(context, ())
        assert greedy(context, prompt, 16) == first[0]
        one.close()
        other.close()


def written(path: Path, architecture: str, kind: str, adapter: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", adapter)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_what_is_no_adapter_for_the_model_is_refused_with_the_reason(tiny: dict[str, Path], tmp_path: Path) -> None:
    tiny_models.write_adapter(tmp_path / "recurrent.gguf", tiny["recurrent"])
    (tmp_path / "text.gguf").write_text("no GGUF at all")
    cases = {
        tmp_path / "recurrent.gguf": "arch",
        tiny["llama"]: "adapter",
        tmp_path / "text.gguf": "",
        tmp_path / "missing.gguf": "",
        written(tmp_path / "other.gguf", "llama", "adapter", "control_vector"): "lora",
    }
    model = Model(tiny["llama"], gpu_layers=0, use_extra_buffers=False)
    for path, reason in cases.items():
        with pytest.raises(LoadFailed) as refused:
            Adapter(model, path)
        assert reason in refused.value.message
        assert str(tmp_path) not in refused.value.message
    model.close()


def test_a_model_closed_first_takes_its_adapters_along(tiny: dict[str, Path], tmp_path: Path) -> None:
    tiny_models.write_adapter(tmp_path / "adapter.gguf", tiny["llama"])
    model = Model(tiny["llama"], gpu_layers=0, use_extra_buffers=False)
    adapter = Adapter(model, tmp_path / "adapter.gguf")
    model.close()
    adapter.close()
    adapter.close()
