"""Losses, divergences and the compact form, against the plain formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.quantization.compact import are_whole, compact_into, compact_width, unpack
from service.quantization.scoring import RowScorer, Scores


def logits_of(seed: int, rows: int, vocabulary: int, spread: float = 3.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.0, spread, (rows, vocabulary)).astype(np.float32)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return result


def compacted(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    rows = np.empty((len(logits), compact_width(logits.shape[1])), dtype=np.uint16)
    compact_into(rows, logits, np.zeros(len(logits), dtype=np.int32), np.empty_like(logits))
    return rows


def unpacked(rows: NDArray[np.uint16], vocabulary: int) -> NDArray[np.float32]:
    out = np.empty((len(rows), vocabulary), dtype=np.float32)
    unpack(rows, out)
    return out


SHAPES = {"rows": st.integers(1, 40), "vocabulary": st.integers(2, 600), "spread": st.floats(0.1, 12.0)}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), **SHAPES)
def test_compact_rows_give_log_probabilities_back_within_half_a_step(
    seed: int, rows: int, vocabulary: int, spread: float
) -> None:
    logits = logits_of(seed, rows, vocabulary, spread)
    exact = log_softmax(logits)
    back = unpacked(compacted(logits), vocabulary)
    kept = exact > exact.max(axis=1, keepdims=True) - 16
    half_step = (exact.max(axis=1) - exact.min(axis=1)).clip(max=16) / 65535 / 2
    assert (np.abs(back - exact) <= half_step[:, None] + 2e-5)[kept].all()
    # What is further down is put at 16 below the most likely token.
    floor = np.broadcast_to(exact.max(axis=1, keepdims=True) - 16, exact.shape)
    assert np.allclose(back[~kept], floor[~kept], atol=2e-5)


def test_the_compact_form_is_that_of_llama_perplexity() -> None:
    """Worked by hand: logits 0 and -ln 3 are probabilities 3/4 and 1/4; an odd vocabulary is padded."""
    rows = compacted(np.array([[0.0, -math.log(3), -math.log(3), -50.0, -2.0]], dtype=np.float32))
    assert compact_width(5) == rows.shape[1] == 10
    scale, minimum = rows[0, :4].view(np.float32)
    log_sum = math.log(1 + 2 / 3 + math.exp(-2))
    assert scale == pytest.approx(16 / 65535)
    assert minimum == pytest.approx(-16 - log_sum)
    third = round(65535 * (1 - math.log(3) / 16))
    assert rows[0, 4:].tolist() == [65535, third, third, 0, round(65535 * (1 - 2 / 16)), 0]


def test_a_row_of_equal_logits_is_even_chances() -> None:
    rows = compacted(np.full((2, 6), 3.5, dtype=np.float32))
    assert np.allclose(unpacked(rows, 6), -math.log(6))
    assert are_whole(rows).all()


def test_rows_that_were_never_written_are_told_from_rows_that_were() -> None:
    rows = compacted(logits_of(0, 3, 20))
    rows[1] = 0
    assert are_whole(rows).tolist() == [True, False, True]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), threads=st.integers(1, 3), **SHAPES)
def test_scores_are_those_of_the_plain_formulas(
    seed: int, threads: int, rows: int, vocabulary: int, spread: float
) -> None:
    logits, source = logits_of(seed, rows, vocabulary, spread), logits_of(seed + 1, rows, vocabulary, spread)
    targets = np.random.default_rng(seed).integers(0, vocabulary, rows).astype(np.int32)
    base = compacted(source)
    scores = Scores.empty(rows, compared=True)
    scorer = RowScorer(vocabulary, threads=threads)
    scorer.score(logits, targets, scores, base)
    scorer.close()

    own = log_softmax(logits)
    base_log = unpacked(base, vocabulary).astype(np.float64)
    each = np.arange(rows)
    kept = base_log > -16
    divergence = np.where(kept, np.exp(base_log) * (base_log - own), 0.0).sum(axis=1)
    assert np.allclose(scores.losses, -own[each, targets], rtol=1e-5, atol=1e-5)
    assert np.allclose(scores.base_losses, -base_log[each, targets], rtol=1e-6)
    assert np.allclose(scores.divergences, divergence, rtol=1e-5, atol=2e-5)
    changes = np.exp(own[each, targets]) - np.exp(base_log[each, targets])
    assert np.allclose(scores.probability_changes, changes, atol=1e-5)
    assert scores.same_top.tolist() == (own.argmax(axis=1) == base[:, 4:][:, :vocabulary].argmax(axis=1)).tolist()


def test_a_source_has_no_divergence_from_itself() -> None:
    logits = logits_of(7, 300, 4096)
    targets = np.zeros(300, dtype=np.int32)
    scores = Scores.empty(300, compared=True)
    scorer = RowScorer(4096, threads=2)
    scorer.score(logits, targets, scores, compacted(logits))
    scorer.close()
    assert abs(scores.divergences.mean()) < 1e-5
    assert np.abs(scores.divergences).max() < 1e-4
    assert scores.same_top.mean() > 0.99  # two tokens nearer than a step of the compact form may change places


def test_nothing_but_losses_is_computed_without_a_base() -> None:
    logits = logits_of(3, 10, 50)
    scores = Scores.empty(10, compared=False)
    scorer = RowScorer(50, threads=1)
    scorer.score(logits, np.arange(10, dtype=np.int32), scores, None)
    scorer.close()
    assert np.allclose(scores.losses, -log_softmax(logits)[np.arange(10), np.arange(10)], atol=1e-5)
    assert scores.divergences.size == scores.same_top.size == 0


def test_losses_are_the_same_to_the_bit_whether_the_rows_are_kept_or_not() -> None:
    logits = logits_of(4, 77, 901)
    targets = np.random.default_rng(4).integers(0, 901, 77).astype(np.int32)
    scores, kept = Scores.empty(77, compared=False), np.empty(77)
    scorer = RowScorer(901, threads=2)
    scorer.score(logits, targets, scores, None)
    scorer.compact(logits, targets, kept, np.empty((77, compact_width(901)), dtype=np.uint16))
    scorer.close()
    assert np.array_equal(scores.losses, kept)
