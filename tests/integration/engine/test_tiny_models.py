"""The tiny models of tests/tiny_models.py hold what other tests assume of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest

from service.llama.context import Context
from service.llama.model import Model
from tests import tiny_models

PROMPT = "The lighthouse keeper wrote a letter to his sister, and she"


@contextmanager
def context_over(path: Path) -> Iterator[Context]:
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    context = Context(model, cells=256, sequences=2, batch_tokens=128, threads=1, flash_attention=True)
    try:
        yield context
    finally:
        context.close()
        model.close()


def greedy(context: Context, tokens: list[int], count: int, *, sequence: int = 0, piece: int = 128) -> list[int]:
    """The likeliest continuation; the prompt goes in in pieces, then the text token by token."""
    context.forget(sequence)
    drawn: list[int] = []
    start, pending = 0, tokens
    while len(drawn) < count:
        now, pending = pending[:piece], pending[piece:]
        context.batch.clear()
        first = context.batch.add(now, start, sequence, logits=1)
        assert context.decode() == 0
        start += len(now)
        if not pending:
            drawn.append(int(context.logits(first + len(now) - 1).argmax()))
            pending = drawn[-1:]
    return drawn


@pytest.mark.parametrize("kind", tiny_models.GENERATING)
def test_greedy_text_varies_depends_on_the_prompt_repeats_and_does_not_end(kind: str, tiny: dict[str, Path]) -> None:
    with context_over(tiny[kind]) as context:
        model = context.model
        tokens = model.tokenize(PROMPT, add_special=True, parse_special=False)
        drawn = greedy(context, tokens, 40)
        assert len(set(drawn)) > 10
        assert not any(model.is_end(token) for token in drawn)
        assert greedy(context, tokens, 40, sequence=1) == drawn
        assert greedy(context, [tokens[1], *tokens[1:]], 8) != drawn[:8]  # also through its first token


def test_kinds_of_memory_are_what_their_names_say(tiny: dict[str, Path]) -> None:
    for kind, path in tiny.items():
        model = Model(path, gpu_layers=0, use_extra_buffers=False)
        assert model.has_recurrent_state == (kind in {"recurrent", "hybrid"})
        model.close()


@pytest.mark.parametrize("kind", tiny_models.GENERATING)
def test_a_prompt_past_the_window_gives_the_same_text_in_pieces_and_whole(kind: str, tiny: dict[str, Path]) -> None:
    with context_over(tiny[kind]) as context:
        tokens = context.model.tokenize(PROMPT * 5, add_special=True, parse_special=False)
        assert 4 * tiny_models.SLIDING_WINDOW < len(tokens) < 128
        assert greedy(context, tokens, 20, piece=10) == greedy(context, tokens, 20)


@pytest.mark.parametrize("name", ["llama", "gloss"])
def test_adapters_pair_up_with_weights_of_their_base(
    name: str, tiny: dict[str, Path], gloss: Path, tmp_path: Path
) -> None:
    base = gloss if name == "gloss" else tiny[name]
    tiny_models.write_adapter(tmp_path / "adapter.gguf", base)
    pairs = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    bases = {tensor.name for tensor in gguf.GGUFReader(base).tensors}
    assert {pair.removesuffix(".lora_a").removesuffix(".lora_b") for pair in pairs} <= bases
    assert len(pairs) >= 8


@pytest.mark.parametrize("kind", list(tiny_models.WRITERS))
def test_files_are_small_and_the_same_each_time(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    tiny_models.WRITERS[kind](again)
    assert again.read_bytes() == tiny[kind].read_bytes()
    assert again.stat().st_size < 3 << 20
