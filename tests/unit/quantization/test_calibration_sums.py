"""Sums of squares of a product's input, against the formula written out; no graph is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.llama.observe import MatrixInput
from service.quantization.calibration import _Sums, squares

SEEDS = st.integers(0, 2**32 - 1)


def shown(values: np.ndarray, experts: np.ndarray | None, stack: tuple[int, int], **how: object) -> MatrixInput:
    return MatrixInput(str(how.get("weight", "w")), values, experts, stack, bool(how.get("repeated")))


@given(SEEDS, st.integers(1, 200), st.integers(1, 9))
def test_squares_are_summed_by_column(seed: int, rows: int, columns: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    assert squares(values) == pytest.approx((values.astype(np.float64) ** 2).sum(axis=0), rel=1e-5)


@given(SEEDS, st.tuples(st.integers(1, 2), st.integers(1, 3)), st.integers(1, 2), st.integers(1, 3))
def test_each_matrix_of_a_stack_gets_its_own_input(seed: int, stack: tuple[int, int], more: int, share: int) -> None:
    outer, stacked, rows, columns = stack[0] * more, stack[1] * share, 5, 4
    values = np.random.default_rng(seed).standard_normal((outer, stacked, rows, columns), dtype=np.float32)
    expected = np.zeros((stack[0] * stack[1], columns))
    for i in range(outer):
        for j in range(stacked):
            for row in range(rows):
                expected[(i % stack[0]) * stack[1] + j % stack[1]] += values[i, j, row].astype(np.float64) ** 2
    sums = _Sums()
    sums.take(shown(values, None, stack))
    assert sums.sums["w"] == pytest.approx(expected.reshape(1, -1), rel=1e-5)
    assert sums.counts["w"].tolist() == [rows * more * share]


@given(SEEDS, st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_each_expert_gets_the_tokens_that_went_to_it(
    seed: int, tokens: int, count: int, used: int, has_slots: bool
) -> None:
    random = np.random.default_rng(seed)
    slots, columns = used if has_slots else 1, 4
    values = random.standard_normal((1, tokens, slots, columns), dtype=np.float32)
    experts = random.integers(0, count, (tokens, used), dtype=np.int32)
    expected, counts = np.zeros((count, columns)), np.zeros(count)
    for token in range(tokens):
        for place in range(used):
            expected[experts[token, place]] += values[0, token, place % slots].astype(np.float64) ** 2
            counts[experts[token, place]] += 1
    sums = _Sums()
    sums.take(shown(values, experts, (1, count)))
    assert sums.sums["w"] == pytest.approx(expected, rel=1e-5)
    assert sums.counts["w"].tolist() == counts.tolist()


def test_an_input_that_two_weights_share_counts_for_both() -> None:
    values = np.full((1, 1, 3, 2), 2, dtype=np.float32)
    sums = _Sums()
    for _ in range(2):
        sums.take(shown(values, None, (1, 1), weight="q"))
        sums.take(shown(values, None, (1, 1), weight="k", repeated=True))
    assert sums.sums["q"].tolist() == sums.sums["k"].tolist() == [[24, 24]]
    assert sums.counts["k"].tolist() == [6]


def test_activations_that_are_no_numbers_are_the_models_fault_and_the_weight_is_named() -> None:
    with pytest.raises(InvalidModel, match=r"before blk\.3\.x"):
        _Sums().take(shown(np.full((1, 1, 3, 2), np.inf, dtype=np.float32), None, (1, 1), weight="blk.3.x"))


def test_an_expert_that_does_not_exist_is_the_models_fault() -> None:
    values, experts = np.ones((1, 2, 1, 4), dtype=np.float32), np.array([[0], [9]], dtype=np.int32)
    with pytest.raises(InvalidModel, match="experts"):
        _Sums().take(shown(values, experts, (1, 4)))
