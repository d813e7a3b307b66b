"""Perplexity and divergence through llama.cpp: the same whatever the batch, and after an interruption."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter, NotSupported
from service.llama.context import Context
from service.llama.model import Model
from service.llama.windows import WindowContext
from service.quantization.base_logits import BaseLogits
from service.quantization.evaluate import Evaluator, check_windows, source_logits
from service.quantization.speed import choose_sizes
from service.quantization.windows import Text, cut_windows, read_text
from tests.tiny_models import GENERATING

EVALUATION = Path(__file__).resolve().parents[3] / "service/store/texts/evaluation.txt"
TEXT = read_text(EVALUATION)


@contextmanager
def loaded(path: Path) -> Iterator[Model]:
    model = Model(path, gpu_layers=0, use_extra_buffers=True)
    try:
        yield model
    finally:
        model.close()


def losses(path: Path, *, window: int, chunks: int) -> NDArray[np.float64]:
    with loaded(path) as model:
        windows = cut_windows(model, TEXT, window=window, chunks=chunks)
        evaluator = Evaluator(model, window=window, threads=2)
        try:
            return evaluator.score(windows, None, lambda done, total: None).losses
        finally:
            evaluator.close()


def losses_token_by_token(path: Path, *, window: int, chunks: int) -> NDArray[np.float64]:
    """The definition, with the context that serves: each token of the second half from all before it."""
    found = []
    with loaded(path) as model:
        context = Context(model, cells=window, sequences=1, batch_tokens=window, threads=2, flash_attention=True)
        for tokens in cut_windows(model, TEXT, window=window, chunks=chunks).tolist():
            context.forget(0)
            context.batch.clear()
            context.batch.add(tokens[:-1], 0, 0, logits=window - 1 - window // 2)
            assert context.decode() == 0
            for position in range(window // 2, window - 1):
                logits = context.logits(position).astype(np.float64)
                found.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[position + 1]])
        context.close()
    return np.array(found)


@pytest.mark.parametrize("kind", [*GENERATING, "gloss"])
def test_a_text_costs_what_its_tokens_cost_one_by_one(kind: str, tiny: dict[str, Path], gloss: Path) -> None:
    """Several windows a decode, of a length that is no round number; full attention, sliding, recurrent, hybrid."""
    path = gloss if kind == "gloss" else tiny[kind]
    found = losses(path, window=100, chunks=7)
    assert len(found) == 7 * 49
    assert np.allclose(found, losses_token_by_token(path, window=100, chunks=7), atol=0.02)


def test_what_does_not_fill_a_window_is_left_out(gloss: Path) -> None:
    with loaded(gloss) as model:
        tokens = model.tokenize(TEXT, add_special=True, parse_special=False)
        windows = cut_windows(model, TEXT, window=512, chunks=None)
        assert windows.ravel().tolist() == tokens[: len(tokens) // 512 * 512]
        assert cut_windows(model, TEXT, window=512, chunks=2).tolist() == windows[:2].tolist()


def test_every_window_begins_with_bos_where_the_model_wants_one(gloss: Path) -> None:
    with loaded(gloss) as model:
        plain = cut_windows(model, TEXT, window=64, chunks=3)
        model.adds_bos, model.bos_token = True, 7
        windows = cut_windows(model, TEXT, window=64, chunks=3)
    assert windows[:, 0].tolist() == [7, 7, 7]
    assert windows[:, 1:].tolist() == plain[:, 1:].tolist()


def test_a_short_text_is_refused_with_what_is_needed(gloss: Path) -> None:
    with loaded(gloss) as model:
        with pytest.raises(InvalidParameter, match=r"one window needs 512, about \d{4} characters"):
            cut_windows(model, TEXT[:500], window=512, chunks=None)
        with pytest.raises(InvalidParameter, match="one window needs 512, about 2048 characters"):
            cut_windows(model, "", window=512, chunks=None)


def test_a_window_past_the_models_context_is_refused(gloss: Path) -> None:
    with loaded(gloss) as model, pytest.raises(InvalidParameter, match="trained on at most 512"):
        Evaluator(model, window=1024, threads=2)


def test_a_model_that_only_embeds_is_refused(tiny: dict[str, Path]) -> None:
    with loaded(tiny["bert"]) as model, pytest.raises(NotSupported, match="no next token"):
        Evaluator(model, window=64, threads=2)


def test_logits_come_for_the_tokens_that_were_asked_for(gloss: Path) -> None:
    with loaded(gloss) as model:
        windows = list(cut_windows(model, TEXT, window=32, chunks=3))
        context = WindowContext(model, window=32, sequences=4, threads=2)
        try:
            context.decode(windows, 0)
            every = context.logits().reshape(3, 32, -1).copy()
            context.decode(windows, 20)
            assert np.allclose(context.logits().reshape(3, 12, -1), every[:, 20:], atol=0.05)
            context.decode([windows[1][:10]], 9)
            assert np.allclose(context.logits()[0], every[1, 9], atol=0.05)
            context.decode(windows[:1], 32)
            assert context.logits().shape == (0, model.vocabulary_size)
        finally:
            context.close()


class Interrupted(Exception):
    pass


def test_an_interrupted_source_goes_on_and_gives_the_same_bytes(gloss: Path, tmp_path: Path) -> None:
    text = Text(EVALUATION, "sha256:1", 64, 18)  # the first batch has 16 windows
    seen = []

    def stop_after_the_first_batch(done: int, total: int) -> None:
        if done:
            raise Interrupted

    with pytest.raises(Interrupted):
        source_logits(gloss, tmp_path / "broken-off", text, threads=2, progress=stop_after_the_first_batch)
    assert not (tmp_path / "broken-off").exists()
    (part,) = tmp_path.glob("*.part")
    os.truncate(part, part.stat().st_size - 1)  # in the middle of a window, and of a batch
    resumed, scores = source_logits(
        gloss, tmp_path / "broken-off", text, threads=2, progress=lambda done, total: seen.append(done)
    )
    assert scores is None  # of the windows before, only the compact form is left
    whole, scores = source_logits(gloss, tmp_path / "in-one-go", text, threads=2, progress=lambda done, total: None)
    assert scores is not None
    assert np.array_equal(scores.losses, losses(gloss, window=64, chunks=18))
    assert seen[0] == 15
    for chunk in range(18):
        assert np.array_equal(resumed.chunk(chunk), whole.chunk(chunk))
    resumed.close()
    whole.close()
    assert (tmp_path / "broken-off").read_bytes() == (tmp_path / "in-one-go").read_bytes()


def test_a_source_is_computed_once(gloss: Path, tmp_path: Path) -> None:
    text = Text(EVALUATION, "sha256:1", 64, 4)
    first, scores = source_logits(gloss, tmp_path / "base", text, threads=2, progress=lambda done, total: None)
    again, none = source_logits(Path("/nowhere"), tmp_path / "base", text, threads=2, progress=lambda done, total: None)
    assert np.array_equal(first.chunk(3), again.chunk(3))
    assert scores is not None
    assert none is None
    first.close()
    again.close()


def test_variants_that_make_other_tokens_are_not_compared(gloss: Path, tmp_path: Path) -> None:
    text = Text(EVALUATION, "sha256:1", 64, 2)
    source_logits(gloss, tmp_path / "base", text, threads=2, progress=lambda done, total: None)[0].close()
    with BaseLogits(tmp_path / "base") as base:
        check_windows(base, base.windows, base.vocabulary)
        with pytest.raises(InvalidParameter, match="other tokens"):
            check_windows(base, base.windows[:1], base.vocabulary)
        with pytest.raises(InvalidParameter, match="other tokens"):
            check_windows(base, base.windows, base.vocabulary + 1)


def test_slow_models_are_measured_with_fewer_tokens() -> None:
    assert choose_sizes(1e-4, 1e-3, 2048) == (512, 128)
    assert choose_sizes(0.1, 1.0, 2048) == (100, 10)
    assert choose_sizes(10.0, 60.0, 2048) == (32, 8)
    assert choose_sizes(0.0, 0.0, 100) == (100, 100)
    assert math.prod(choose_sizes(1.0, 1.0, 0)) > 0
