"""Promises of the embedder with real llama.cpp: vectors alone and in a batch, order, limits, cancelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter, NotSupported, PromptTooLong
from service.domain.generation import EmbeddingRequest, Embeddings, Failed
from service.engine.embeddings import Embedder, token_lists
from service.llama.embedding import generates
from service.llama.model import Model
from tests import tiny_models
from tests.integration.engine.test_tiny_models import context_over

TEXTS = tuple(
    f"{opening} {rest}"
    for opening in ("The ship", "A letter", "Every spring", "In the end the old keeper", "It")
    for rest in ("came home.", "was late, as ships and letters are when the wind turns.", "went on and on " * 5)
)
MakeEmbedder = Callable[..., Embedder]


@pytest.fixture
def make_embedder(tiny: dict[str, Path], gloss: Path) -> Iterator[MakeEmbedder]:
    """make_embedder(kind, **options): a tiny model or gloss, closed in the end."""
    made: list[tuple[Embedder, Model]] = []

    def make(kind: str, *, context_length: int = 512, batch_tokens: int = 64) -> Embedder:
        model = Model(gloss if kind == "gloss" else tiny[kind], gpu_layers=0, use_extra_buffers=False)
        embedder = Embedder(
            model, context_length=context_length, batch_tokens=batch_tokens, threads=1, flash_attention=True
        )
        made.append((embedder, model))
        return embedder

    yield make
    for embedder, model in made:
        embedder.close()
        model.close()


def tokens(embedder: Embedder, *inputs: str) -> list[list[int]]:
    return token_lists(EmbeddingRequest(inputs), embedder._model)


def run(embedder: Embedder) -> dict[int, Embeddings | Failed]:
    results: dict[int, Embeddings | Failed] = {}
    for _ in range(1000):
        if embedder.is_idle:
            return results
        for request_id, result in embedder.step():
            assert request_id not in results
            results[request_id] = result
    raise AssertionError("it never ends")


def embed(embedder: Embedder, texts: list[list[int]], **options: object) -> NDArray[np.float32]:
    embedder.submit(1, texts, EmbeddingRequest((), **options))  # type: ignore[arg-type]
    return matrix(run(embedder)[1])


def matrix(result: Embeddings | Failed) -> NDArray[np.float32]:
    assert isinstance(result, Embeddings), result
    return np.stack([np.frombuffer(vector, "<f4") for vector in result.vectors])


@pytest.mark.parametrize("kind", [*tiny_models.WRITERS, "gloss"])
def test_vectors_in_a_batch_are_the_vectors_of_each_text_alone_in_its_order(
    kind: str, make_embedder: MakeEmbedder
) -> None:
    embedder = make_embedder(kind)
    texts = tokens(embedder, *TEXTS)
    together = embed(embedder, texts)
    steps = embedder.steps
    alone = np.concatenate([embed(embedder, [text]) for text in texts])
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.sum(together * alone, axis=1).min() > 0.9999
    assert (together @ together.T - np.eye(len(TEXTS))).max() < 0.9999  # and different texts differ
    assert steps < len(TEXTS)  # several texts went into one batch


@pytest.mark.parametrize("kind", [*tiny_models.WRITERS, "gloss"])
def test_a_text_longer_than_a_batch_has_the_vector_it_has_in_one(kind: str, make_embedder: MakeEmbedder) -> None:
    narrow, wide = make_embedder(kind, batch_tokens=16), make_embedder(kind, batch_tokens=512)
    texts = tokens(narrow, "Short one.", " ".join(TEXTS[:4]), "Another.", " ".join(TEXTS[4:9]), "Last.")
    assert max(map(len, texts)) > 64
    assert np.sum(embed(narrow, texts) * embed(wide, texts), axis=1).min() > 0.9999


def test_a_mean_over_a_model_that_looks_back_is_taken_over_the_whole_text(
    make_embedder: MakeEmbedder, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.write_llama(tmp_path / "mean.gguf", pooling=gguf.PoolingType.MEAN)
    monkeypatch.setitem(tiny, "llama with mean", tmp_path / "mean.gguf")
    narrow, wide = (make_embedder("llama with mean", batch_tokens=size) for size in (16, 512))
    texts = tokens(narrow, *TEXTS, " ".join(TEXTS[:5]))
    mean = embed(narrow, texts)
    assert np.sum(mean * embed(wide, texts), axis=1).min() > 0.9999
    assert np.sum(mean * embed(make_embedder("llama"), texts), axis=1).max() < 0.99  # it is not the last token's


def test_dimensions_keep_the_first_numbers_and_scale_them_again(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder("bert")
    texts = tokens(embedder, *TEXTS)
    whole, raw = embed(embedder, texts), embed(embedder, texts, normalize=False)
    cut = embed(embedder, texts, dimensions=10)
    assert cut.shape == (len(TEXTS), 10)
    assert cut == pytest.approx(whole[:, :10] / np.linalg.norm(whole[:, :10], axis=1, keepdims=True), abs=1e-5)
    assert raw / np.linalg.norm(raw, axis=1, keepdims=True) == pytest.approx(whole, abs=1e-5)
    for wrong in (0, whole.shape[1] + 1):
        with pytest.raises(InvalidParameter) as refused:
            embed(embedder, texts, dimensions=wrong)
        assert refused.value.param == "dimensions"


def test_a_text_over_the_context_is_refused_or_cut_before_the_models_own_ending(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder("bert", context_length=24)
    (long,) = tokens(embedder, " ".join(TEXTS))
    with pytest.raises(PromptTooLong):
        embed(embedder, [long], truncate=False)
    embedder.submit(1, [long], EmbeddingRequest((), truncate=True))
    result = run(embedder)[1]
    assert isinstance(result, Embeddings)
    assert result.prompt_tokens == 24
    assert matrix(result) == pytest.approx(embed(embedder, [long[:23] + long[-1:]]), abs=1e-4)


def test_what_cannot_be_embedded_is_refused_by_name(make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder("gloss")
    for texts in ([], [[]], [[5], [4096]], [[-1]]):
        with pytest.raises(InvalidParameter) as refused:
            embedder.submit(1, texts, EmbeddingRequest(()))
        assert refused.value.param == "input"
    assert embedder.is_idle


@pytest.mark.parametrize("kind", ["llama", "hybrid", "bert"])
def test_requests_take_turns_and_cancelled_ones_leave_no_trace(kind: str, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(kind, batch_tokens=32)
    many = tokens(embedder, *(TEXTS * 40))
    few = tokens(embedder, TEXTS[0], TEXTS[2])
    expected = embed(embedder, few)
    embedder.submit(1, many, EmbeddingRequest(()))
    embedder.submit(2, few, EmbeddingRequest(()))
    embedder.submit(3, tokens(embedder, " ".join(TEXTS[:6])), EmbeddingRequest(()))
    ended = [request_id for _ in range(8) for request_id, _ in embedder.step()]
    assert 2 in ended
    assert 1 not in ended
    embedder.cancel(1)
    embedder.cancel(3)
    embedder.cancel(99)
    assert embedder.is_idle
    assert embed(embedder, few) == pytest.approx(expected, abs=1e-4)
    assert len(embedder._free_sequences) == embedder._context.sequences  # type: ignore[union-attr]


def test_a_model_that_ranks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranks.gguf"
    tiny_models.write_bert(path, pooling=gguf.PoolingType.RANK)
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    embedder = Embedder(model, context_length=64, batch_tokens=64, threads=1, flash_attention=True)
    with pytest.raises(NotSupported):
        embedder.submit(1, [[5]], EmbeddingRequest(()))
    model.close()


def test_a_model_that_only_embeds_is_told_from_those_that_write(tiny: dict[str, Path]) -> None:
    for kind, path in tiny.items():
        with context_over(path) as context:
            assert generates(context) == (kind in tiny_models.GENERATING)
