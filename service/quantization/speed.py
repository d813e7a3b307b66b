"""How fast a loaded model reads and writes here, as llama-bench measures it, and the memory that takes.

In the job's child. One sequence over an empty cache: a prompt in one go, then tokens one by one. Tokens are random,
sampling is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from service.domain.errors import LoadFailed
from service.domain.evaluation import Speed
from service.llama.context import Context
from service.llama.model import Model

_PROMPT_TOKENS = 512
_GENERATED_TOKENS = 128
_WARM_UP_PROMPT_TOKENS = 32
_WARM_UP_TOKENS = 2
_RUN_SECONDS = 10.0  # one run of each kind takes no longer, by its warm-up
_KIND_SECONDS = 4.0  # runs of one kind go on for so long
_MOST_RUNS = 5
_FEWEST_PROMPT_TOKENS = 32
_FEWEST_TOKENS = 8


def choose_sizes(prompt_second: float, generated_second: float, context_length: int) -> tuple[int, int]:
    """Tokens to read and to write in one run, from seconds for one token of each; fewer where that is slow. Pure."""
    room = max(2, context_length)
    prompt = max(_FEWEST_PROMPT_TOKENS, int(_RUN_SECONDS / max(prompt_second, 1e-9)))
    generated = max(_FEWEST_TOKENS, int(_RUN_SECONDS / max(generated_second, 1e-9)))
    return min(prompt, _PROMPT_TOKENS, room), min(generated, _GENERATED_TOKENS, room)


def forget_memory_peak() -> None:
    """Count the process's peak memory from now on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def memory_peak() -> int:
    """The most resident memory since `forget_memory_peak`, in bytes; what is resident now where peaks are unknown."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)


def measure_speed(model: Model, *, threads: int) -> Speed:
    """Read and write a few times; the fastest run of each counts, as the others were held up by something else.

    Call `forget_memory_peak` before the model is loaded. Raises LoadFailed when llama.cpp cannot compute.
    """
    length = min(model.context_length or _PROMPT_TOKENS, _PROMPT_TOKENS)
    context = Context(model, cells=length, sequences=1, batch_tokens=length, threads=threads, flash_attention=True)
    try:
        tokens = np.random.default_rng(0).integers(0, model.vocabulary_size, length).astype(np.int32)
        warm_up = min(_WARM_UP_PROMPT_TOKENS, length)
        _read(context, tokens[:warm_up])
        prompt_second = _read(context, tokens[:warm_up]) / warm_up
        generated_second = _write(context, tokens[:_WARM_UP_TOKENS]) / len(tokens[:_WARM_UP_TOKENS])
        prompt, generated = choose_sizes(prompt_second, generated_second, length)
        reading = _fastest(lambda: _read(context, tokens[:prompt]))
        writing = _fastest(lambda: _write(context, tokens[:generated]))
        return Speed(
            threads=threads,
            prompt_tokens=prompt,
            prompt_tokens_per_second=prompt / reading,
            generation_tokens=generated,
            generation_tokens_per_second=generated / writing,
            memory_bytes=memory_peak(),
        )
    finally:
        context.close()


def _read(context: Context, tokens: NDArray[np.int32]) -> float:
    """Seconds to compute a prompt."""
    context.forget(0)
    context.batch.clear()
    context.batch.add(tokens.tolist(), 0, 0, logits=1)
    started = time.perf_counter()
    _decode(context)
    return time.perf_counter() - started


def _write(context: Context, tokens: NDArray[np.int32]) -> float:
    """Seconds to compute tokens one after the other."""
    context.forget(0)
    started = time.perf_counter()
    for position, token in enumerate(tokens.tolist()):
        context.batch.clear()
        context.batch.add([token], position, 0, logits=1)
        _decode(context)
    return time.perf_counter() - started


def _decode(context: Context) -> None:
    status = context.decode()
    if status != 0:
        raise LoadFailed(f"llama.cpp could not compute (status {status}); free some memory and try again.")
    context.logits(context.batch.size - 1)  # waits for what may still run elsewhere


def _fastest(run: Callable[[], float]) -> float:
    runs: list[float] = []
    while not runs or (len(runs) < _MOST_RUNS and sum(runs) + min(runs) <= _KIND_SECONDS):
        runs.append(run())
    return min(runs)
