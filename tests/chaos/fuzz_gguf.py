"""Damaged GGUF files through our validator, and what it accepts through everything that llama.cpp does with a model.

    python -m tests.chaos.fuzz_gguf --mutants 100000 --through 2000 --seed 1 --folder /dev/shm/fuzz

Batches run in forked children with limits of their own; an accepted file gets a child of its own. Prints one JSON
object: counts, the slowest and largest, and every finding with the seed and number that make it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.domain.errors import InvalidModel, QuantryError
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import Recipe
from service.gguf.files import facts, read_header
from service.jobs.smoke import smoke_check
from service.llama.context import Context
from service.llama.embedding import EmbeddingContext, generates
from service.llama.model import Model
from service.llama.quantizer import quantize_model
from service.quantization.plan import plan_levels
from tests import tiny_models
from tests.chaos.gguf_mutants import Mutant, Mutator, Tree, take_apart
from tests.server import GLOSS

BATCH = 500
SECONDS = 1.0  # that one file may take
GROWTH_BYTES = 64 << 20  # of memory, over a whole batch
ADDRESS_BYTES = 8 << 30
CHILD_SECONDS = 60
MOST_BYTES = 256 << 20  # of a file that goes through llama.cpp
LABELS = ("Q4_0", "Q8_0", "Q2_K", "Q4_K_M", "IQ4_NL", "Q5_1", "TQ1_0", "F32")
TEXT = "hello w\u00f6rld \x00 the <s> </s> \ud7ff\U0001f642 1234 \n\n\t  <|im_start|>user"


def bases(folder: Path) -> dict[str, Tree]:
    """What is damaged: gloss, and one model for each kind of memory."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {**tiny_models.write_all(folder), "mixture": folder / "mixture.gguf", "gloss": GLOSS}
    tiny_models.write_mixture(written["mixture"])
    return {name: take_apart(path) for name, path in written.items()}


