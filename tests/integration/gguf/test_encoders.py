"""XLM-RoBERTa converted here embeds and ranks as its formulas say (tests/bert.py), whatever its tokenizer's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.domain.generation import EmbeddingRequest, Failed
from service.engine.embeddings import Embedder, token_lists
from service.gguf import convert
from service.gguf.checkpoint_files import Files
from service.llama.model import Model
from tests import checkpoints
from tests.bert import Bert

TEXTS = ("The quick \uff42\uff52\uff4f\uff57\uff4e fox", "L'été dernier,  nous étions ﬁn…", "我喜欢在早上喝茶。🙂")
BEGIN, END = 0, 2


def converted(folder: Path, family: str) -> Path:
    target = folder / "model.gguf"
    convert.convert(Files.of_folder(checkpoints.write(folder / family, family)), target, "F32", lambda part, step: None)
    return target


def embedded(path: Path, request: EmbeddingRequest) -> tuple[NDArray[np.float32], list[list[int]]]:
    """Vectors, and the tokens of each of TEXTS without those at its ends."""
    model = Model(path, gpu_layers=0, use_extra_buffers=True)
    embedder = Embedder(model, context_length=128, batch_tokens=128, threads=2, flash_attention=True)
    try:
        embedder.submit(1, token_lists(request, model), request)
        result = dict(result for _ in range(10) for result in embedder.step())[1]
        assert not isinstance(result, Failed), result
        tokens = [model.tokenize(text, add_special=False, parse_special=False) for text in TEXTS]
        return np.array([np.frombuffer(vector, "<f4") for vector in result.vectors]), tokens
    finally:
        embedder.close()
        model.close()


def test_the_vector_of_a_text_is_that_of_its_first_token(tmp_path: Path) -> None:
    path = converted(tmp_path, "xlm-roberta")
    vectors, tokens = embedded(path, EmbeddingRequest(TEXTS))
    original = Bert(tmp_path / "xlm-roberta")
    for vector, text in zip(vectors, tokens, strict=True):
        first = original.states([BEGIN, *text, END])[0]
        assert vector @ first / np.linalg.norm(first) == pytest.approx(1.0, abs=1e-4)


def test_both_kinds_of_tokenizer_files_give_the_same_tokens(tmp_path: Path) -> None:
    _, tokens = embedded(converted(tmp_path, "xlm-roberta"), EmbeddingRequest(TEXTS))
    (tmp_path / "model.gguf").unlink()
    _, others = embedded(converted(tmp_path, "xlm-roberta-slow"), EmbeddingRequest(TEXTS))
    assert tokens == others


def test_a_reranker_gives_what_its_head_gives(tmp_path: Path) -> None:
    path = converted(tmp_path, "reranker")
    ranks, tokens = embedded(path, EmbeddingRequest(TEXTS[1:], query=TEXTS[0], normalize=False))
    original = Bert(tmp_path / "reranker")
    query, *documents = tokens
    wanted = [original.rank([BEGIN, *query, END, END, *document, END]) for document in documents]
    assert ranks[:, 0] == pytest.approx(wanted, abs=1e-3)
