"""What the laboratory's work costs beside llama.cpp's own tools: levels, perplexity, divergence, importance matrices.

    .venv/bin/python -m benchmarks.laboratory --tools DIR [--repeats 5] [--model smollm2|gloss] [--chunks N]

DIR holds llama-quantize, llama-perplexity and llama-imatrix of the llama.cpp that the binding vendors. Both sides run
one after the other, in another order each repeat, with the same threads, each in a process of its own. A side's time is
that of its whole process; ours is also given from the end of its imports on, for in the service a child is started once
for all steps of a job. A ratio is the tool's time by ours: above 1 quantry is faster. (For quantize the aim is at least
1/1.05, for the rest 1.) Source of `smollm2` is its file at F16, made first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.models import GLOSS, ROOT, smollm2

TEXT = ROOT / "service" / "store" / "texts" / "evaluation.txt"
_WINDOW = 512
_PROCESS_SECONDS = 900.0
_TOOL_TRIES = 4  # llama-perplexity ends now and then without a result (facts of this build), with status 0 or a signal


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.child is not None:
        _child(json.loads(arguments.child))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _source(arguments.model, folder)
        print(f"{arguments.model}, {arguments.threads} threads, {arguments.chunks} chunks of {_WINDOW} tokens\n")
        print("| work | tool, s | quantry, s | quantry without imports, s | ratio (single runs) | without imports |")
        print("|---|---|---|---|---|---|")
        for work in ("quantize", "perplexity", "logits", "divergence", "imatrix"):
            print(_row(work, source, folder, arguments), flush=True)


def _row(work: str, source: Path, folder: Path, arguments: argparse.Namespace) -> str:
    level = folder / "level.gguf"
    tool, ours = _commands(work, source, level, folder, arguments)
    times: dict[str, list[float]] = {"tool": [], "ours": [], "inner": []}
    for repeat in range(arguments.repeats):
        sides: list[tuple[str, Callable[[], None]]] = [
            ("tool", lambda: times["tool"].append(_timed(tool))),
            ("ours", lambda: _ours(ours, times)),
        ]
        for _, run in sides if repeat % 2 == 0 else reversed(sides):
            run()
    whole = [theirs / own for theirs, own in zip(times["tool"], times["ours"], strict=True)]
    inner = [theirs / own for theirs, own in zip(times["tool"], times["inner"], strict=True)]
    seconds = " | ".join(f"{statistics.median(times[side]):.2f}" for side in ("tool", "ours", "inner"))
    return f"| {work} | {seconds} | {_spread(whole)} | {_spread(inner)} |"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)})"


def _commands(
    work: str, source: Path, level: Path, folder: Path, arguments: argparse.Namespace
) -> tuple[list[str], dict[str, Any]]:
    """The tool's command line, and the same as a task for our child."""
    tools, threads, chunks = arguments.tools, str(arguments.threads), str(arguments.chunks)
    base, task = folder / "base.logits", {"work": work, "threads": arguments.threads, "chunks": arguments.chunks}
    text = ["-f", str(TEXT), "-c", str(_WINDOW), "-t", threads, "--chunks", chunks]
    perplexity = [str(tools / "llama-perplexity"), *text]
    match work:
        case "quantize":
            return (
                [str(tools / "llama-quantize"), str(source), str(folder / "theirs.gguf"), arguments.level, threads],
                {**task, "source": str(source), "target": str(level), "level": arguments.level},
            )
        case "perplexity":
            return [*perplexity, "-m", str(level)], {**task, "source": str(level)}
        case "logits":
            command = [*perplexity, "-m", str(source), "--kl-divergence-base", str(base)]
            return command, {**task, "source": str(source), "logits": str(folder / "ours.logits")}
        case "divergence":
            command = [*perplexity, "-m", str(level), "--kl-divergence-base", str(base), "--kl-divergence"]
            ours = {"source": str(source), "level": str(level), "logits": str(folder / "ours.logits")}
            return command, {**task, **ours}
        case _:
            command = [str(tools / "llama-imatrix"), *text, "-m", str(source), "-o", str(folder / "t.gguf"), "--no-ppl"]
            return command, {**task, "source": str(source), "target": str(folder / "o.gguf")}