def forked(work: Callable[[], Any], seconds: int, log: Path | None = None) -> tuple[int, Any]:
    """(exit status, what `work` gave) of a child with limits; a negative status is the signal that ended it."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        code = 3
        try:
            os.close(reader)
            if log is not None:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
            signal.alarm(seconds)
            os.write(writer, json.dumps(work()).encode())
            code = 0
        except QuantryError:
            code = 1
        except MemoryError:
            code = 2
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, json.loads(said) if said else None


# --- the validator -----------------------------------------------------------------------------------------------


def validate(sources: dict[str, Tree], seed: int, count: int, path: Path) -> dict[str, Any]:
    """One batch, in a child: counts and findings."""
    mutator = Mutator(sources, seed)
    counts: Counter[str] = Counter()
    found: list[Any] = []
    slowest = 0.0
    for number in range(count):
        base, mutant = mutator.next()
        mutant.write(path)
        started = time.process_time()  # a busy machine is not the check's fault
        try:
            facts(read_header(path))
            counts["accepted"] += 1
        except InvalidModel as refused:
            counts["refused"] += 1
            if len(refused.message) > 2000 or not refused.message.isprintable():
                found.append([seed, number, base, mutant.what, f"message {refused.message[:200]!r}"])
        except BaseException as error:
            found.append([seed, number, base, mutant.what, f"{type(error).__name__}: {error}"])
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        if seconds > SECONDS:
            found.append([seed, number, base, mutant.what, f"{seconds:.2f} s"])
    return {**counts, "found": found, "slowest": slowest, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def run_validator(sources: dict[str, Tree], mutants: int, seed: int, folder: Path) -> dict[str, Any]:
    """`mutants` of them, in batches."""
    counts: Counter[str] = Counter()
    found: list[Any] = []
    slowest, largest = 0.0, 0
    began = time.monotonic()
    _, baseline = forked(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, CHILD_SECONDS)
    path = folder / "validated.gguf"
    for start in range(0, mutants, BATCH):
        count = min(BATCH, mutants - start)
        batch = seed * 1_000_000 + start
        status, said = forked(lambda: validate(sources, batch, count, path), 300)  # noqa: B023
        if status != 0:
            found.append([batch, None, None, None, f"the batch ended with {status}"])
            continue
        counts.update(accepted=said.get("accepted", 0), refused=said.get("refused", 0))
        found += said["found"]
        slowest, largest = max(slowest, said["slowest"]), max(largest, said["rss"] - baseline)
        if largest * 1024 > GROWTH_BYTES:
            found.append([batch, None, None, None, f"{largest // 1024} MiB more memory"])
            largest = min(largest, GROWTH_BYTES // 1024)
    path.unlink(missing_ok=True)
    return {
        **counts,
        "seconds": round(time.monotonic() - began, 1),
        "slowest_ms": round(slowest * 1000, 1),
        "growth_mib": round(largest / 1024, 1),
        "found": found,
    }


# --- llama.cpp ---------------------------------------------------------------------------------------------------


def through_llama(path: Path, label: str) -> None:
    """What becomes of an accepted file: planned, loaded, quantized, served from both, asked for vectors."""
    header = read_header(path)
    plan_levels(path, header, (label, "Q4_K_S", "IQ2_XXS"))
    output = path.with_suffix(".out")
    output.unlink(missing_ok=True)
    refused: QuantryError | None = None
    for step in (
        lambda: smoke_check(path, path.stat().st_size),
        lambda: quantize_model(path, output, Recipe(label, allow_requantize=True), threads=1),
        lambda: serve(path),
        lambda: serve(output) if output.exists() and accepted(output) else None,
    ):
        try:
            step()
        except QuantryError as problem:
            refused = refused or problem
    if refused is not None:
        raise refused


def accepted(path: Path) -> bool:
    """Whether our check lets it pass."""
    try:
        facts(read_header(path))
    except InvalidModel:
        return False
    return True


def serve(path: Path) -> None:
    """Load, tokenize, spell, prefill, generate, remove, embed."""
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    tokens = model.tokenize(TEXT, add_special=True, parse_special=True)
    model.tokenize("a" * 300, add_special=False, parse_special=False)
    for token in [*tokens, *range(0, 300, 7)]:
        model.piece(token)
    model.special_texts()
    model.chat_template()
    tokens = [token for token in tokens if token >= 0][:40] or [0]
    context = Context(model, cells=256, sequences=2, batch_tokens=64, threads=1, flash_attention=True)
    if generates(context):
        position = 0
        for piece in (tokens, tokens[:1], tokens[:3]):
            context.batch.clear()
            context.batch.add(piece, position, 0, logits=1)
            if context.decode() != 0:
                break
            position += len(piece)
        context.batch.clear()
        context.batch.add(tokens[:5], 0, 1, logits=1)
        context.decode()
    context.close()
    try:
        vectors = EmbeddingContext(model, cells=128, batch_tokens=64, threads=1, flash_attention=False)
    except QuantryError:
        return
    vectors.batch.clear()
    vectors.batch.add(tokens[:20], 0, 0, logits=len(tokens[:20]))
    if vectors.decode() == 0:
        vectors.vector(0)
    vectors.close()


def run_through_llama(sources: dict[str, Tree], count: int, seed: int, folder: Path, most: float) -> dict[str, Any]:
    """Mutants until `count` were accepted (or `most` seconds are over), each of those in a child."""
    mutator = Mutator(sources, seed)
    pick = random.Random(seed)
    counts: Counter[str] = Counter()
    found: list[Any] = []
    began = time.monotonic()
    path, log = folder / "mutant.gguf", folder / "stderr.txt"
    number = -1
    while counts["accepted"] < count and time.monotonic() - began < most:
        number += 1
        base, mutant = mutator.next()
        if mutant.size > MOST_BYTES:
            counts["too large"] += 1
            continue
        mutant.write(path, sources[base].data)
        if not accepted(path):
            counts["refused"] += 1
            continue
        counts["accepted"] += 1
        label = pick.choice(LABELS)
        assert label in QUANTIZATIONS
        status, _ = forked(lambda: through_llama(path, label), CHILD_SECONDS, log)  # noqa: B023
        counts[{0: "whole", 1: "refused by llama.cpp", 2: "out of memory"}.get(status, f"ended {status}")] += 1
        if status < 0 or status > 2:
            tail = log.read_text(errors="replace")[-600:]
            found.append([seed, number, base, mutant.what, label, status, tail])
            print(f"# {found[-1]}", file=sys.stderr, flush=True)
            keep(folder, mutant, sources[base].data, len(found))
    path.unlink(missing_ok=True)
    return {**counts, "seconds": round(time.monotonic() - began, 1), "found": found}


def keep(folder: Path, mutant: Mutant, data: bytes, number: int) -> None:
    """Leave the file for whoever looks into it."""
    if number <= 40:
        mutant.write(folder / f"finding-{number}.gguf", data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--through", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--most-seconds", type=float, default=7200.0, help="for the second part")
    options = parser.parse_args()
    sources = bases(options.folder / "bases")
    result = {
        "validator": run_validator(sources, options.mutants, options.seed, options.folder),
        "llama": run_through_llama(sources, options.through, options.seed, options.folder, options.most_seconds),
    }
    print(json.dumps(result))
    return 1 if result["validator"]["found"] or result["llama"]["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
