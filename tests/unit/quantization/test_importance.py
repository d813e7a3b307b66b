"""Importance matrices: what the quantizer gets, how they add up, whose they are, and the figures shown of them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidParameter
from service.gguf.files import read_header
from service.gguf.header import Header, Pair
from service.quantization.importance import Entry, Importance, check_belongs, facts, merge, weights

GLOSS = Path(__file__).resolve().parents[3] / "demo" / "gloss-5m-f16.gguf"
COLUMNS = 4


def entry(sums: list[list[float]], counts: list[float]) -> Entry:
    return Entry(np.array(sums, dtype=np.float32), np.array(counts, dtype=np.float32))


def matrix(entries: dict[str, Entry], *, chunks: int = 2, datasets: tuple[str, ...] = ("text",)) -> Importance:
    return Importance(entries, chunks, 512, datasets)


_sums = st.lists(st.integers(0, 1000), min_size=COLUMNS, max_size=COLUMNS)
_matrices = st.lists(
    st.builds(lambda sums, count: matrix({"a": entry([sums], [count])}), _sums, st.integers(1, 1000)),
    min_size=1,
    max_size=4,
)


def test_weights_are_mean_squares_and_experts_without_data_weigh_one() -> None:
    made = weights(matrix({"a": entry([[2, 4], [0, 0], [9, 0]], [2, 0, 3])}))
    assert made["a"].dtype == np.float32
    assert made["a"].tolist() == [1, 2, 1, 1, 3, 0]


@given(_matrices)
def test_merging_is_adding_sums_and_counts(parts: list[Importance]) -> None:
    merged = merge(parts)
    assert merged.entries["a"].sums.tolist() == sum(part.entries["a"].sums for part in parts).tolist()
    assert merged.entries["a"].counts.tolist() == sum(part.entries["a"].counts for part in parts).tolist()
    assert merged.chunks == 2 * len(parts)


def test_merging_keeps_each_text_once_and_every_tensor() -> None:
    one = matrix({"a": entry([[1, 1]], [1])}, datasets=("x", "y"))
    merged = merge([one, matrix({"b": entry([[2, 2]], [1])}, datasets=("y", "z"))])
    assert merged.datasets == ("x", "y", "z")
    assert set(merged.entries) == {"a", "b"}


def test_a_stacked_tensor_of_the_older_format_joins_one_that_knows_its_experts() -> None:
    merged = merge([matrix({"a": entry([[1, 2, 3, 4]], [5])}), matrix({"a": entry([[1, 1], [1, 1]], [2, 3])})])
    assert merged.entries["a"].sums.tolist() == [[2, 3], [4, 5]]
    assert merged.entries["a"].counts.tolist() == [7, 8]


def test_matrices_of_different_models_do_not_merge_and_the_tensors_are_named() -> None:
    with pytest.raises(InvalidParameter, match=r"blk\.0\.a is not of one size"):
        merge([matrix({"blk.0.a": entry([[1, 2]], [1])}), matrix({"blk.0.a": entry([[1, 2, 3]], [1])})])


# --- whose it is


@pytest.fixture(scope="module")
def gloss() -> Header:
    return read_header(GLOSS)


def of_model(header: Header) -> dict[str, Entry]:
    return {
        tensor.name: Entry(np.ones((1, tensor.shape[0]), dtype=np.float32), np.ones(1, dtype=np.float32))
        for tensor in header.tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }


def test_a_matrix_belongs_to_its_own_model(gloss: Header) -> None:
    views = {"blk.0.attn_q.weight (view)": entry([[1]], [1]), "output.weight": entry([[1, 2, 3]], [1])}
    check_belongs(matrix(of_model(gloss)), gloss)
    check_belongs(matrix(of_model(gloss) | views), gloss)


def test_a_matrix_of_another_model_is_refused_and_its_tensors_are_named(gloss: Header) -> None:
    more = {f"blk.{block}.attn_q.weight": entry([[1]], [1]) for block in range(90, 95)}
    with pytest.raises(InvalidParameter, match=r"blk\.90\.attn_q\.weight, .* and 2 more tensors are not in this one"):
        check_belongs(matrix(of_model(gloss) | more), gloss)
    with pytest.raises(InvalidParameter, match=r"blk\.1\.ffn_down\.weight is of another size .* 3 columns"):
        check_belongs(matrix(of_model(gloss) | {"blk.1.ffn_down.weight": entry([[1, 2, 3]], [1])}), gloss)


def test_a_matrix_of_a_shallower_model_of_the_same_width_is_refused(gloss: Header) -> None:
    some = {name: values for name, values in of_model(gloss).items() if not name.startswith("blk.5.")}
    with pytest.raises(InvalidParameter, match=r"blk\.5\.\w+\.weight, .* without data"):
        check_belongs(matrix(some), gloss)


def test_blocks_that_predict_further_tokens_need_no_data(gloss: Header) -> None:
    some = {name: values for name, values in of_model(gloss).items() if not name.startswith("blk.5.")}
    pairs = {**gloss.pairs, f"{gloss.architecture}.nextn_predict_layers": Pair("u32", 1, 0)}
    check_belongs(
        matrix(some),
        Header(3, 32, MappingProxyType(pairs), gloss.tensors, gloss.offsets, gloss.data_offset, gloss.file_size),
    )


def test_stacked_tensors_have_a_value_for_each_column_of_each_matrix(gloss: Header) -> None:
    stacked = TensorInfo("blk.0.ffn_up_exps.weight", (8, 16, 3), "F16", 768)
    header = Header(3, 32, gloss.pairs, (*gloss.tensors, stacked), (*gloss.offsets, 0), 0, 0)
    check_belongs(matrix(of_model(gloss) | {stacked.name: entry([[1] * 8] * 3, [1, 2, 3])}), header)


# --- statistics


def naive(values: NDArray[np.float64]) -> dict[str, float]:
    """The formulas of llama-imatrix --show-statistics, one by one."""
    mean, deviation = values.mean(), values.std()
    shares = [value / values.sum() for value in values if value > 0]
    return {
        "total": values.sum(),
        "mean": mean,
        "minimum": values.min(),
        "maximum": values.max(),
        "deviation": deviation,
        "active": sum(value > 1e-5 for value in values) / len(values),
        "entropy": -sum(share * np.log2(share) for share in shares),
        "z_share": sum((value - mean) / deviation > 1 for value in values) / len(values),
    }


def test_statistics_are_those_of_the_mean_squares_of_experts_with_data() -> None:
    sums = [[4.0, 2.0, 0.0, 100.0], [0.0, 0.0, 0.0, 0.0], [3.0, 6.0, 9.0, 1e-6]]
    told = facts(matrix({"blk.0.a.weight": entry(sums, [2, 0, 3])})).statistics[0]
    expected = naive(np.array([2.0, 1.0, 0.0, 50.0, 1.0, 2.0, 3.0, 1e-6 / 3]))
    assert {name: getattr(told, name) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert (told.columns, told.experts, told.experts_without_data) == (12, 3, 1)


def test_a_tensor_that_saw_nothing_has_statistics_of_nothing() -> None:
    told = facts(matrix({"blk.0.a.weight": entry([[0, 0], [0, 0]], [0, 0])})).statistics[0]
    assert (told.total, told.mean, told.deviation, told.active, told.entropy) == (0, 0, 0, 0, 0)
    assert told.experts_without_data == told.experts == 2


def test_similarity_is_to_the_same_tensor_one_block_before() -> None:
    entries = {
        "blk.0.a.weight": entry([[3, 4]], [1]),
        "blk.1.a.weight": entry([[6, 8]], [5]),
        "blk.2.a.weight": entry([[4, -3]], [1]),
        "blk.2.b.weight": entry([[1, 1]], [1]),
        "output.weight": entry([[1, 1]], [1]),
    }
    told = {values.name: values.cosine for values in facts(matrix(entries)).statistics}
    assert told == pytest.approx(
        {"blk.0.a.weight": 0, "blk.1.a.weight": 1, "blk.2.a.weight": 0, "blk.2.b.weight": 0, "output.weight": 0}
    )


def test_tensors_are_listed_block_by_block_and_the_output_last() -> None:
    names = ["output.weight", "blk.10.a.weight", "blk.2.b.weight", "blk.2.a.weight"]
    told = facts(matrix({name: entry([[1]], [1]) for name in names}))
    assert [values.name for values in told.statistics] == [names[3], names[2], names[1], names[0]]
