"""A card of a variant: text, divergence, speed and task in one run; the figures of llama-perplexity."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from service.domain.errors import PromptTooLong
from service.domain.evaluation import Card, Divergence
from service.domain.recipes import Recipe
from service.domain.tasks import TaskItem, parse_task
from service.jobs.evaluating import evaluate_file
from service.jobs.messages import EvaluateStep, TaskFile, TextWindows
from service.jobs.tasks import count_right
from service.llama.model import Model
from service.llama.quantizer import quantize_model

TEXTS = Path(__file__).resolve().parents[3] / "service/store/texts"
TOOLS = os.environ.get("QUANTRY_TEST_LLAMA_TOOLS")


def level(source: Path, folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    quantize_model(source, path, Recipe(quantization=name))
    return path


def step(
    path: Path,
    folder: Path,
    *,
    base: Path | None,
    chunks: int | None = 8,
    window: int = 64,
    tasks: tuple[TaskFile, ...] = (),
    speed: bool = False,
) -> EvaluateStep:
    return EvaluateStep(
        path=str(path),
        base=None if base is None else str(base),
        base_name="gloss:F16",
        base_digest="sha256:0",
        text=TextWindows(str(TEXTS / "evaluation.txt"), "evaluation", "sha256:1", window, chunks),
        logits=str(folder / "logits"),
        tasks=tasks,
        speed=speed,
    )


def evaluate(step: EvaluateStep) -> Card:
    return evaluate_file(step, threads=2, progress=lambda share, detail: None)


def divergence_of(card: Card) -> Divergence:
    assert card.text is not None
    assert card.text.divergence is not None
    return card.text.divergence


def test_a_level_gets_a_card_with_everything_asked_for(gloss: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.jsonl"
    words.write_bytes(b"".join((TEXTS / "words.jsonl").read_bytes().splitlines(keepends=True)[:12]))
    made = level(gloss, tmp_path, "Q3_K_S")
    shares: list[float] = []
    card = evaluate_file(
        step(made, tmp_path, base=gloss, tasks=(TaskFile(str(words), "words", "sha256:2"),), speed=True),
        threads=2,
        progress=lambda share, detail: shares.append(share),
    )
    assert shares == sorted(shares)
    assert 0.0 <= shares[0] < 0.1
    assert shares[-1] == pytest.approx(1.0)
    assert card.text is not None
    assert (card.text.dataset, card.text.chunks, card.text.window, card.text.tokens) == ("evaluation", 8, 64, 8 * 31)
    figures = divergence_of(card)
    assert (figures.base_name, figures.base_digest) == ("gloss:F16", "sha256:0")
    assert card.text.perplexity.value > figures.base_perplexity.value > 5
    assert 0.005 < figures.mean_kld.value < 0.2
    assert figures.median_kld < figures.p90_kld < figures.p99_kld < figures.max_kld
    assert 0.6 < figures.same_top.value < 1
    assert card.speed is not None
    assert card.speed.threads == 2
    # All of them where the machine is not too slow, or too busy (quantization/test_evaluate.py: `choose_sizes`).
    assert 32 <= card.speed.prompt_tokens <= 512
    assert 8 <= card.speed.generation_tokens <= 128
    assert card.speed.prompt_tokens_per_second > card.speed.generation_tokens_per_second > 0
    assert made.stat().st_size < card.speed.memory_bytes < 2**30
    assert [(score.task, score.total) for score in card.tasks] == [("words", 12)]
    assert card.seconds > 0
    assert "llama.cpp" in card.llama_build


def test_the_source_is_its_own_measure(gloss: Path, tmp_path: Path) -> None:
    own = evaluate(step(gloss, tmp_path, base=None))
    assert own.text is not None
    assert own.text.divergence is None
    assert own.speed is None
    assert own.tasks == ()
    assert evaluate(step(gloss, tmp_path, base=None)).text == own.text  # its log-probabilities being there already
    again = evaluate(step(gloss, tmp_path, base=gloss))
    figures = divergence_of(again)
    assert figures.base_perplexity.value == pytest.approx(own.text.perplexity.value, rel=1e-3)
    assert again.text is not None
    assert again.text.perplexity.value == pytest.approx(own.text.perplexity.value, rel=1e-5)
    assert abs(figures.mean_kld.value) < 1e-5
    assert figures.same_top.value > 0.999


def test_a_variant_without_a_source_has_a_perplexity_alone(gloss: Path, tmp_path: Path) -> None:
    alone = step(gloss, tmp_path, base=None)
    card = evaluate(EvaluateStep(**{name: getattr(alone, name) for name in alone.__struct_fields__} | {"logits": ""}))
    assert card.text is not None
    assert card.text.divergence is None
    assert not (tmp_path / "logits").exists()
    with_logits = evaluate(alone)
    assert with_logits.text is not None
    assert card.text.perplexity.value == pytest.approx(with_logits.text.perplexity.value, rel=1e-5)


@pytest.mark.parametrize(("most", "known"), [(40, 28), pytest.param(232, 176, marks=pytest.mark.slow)])
def test_gloss_knows_176_of_its_232_words(most: int, known: int, gloss: Path) -> None:
    """By default the first forty of them, which go the same way."""
    items = parse_task((TEXTS / "words.jsonl").read_bytes())[:most]
    model = Model(gloss, gpu_layers=0, use_extra_buffers=True)
    done: list[int] = []
    try:
        right = count_right(model, items, threads=2, progress=lambda count, total: done.append(count))
    finally:
        model.close()
    assert (right, len(items)) == (known, most)
    assert done[-1] == most


def test_messages_and_prompts_are_answered_alike(gloss: Path) -> None:
    known = json.loads((TEXTS / "words.jsonl").read_bytes().splitlines()[0])
    from_prompt = parse_task(json.dumps(known).encode())
    messages = [{"role": "user", "content": known["prompt"]}]
    from_messages = parse_task(json.dumps({"messages": messages, "expected": f" {known['expected']}\n"}).encode())
    model = Model(gloss, gpu_layers=0, use_extra_buffers=True)
    try:
        for items in (from_prompt, from_messages):
            assert count_right(model, items, threads=2, progress=lambda done, total: None) == 1
        with pytest.raises(PromptTooLong, match="Item 1 of the task"):
            count_right(model, [TaskItem("x", prompt="word " * 600)], threads=2, progress=lambda done, total: None)
    finally:
        model.close()


# --- side by side with llama.cpp's own tool ----------------------------------------------------------------------


@pytest.mark.skipif(TOOLS is None, reason="QUANTRY_TEST_LLAMA_TOOLS names no folder with llama-perplexity")
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_figures_are_those_of_llama_perplexity(name: str, gloss: Path, tmp_path: Path) -> None:
    """Perplexity within 0.1 %, mean KL divergence within 1 %, from a source file that either of them has written."""
    made = level(gloss, tmp_path, name)
    text = str(TEXTS / "evaluation.txt")
    common = ["-f", text, "-c", "512", "--chunks", "8", "-t", "2"]
    run_tool("-m", str(gloss), "--kl-divergence-base", str(tmp_path / "theirs"), *common)
    told = run_tool("-m", str(made), "--kl-divergence-base", str(tmp_path / "theirs"), "--kl-divergence", "-t", "2")
    card = evaluate(step(made, tmp_path, base=gloss, window=512, chunks=8))
    figures = divergence_of(card)
    assert card.text is not None
    assert card.text.perplexity.value == pytest.approx(figure(told, r"Mean PPL\(Q\)"), rel=1e-3)
    assert figures.base_perplexity.value == pytest.approx(figure(told, r"Mean PPL\(base\)"), rel=1e-3)
    assert figures.mean_kld.value == pytest.approx(figure(told, r"Mean    KLD"), rel=0.01)
    assert figures.rms_dp.value * 100 == pytest.approx(figure(told, r"RMS Δp"), rel=0.01)
    assert figures.same_top.value * 100 == pytest.approx(figure(told, r"Same top p"), abs=0.3)
    # Our file of the source's log-probabilities is one of theirs.
    from_ours = run_tool("-m", str(made), "--kl-divergence-base", str(tmp_path / "logits"), "--kl-divergence")
    assert figure(from_ours, r"Mean    KLD") == pytest.approx(figure(told, r"Mean    KLD"), rel=0.01)


def run_tool(*arguments: str) -> str:
    assert TOOLS is not None
    done = subprocess.run(
        [str(Path(TOOLS) / "llama-perplexity"), *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


def figure(told: str, name: str) -> float:
    found = re.search(name + r"\s*:\s*(-?[\d.]+)", told)
    assert found, told
    return float(found.group(1))
