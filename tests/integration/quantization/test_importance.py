"""Calibration with real llama.cpp: against llama-imatrix, over a kill, and on every kind of model.

`llama-imatrix-gloss.gguf` is what llama-imatrix made of `TEXT` and a newline in text.txt (-c 64 -b 64 --chunks 10);
with QUANTRY_TEST_LLAMA_TOOLS, the folder of its built tools, the tool itself is asked, on every kind of model.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain.errors import InvalidParameter, NotSupported
from service.gguf.files import read_header
from service.quantization.calibration import collect
from service.quantization.importance import Importance, check_belongs, facts, weights
from service.quantization.importance_files import read_importance, write_importance
from tests import tiny_models

WINDOW, CHUNKS = 64, 10
TEXT = (Path(__file__).resolve().parents[3] / "service/store/texts/calibration.txt").read_text()[:4000]
GOLDEN = Path(__file__).with_name("llama-imatrix-gloss.gguf")
TOOLS = os.environ.get("QUANTRY_TEST_LLAMA_TOOLS")

needs_tools = pytest.mark.skipif(not TOOLS, reason="QUANTRY_TEST_LLAMA_TOOLS is not set")


def collected(model: Path, **options: Any) -> Importance:
    defaults: dict[str, Any] = {
        "dataset": "calibration",
        "window": WINDOW,
        "chunks": CHUNKS,
        "process_output": False,
        "threads": 1,  # the machine is shared, and two wait for each other
        "checkpoint": None,
        "progress": lambda done, total: None,
    }
    return collect(model, options.pop("text", TEXT), **(defaults | options))


def worst_difference(one: Importance, other: Importance) -> float:
    """The largest relative difference of any tensor's weights: of the difference's norm to the norm."""
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    for name, entry in other.entries.items():
        assert one.entries[name].counts.tolist() == entry.counts.tolist()
    return max(float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])) for name in ours)


def by_the_tool(model: Path, folder: Path, *options: str) -> Importance:
    assert TOOLS is not None
    (folder / "text.txt").write_text(TEXT + "\n")
    out = folder / "theirs.gguf"
    command = [f"{TOOLS}/llama-imatrix", "-m", str(model), "-f", str(folder / "text.txt"), "-o", str(out), *options]
    sizes = ["-c", str(WINDOW), "-b", str(WINDOW), "--chunks", str(CHUNKS), "-t", "1", "--no-ppl"]
    subprocess.run([*command, *sizes], check=True, capture_output=True, timeout=60)
    return read_importance(out)


def test_the_matrix_is_the_one_that_llama_imatrix_makes(gloss: Path, tmp_path: Path) -> None:
    theirs = read_importance(GOLDEN)
    ours = collected(gloss)
    assert worst_difference(ours, theirs) < 1e-3  # other processors round otherwise
    assert (ours.chunks, ours.chunk_tokens) == (theirs.chunks, theirs.chunk_tokens) == (CHUNKS, WINDOW)
    write_importance(theirs, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == GOLDEN.read_bytes()


@needs_tools
@pytest.mark.parametrize("kind", [*tiny_models.GENERATING, "mixture", "gloss"])
def test_llama_imatrix_agrees_on_every_kind_of_model(
    kind: str, gloss: Path, tiny: dict[str, Path], tmp_path: Path
) -> None:
    model = {**tiny, "gloss": gloss, "mixture": tmp_path / "mixture.gguf"}[kind]
    tiny_models.write_mixture(tmp_path / "mixture.gguf")
    theirs = by_the_tool(model, tmp_path)
    assert worst_difference(collected(model), theirs) < 1e-4
    check_belongs(theirs, read_header(model))


@needs_tools
def test_llama_imatrix_agrees_on_the_output_matrix(tiny: dict[str, Path], tmp_path: Path) -> None:
    theirs = by_the_tool(tiny["llama"], tmp_path, "--process-output")
    assert "output.weight" in theirs.entries
    assert worst_difference(collected(tiny["llama"], process_output=True), theirs) < 1e-4


def test_every_matrix_inside_the_blocks_is_seen_by_every_token(gloss: Path) -> None:
    made = collected(gloss)
    header = read_header(gloss)
    expected = {tensor.name for tensor in header.tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1}
    assert set(made.entries) == expected
    assert {float(entry.counts[0]) for entry in made.entries.values()} == {WINDOW * CHUNKS}
    check_belongs(made, header)
    assert facts(made).datasets == ("calibration",)


def test_leaving_out_the_output_matrix_changes_nothing_else(gloss: Path) -> None:
    made, whole = collected(gloss), collected(gloss, process_output=True)
    assert set(whole.entries) - set(made.entries) == {"token_embd.weight"}  # gloss has one matrix for both
    for name, entry in made.entries.items():
        assert np.array_equal(entry.sums, whole.entries[name].sums)


def test_each_expert_has_the_tokens_that_were_sent_to_it(tmp_path: Path) -> None:
    model = tmp_path / "mixture.gguf"
    tiny_models.write_mixture(model)
    made = collected(model)
    for part in ("gate", "up", "down"):
        entry = made.entries[f"blk.1.ffn_{part}_exps.weight"]
        assert entry.sums.shape[0] == len(entry.counts) == tiny_models.EXPERTS
        assert entry.counts.sum() == WINDOW * CHUNKS * tiny_models.EXPERTS_USED
        assert len(set(entry.counts.tolist())) > 1
    check_belongs(made, read_header(model))


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_matrix(gloss: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def killed_in_the_middle(done: int, _total: int) -> None:
        if done > 512 // WINDOW:
            raise Killed

    options: dict[str, Any] = {"text": TEXT * 3, "chunks": 24}
    whole = collected(gloss, **options)
    kept: dict[str, Any] = {"checkpoint": tmp_path / "checkpoint", "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        collected(gloss, **options, **kept, progress=killed_in_the_middle)
    resumed = collected(gloss, **options, **kept, progress=lambda done, _: seen.append(done))
    assert seen[0] == 512 // WINDOW
    write_importance(whole, tmp_path / "whole")
    write_importance(resumed, tmp_path / "resumed")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


@pytest.mark.parametrize("damage", ["torn", "empty", "other text", "other options", "more windows than wanted"])
def test_a_checkpoint_that_is_torn_or_of_another_run_is_not_believed(gloss: Path, tmp_path: Path, damage: str) -> None:
    seen: list[int] = []
    path = tmp_path / "checkpoint"
    kept: dict[str, Any] = {"checkpoint": path, "checkpoint_seconds": 0.0, "chunks": 8}
    collected(gloss, **kept)
    again: dict[str, Any] = {}
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other text":
        again = {"text": TEXT + "."}
    elif damage == "other options":
        again = {"process_output": True}
    else:
        again = {"chunks": 4}
    made = collected(gloss, **(kept | again), progress=lambda done, _: seen.append(done))
    assert seen[0] == 0
    assert made.chunks == again.get("chunks", 8)


def test_progress_says_the_windows_done_and_how_many_there_are(gloss: Path) -> None:
    seen: list[tuple[int, int]] = []
    collected(gloss, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, CHUNKS), (8, CHUNKS), (CHUNKS, CHUNKS)]


def test_a_text_that_is_too_short_is_refused_with_what_is_needed(gloss: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"2 are needed: about \d+ characters, and it has 300"):
        collected(gloss, text=TEXT[:300])
    with pytest.raises(InvalidParameter, match="characters"):
        collected(gloss, text="short")


def test_windows_longer_than_the_models_context_are_refused(gloss: Path) -> None:
    with pytest.raises(InvalidParameter, match="512"):
        collected(gloss, text=TEXT * 4, window=1024)


def test_a_model_that_predicts_no_tokens_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(NotSupported):
        collected(tiny["bert"])
