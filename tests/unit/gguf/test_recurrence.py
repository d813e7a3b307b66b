"""What a header says of recurrent state and of the layers that have a key-value cache; figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.domain.memory import kv_cache_bytes, memory_need, sequence_ids, state_bytes
from service.gguf.files import facts, read_header
from tests import tiny_models


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In this folder `tiny` is another fixture."""
    return tiny_models.write_all(tmp_path_factory.mktemp("tiny"))


def test_mamba_keeps_a_convolution_and_a_state_in_each_layer(written: dict[str, Path]) -> None:
    shape = facts(read_header(written["recurrent"])).shape
    inner, state, convolution = tiny_models._INNER, tiny_models._STATE, tiny_models._CONVOLUTION
    assert shape.state_values == tiny_models._LAYERS * ((convolution - 1) * inner + state * inner)
    assert shape.cache_heads == 0
    assert kv_cache_bytes(shape, 4096) == 0


def test_a_hybrid_has_a_state_in_one_layer_and_a_cache_in_the_other(written: dict[str, Path]) -> None:
    shape = facts(read_header(written["hybrid"])).shape
    assert shape.state_values == tiny_models._SIZE * (tiny_models._CONVOLUTION - 1)
    assert shape.cache_heads == tiny_models._HEADS
    assert kv_cache_bytes(shape, 256) == 256 * 2 * 2 * tiny_models._SIZE


def test_states_count_for_each_sequence_that_may_be_kept(written: dict[str, Path]) -> None:
    found = facts(read_header(written["recurrent"]))
    assert sequence_ids(4, recurrent=True) == 10
    assert memory_need(found, 1024, 4).kv_cache_bytes == state_bytes(found.shape, 10)


def test_a_model_that_looks_ahead_has_no_cache(written: dict[str, Path]) -> None:
    found = facts(read_header(written["bert"]))
    assert not found.shape.generates
    assert memory_need(found, 256).kv_cache_bytes == 0
    assert facts(read_header(written["llama"])).shape.state_values == 0


def test_a_mixture_computes_the_experts_of_a_token_at_once(tmp_path: Path) -> None:
    tiny_models.write_mixture(tmp_path / "mixture.gguf")
    shape = facts(read_header(tmp_path / "mixture.gguf")).shape
    assert shape.expert_width == tiny_models.EXPERTS_USED * tiny_models._INNER
