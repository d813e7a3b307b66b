"""What PEFT saves becomes the GGUF adapter that computes the same, or is refused with what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.adapters import read_adapter
from service.gguf.checkpoint_files import Files
from service.gguf.files import read_header
from service.gguf.header import Header
from service.gguf.peft import convert_adapter
from tests import adapters, tiny_models
from tests.checkpoints import write_safetensors

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.gguf"
    tiny_models.write_llama(path)
    return path


@pytest.fixture(scope="module")
def base(base_path: Path) -> Header:
    return read_header(base_path)


@pytest.fixture
def convert(tmp_path: Path, base: Header) -> Callable[[], tuple[Path, Arrays]]:
    """convert(): what is in the folder `peft`, as a file and its arrays by name."""

    def _convert() -> tuple[Path, Arrays]:
        target = tmp_path / "adapter.gguf"
        convert_adapter(Files.of_folder(tmp_path / "peft"), base, target, lambda *_: None)
        read_adapter(target, base)
        return target, {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(target).tensors}

    return _convert


@pytest.fixture(scope="module")
def all_factors(base_path: Path) -> adapters.Factors:
    return adapters.factors(base_path, only="_proj")


@pytest.fixture
def found(all_factors: adapters.Factors) -> adapters.Factors:
    """Its own for each test: some change them."""
    return {module: (a.copy(), b.copy()) for module, (a, b) in all_factors.items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_factors_keep_their_values_and_alpha_its_value(
    dtype: str, convert: Any, found: adapters.Factors, tmp_path: Path
) -> None:
    adapters.write_peft(tmp_path / "peft", found, dtype=dtype)
    path, arrays = convert()
    assert gguf.GGUFReader(path).fields["adapter.lora.alpha"].contents() == 8.0
    assert len(arrays) == 2 * len(found)
    a, b = found["model.layers.1.mlp.up_proj"]
    tolerance = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2}[dtype]
    assert np.allclose(arrays["blk.1.ffn_up.weight.lora_a"], a, rtol=tolerance, atol=0)
    assert np.allclose(arrays["blk.1.ffn_up.weight.lora_b"], b, rtol=tolerance, atol=1e-7)
    assert {values.dtype for values in arrays.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("config", "module", "scale"),
    [
        ({"use_rslora": True}, "model.layers.0.mlp.up_proj", 8 / math.sqrt(4)),
        ({"lora_alpha": 6}, "model.layers.0.mlp.up_proj", 1.5),
        ({"alpha_pattern": {"up_proj": 2}}, "model.layers.0.mlp.up_proj", 0.5),
        ({"alpha_pattern": {"up_proj": 2}}, "model.layers.0.mlp.down_proj", 2.0),
        ({"alpha_pattern": {"layers.1.mlp.up_proj": 2}}, "model.layers.0.mlp.up_proj", 2.0),
        ({"alpha_pattern": {"^model.layers.0.mlp.up_proj": 2}}, "model.layers.0.mlp.up_proj", 0.5),
        ({"alpha_pattern": {"p_proj": 2}}, "model.layers.0.mlp.up_proj", 2.0),
        ({"r": 8, "rank_pattern": {"_proj$": 4, "up_proj": 4, "down_proj": 4}}, "model.layers.0.mlp.up_proj", 2.0),
    ],
)
def test_a_product_counts_as_much_as_in_peft(
    config: dict[str, Any], module: str, scale: float, convert: Any, base_path: Path, tmp_path: Path
) -> None:
    found = adapters.factors(base_path, only="mlp") if "rank_pattern" not in config else {
        name: pair for name, pair in adapters.factors(base_path, only="mlp").items() if "gate" not in name
    }  # fmt: skip
    adapters.write_peft(tmp_path / "peft", found, **config)
    path, arrays = convert()
    alpha = gguf.GGUFReader(path).fields["adapter.lora.alpha"].contents()
    a, b = found[module]
    layer, name = module.split(".")[2], {"up_proj": "ffn_up", "down_proj": "ffn_down"}[module.rpartition(".")[2]]
    written = arrays[f"blk.{layer}.{name}.weight.lora_b"] @ arrays[f"blk.{layer}.{name}.weight.lora_a"]
    assert np.allclose(written * (alpha / len(a)), scale * (b @ a), rtol=1e-5, atol=1e-7)


def test_an_embedding_s_factors_are_turned_as_llama_cpp_looks_them_up(
    convert: Any, base: Header, found: adapters.Factors, tmp_path: Path
) -> None:
    rows = next(tensor.shape[1] for tensor in base.tensors if tensor.name == "token_embd.weight")
    adapters.write_peft(tmp_path / "peft", found)
    random = np.random.default_rng(0)
    a, b = random.random((4, rows), dtype=np.float32), random.random((64, 4), dtype=np.float32)
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.model.embed_tokens.base_layer.weight": np.zeros((rows, 64), dtype=np.float32),
    }
    write_safetensors(tmp_path / "peft" / "adapter_model.safetensors", tensors)
    _, arrays = convert()
    assert np.array_equal(arrays["token_embd.weight.lora_a"], a.T)
    assert np.array_equal(arrays["token_embd.weight.lora_b"], b)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"use_dora": True}, "merge_and_unload"),
        ({"peft_type": "IA3"}, "merge_and_unload"),
        ({"peft_type": None}, "merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "merge_and_unload"),
        ({"bias": "all"}, "merge_and_unload"),
        ({"lora_bias": True}, "merge_and_unload"),
        ({"layer_replication": [[0, 2]]}, "merge_and_unload"),
        ({"alora_invocation_tokens": [1]}, "merge_and_unload"),
        ({"alpha_pattern": {"(up|down)_proj": 3}}, "merge_and_unload"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "rank"),
        ({"r": True}, "rank"),
        ({"r": 5}, "belong together"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": 1e308}, "lora_alpha"),
        ({"lora_alpha": 5e-324}, "lora_alpha"),  # 0 when it is divided
        ({"alpha_pattern": {"up_proj": 0}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "patterns"),
    ],
)
def test_what_a_gguf_adapter_cannot_say_is_refused_with_what_to_do(
    config: dict[str, Any], remedy: str, convert: Any, found: adapters.Factors, tmp_path: Path
) -> None:
    adapters.write_peft(tmp_path / "peft", found, **config)
    with pytest.raises(InvalidModel, match=remedy):
        convert()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("base_model.model.lm_head.weight", (100, 64), "merge_and_unload"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", (128,), "DoRA"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.bias", (128,), "biases"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (128,), "no matrix"),
        ("base_model.model.model.layers.0.input_layernorm.weight", (64,), "merge_and_unload"),
        ("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight", (4, 64), "not known"),
        ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", (4, 64), "not known"),
        ("base_model.model.vision_tower.layers.0.mlp.up_proj.lora_A.weight", (4, 64), "not known"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (3, 64), "belong together"),
    ],
)
def test_a_tensor_that_is_no_factor_of_known_weights_is_refused(
    name: str, shape: tuple[int, ...], reason: str, convert: Any, found: adapters.Factors, tmp_path: Path
) -> None:
    adapters.write_peft(tmp_path / "peft", found)
    tensors = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.zeros((4, 64), dtype=np.float32)}
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] = np.zeros((128, 4), dtype=np.float32)
    tensors[name] = np.zeros(shape, dtype=np.float32)
    write_safetensors(tmp_path / "peft" / "adapter_model.safetensors", tensors)
    with pytest.raises(InvalidModel, match=reason):
        convert()


def test_pickled_weights_are_never_read(convert: Any, found: adapters.Factors, tmp_path: Path) -> None:
    folder = adapters.write_peft(tmp_path / "peft", found)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidModel, match="safe_serialization=True"):
        convert()


def test_weights_without_their_configuration_are_refused(convert: Any, found: adapters.Factors, tmp_path: Path) -> None:
    folder = adapters.write_peft(tmp_path / "peft", found)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InvalidModel, match="adapter_config"):
        convert()
    assert config["r"] == 4


def test_an_architecture_whose_names_are_not_known_is_refused(found: adapters.Factors, tmp_path: Path) -> None:
    tiny_models.write_recurrent(tmp_path / "mamba.gguf")
    folder = adapters.write_peft(tmp_path / "peft", found)
    with pytest.raises(InvalidModel, match="convert_lora_to_gguf"):
        convert_adapter(Files.of_folder(folder), read_header(tmp_path / "mamba.gguf"), tmp_path / "x", lambda *_: None)
