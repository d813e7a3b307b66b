"""Promises of old and split files through llama.cpp: it loads what they become, and writes the same tokens."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from service.domain.recipes import Recipe
from service.gguf.legacy import upgrade
from service.gguf.splits import merge, pieces_of
from service.llama.context import Context
from service.llama.model import Model
from service.quantization.quantize import quantize
from tests.old_files import contents, write_ggjt, write_gguf_v1, write_llama, write_split

PROMPT = "the hat in the wind, and 7 ones: éß"


def quiet(fraction: float, what: str) -> None:
    del fraction, what


def continuation(path: Path) -> tuple[list[int], list[int], list[float]]:
    """The prompt's tokens, what follows greedily, and the logits of the first of these."""
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    context = Context(model, cells=256, sequences=1, batch_tokens=128, threads=1, flash_attention=True)
    try:
        tokens = model.tokenize(PROMPT, add_special=True, parse_special=False)
        drawn: list[int] = []
        logits: list[float] = []
        pending, position = tokens, 0
        while len(drawn) < 32:
            context.batch.clear()
            first = context.batch.add(pending, position, 0, logits=1)
            assert context.decode() == 0
            position += len(pending)
            row = context.logits(first + len(pending) - 1)
            logits = logits or row.tolist()
            drawn.append(int(np.argmax(row)))
            pending = drawn[-1:]
        return tokens, drawn, logits
    finally:
        context.close()
        model.close()


@pytest.mark.parametrize("quantization", ["F16", "Q4_0", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K"])
def test_a_ggjt_file_writes_what_its_gguf_file_writes(quantization: str, tmp_path: Path) -> None:
    original = source = write_llama(tmp_path / "llama.gguf", "F16")
    if quantization != "F16":
        original = tmp_path / "level.gguf"
        quantize(source, original, Recipe(quantization), threads=1, progress=lambda step: None)
    upgrade(write_ggjt(original, tmp_path / "old.bin"), tmp_path / "new.gguf", quiet)
    expected = continuation(original)
    assert continuation(tmp_path / "new.gguf") == expected
    assert len(set(expected[1])) > 8


def test_a_gguf_file_of_version_1_writes_what_the_current_one_writes(tmp_path: Path) -> None:
    original = write_llama(tmp_path / "llama.gguf", "Q8_0")
    upgrade(write_gguf_v1(original, tmp_path / "old.gguf"), tmp_path / "new.gguf", quiet)
    assert continuation(tmp_path / "new.gguf") == continuation(original)


def test_joined_pieces_are_the_file_that_was_split(gloss: Path, tmp_path: Path) -> None:
    pieces = write_split(gloss, tmp_path / "split", most_tensors=20)
    merge(pieces_of(pieces[1]), tmp_path / "whole.gguf", quiet)
    assert contents(tmp_path / "whole.gguf") == contents(gloss)
    assert continuation(tmp_path / "whole.gguf") == continuation(gloss)


def test_pieces_of_llama_cpps_own_tool_are_joined_to_the_same_bytes(gloss: Path, tmp_path: Path) -> None:
    """Where LLAMA_GGUF_SPLIT names the tool: it is in llama.cpp's releases, and not in the binding."""
    tool = os.environ.get("LLAMA_GGUF_SPLIT")
    if tool is None:
        pytest.skip("LLAMA_GGUF_SPLIT does not name llama-gguf-split")
    for name, *options in (
        ("a", "--split-max-tensors", "9"),
        ("b", "--no-tensor-first-split", "--split-max-size", "4M"),
    ):
        subprocess.run([tool, "--split", *options, str(gloss), str(tmp_path / name)], check=True, capture_output=True)
        pieces = pieces_of(next(tmp_path.glob(f"{name}-00001-*.gguf")))
        assert len(pieces) > 2
        merge(pieces, tmp_path / f"{name}.gguf", quiet)
        assert (tmp_path / f"{name}.gguf").read_bytes() == gloss.read_bytes()