def _timed(command: list[str]) -> float:
    said = ""
    for _ in range(_TOOL_TRIES):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROCESS_SECONDS, check=False)
        seconds = time.perf_counter() - started
        if done.returncode == 0 and ("perplexity" not in command[0] or "PPL" in done.stdout + done.stderr):
            return seconds
        said = done.stderr
    raise SystemExit(f"{Path(command[0]).name} failed {_TOOL_TRIES} times: {said[-500:]}")


def _ours(task: dict[str, Any], times: dict[str, list[float]]) -> None:
    command = [sys.executable, "-m", "benchmarks.laboratory", "--child", json.dumps(task)]
    started = time.perf_counter()
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=_PROCESS_SECONDS, cwd=ROOT)
    times["ours"].append(time.perf_counter() - started)
    times["inner"].append(float(said.stdout.split()[-1]))


def _child(task: dict[str, Any]) -> None:
    """Our side, in a process like a job's child; prints the seconds since its imports."""
    from service.domain.recipes import Recipe
    from service.quantization.calibration import collect
    from service.quantization.evaluate import Evaluator, source_logits
    from service.quantization.importance_files import write_importance
    from service.quantization.quantize import quantize
    from service.quantization.windows import Text, read_text

    started = time.perf_counter()
    text = Text(TEXT, "sha256:" + "0" * 64, _WINDOW, task["chunks"])
    threads, source = task["threads"], Path(task["source"])
    match task["work"]:
        case "quantize":
            recipe = Recipe(task["level"], allow_requantize=True)
            quantize(source, Path(task["target"]), recipe, threads=threads, progress=lambda _: None)
        case "imatrix":
            found = collect(
                source, read_text(TEXT), dataset="text", window=_WINDOW, chunks=task["chunks"], process_output=False,
                threads=threads, checkpoint=None, progress=lambda _done, _total: None,
            )  # fmt: skip
            write_importance(found, Path(task["target"]))
        case "logits":
            Path(task["logits"]).unlink(missing_ok=True)
            base, _ = source_logits(source, Path(task["logits"]), text, threads=threads, progress=lambda *_: None)
            base.close()
        case work:
            _score(Path(task["level"]) if work == "divergence" else source, task, text, Evaluator, source_logits)
    print(time.perf_counter() - started)


def _score(path: Path, task: dict[str, Any], text: Any, evaluator: Any, source_logits: Any) -> None:
    from service.llama.probe import load_on_processor

    base = None
    if task["work"] == "divergence":
        # Made by the row before: this only opens it.
        base, _ = source_logits(
            Path(task["source"]), Path(task["logits"]), text, threads=task["threads"], progress=lambda *_: None
        )
    model = load_on_processor(path)
    evaluation = evaluator(model, window=_WINDOW, threads=task["threads"])
    evaluation.score(text.cut(model), base, lambda *_: None)
    evaluation.close()
    model.close()


def _source(model: str, folder: Path) -> Path:
    if model == "gloss":
        return GLOSS
    from service.domain.recipes import Recipe
    from service.quantization.quantize import quantize

    path = folder / "f16.gguf"
    quantize(smollm2(), path, Recipe("F16", allow_requantize=True), threads=2, progress=lambda _: None)
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, help="folder of llama-quantize, llama-perplexity, llama-imatrix")
    parser.add_argument("--model", choices=("smollm2", "gloss"), default="gloss")
    parser.add_argument("--level", default="Q4_K_M")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.tools is None and found.child is None:
        parser.error("--tools is needed: build them from the sources in llama-cpp-python's sdist")
    return found


if __name__ == "__main__":
    main()
