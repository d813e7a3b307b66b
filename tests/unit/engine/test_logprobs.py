"""Promises of log-probabilities: exact, in order, and always a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.logprobs import LEAST_LOGPROB, token_logprob


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=3000), st.integers(0, 30), st.integers(0, 1 << 20))
def test_they_are_the_log_softmax_of_the_logits(values: list[float], top: int, token: int) -> None:
    logits = np.array(values, dtype=np.float32)
    token %= logits.size
    exact = logits.astype(np.float64)
    exact = exact - exact.max()
    exact -= math.log(np.exp(exact).sum())
    logprob, alternatives = token_logprob(logits, token, top)
    assert logprob == pytest.approx(exact[token], abs=1e-4)
    assert len(alternatives) == min(top, logits.size)
    assert [chance for _, chance in alternatives] == pytest.approx(sorted(exact.tolist())[::-1][:top], abs=1e-4)
    assert all(chance == pytest.approx(exact[id], abs=1e-4) for id, chance in alternatives)


def test_equally_likely_tokens_come_by_id() -> None:
    assert [token for token, _ in token_logprob(np.zeros(5000, np.float32), 7, 4)[1]] == [0, 1, 2, 3]


def test_an_impossible_token_has_the_least_logprob_and_is_no_alternative() -> None:
    logits = np.array([1.0, -np.inf, 1.0], dtype=np.float32)
    assert token_logprob(logits, 1, 3) == (
        LEAST_LOGPROB,
        [(0, pytest.approx(math.log(0.5))), (2, pytest.approx(math.log(0.5)))],
    )


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_odd_logits_still_give_numbers(odd: float, everywhere: bool) -> None:
    logits = np.full(3000, odd if everywhere else 0.0, dtype=np.float32)
    logits[5] = odd
    logprob, alternatives = token_logprob(logits, 5, 3)
    for number in [logprob, *(chance for _, chance in alternatives)]:
        assert LEAST_LOGPROB <= number <= 1e-3


def test_the_logits_stay_as_they_are() -> None:
    logits = np.array([1.0, math.nan, 2.0], dtype=np.float32)
    before = logits.copy()
    token_logprob(logits, 0, 2)
    np.testing.assert_array_equal(logits, before)
