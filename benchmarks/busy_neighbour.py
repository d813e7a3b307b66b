"""A bare decode loop beside a busy process: fixed thread counts, OpenMP wait settings, and the governor.

    .venv/bin/python benchmarks/busy_neighbour.py --model MODEL.gguf [--seconds 6] [--repeats 3] [--settings one ...]

Each run is one process that computes without pause: quiet, beside a neighbour at nice 19, quiet, beside one at nice 0,
quiet. The neighbour is a Python loop pinned to one core. Settings are interleaved, and medians over the runs printed.
"late" leaves out the first two seconds after a change; "slow for" is how long after a change half-second windows stayed
below 80 % of the late pace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service import machine
from service.engine.governor import Governor, Work
from service.engine.neighbours import Neighbours
from service.llama.context import Context
from service.llama.model import Model

_SETTLED_SECONDS = 2.0
_WINDOW_SECONDS = 0.5
_DEPTH = 256  # tokens a stream grows to before it starts anew
_ANY_TOKEN = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run computes: thread count (0: all cores; -1: governor; -2: governor without the kernel's counters)."""

    threads: int
    environment: dict[str, str]


SETTINGS = {
    "governor": Setting(-1, {"GOMP_SPINCOUNT": "10000"}),
    "governor-blind": Setting(-2, {"GOMP_SPINCOUNT": "10000"}),
    "governor-spin-unset": Setting(-1, {}),
    "governor-spin-1000": Setting(-1, {"GOMP_SPINCOUNT": "1000"}),
    "governor-spin-100000": Setting(-1, {"GOMP_SPINCOUNT": "100000"}),
    "governor-passive": Setting(-1, {"OMP_WAIT_POLICY": "passive"}),
    "all-spin-unset": Setting(0, {}),
    "all-spin-1000": Setting(0, {"GOMP_SPINCOUNT": "1000"}),
    "all-spin-10000": Setting(0, {"GOMP_SPINCOUNT": "10000"}),
    "all-spin-100000": Setting(0, {"GOMP_SPINCOUNT": "100000"}),
    "all-passive": Setting(0, {"OMP_WAIT_POLICY": "passive"}),
    "one": Setting(1, {"GOMP_SPINCOUNT": "10000"}),
}
_OPENMP_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND")
PHASES: tuple[tuple[str, int | None], ...] = (
    ("quiet", None),
    ("nice 19", 19),
    ("quiet after 19", None),
    ("nice 0", 0),
    ("quiet after 0", None),
)


@contextlib.contextmanager
def neighbour(nice: int | None, core: int) -> Iterator[None]:
    """A process that keeps one core busy meanwhile; None for none."""
    if nice is None:
        yield
        return
    program = (
        f"import os\nos.nice({nice})\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, [{core}])\n"
        "while True: pass"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Step:
    """One decode call: when it ended (monotonic seconds), how long it took, with how many threads."""

    ended_at: float
    seconds: float
    threads: int


def decode_until_told(arguments: argparse.Namespace) -> None:
    """The child: decode until standard input closes, then print every step as JSON."""
    most = arguments.threads
    setting = SETTINGS[arguments.child]
    streams, prompt = arguments.streams, arguments.prompt
    # Before the load, as a worker does: the first step then knows what the load left free.
    neighbours = Neighbours() if setting.threads == -1 else None
    model = Model(arguments.model, gpu_layers=0, use_extra_buffers=True)
    context = Context(
        model,
        cells=max(streams * (_DEPTH + 1), prompt + 1),
        sequences=streams,
        batch_tokens=max(512, prompt),
        threads=most,
        flash_attention=True,
    )
    governor = Governor(max_threads=most)
    work = Work(generated=0, prompt=prompt) if prompt else Work(generated=streams, prompt=0)
    steps: list[Step] = []
    depth = 0
    os.set_blocking(sys.stdin.fileno(), False)
    print("ready", flush=True)
    while not _told_to_stop():
        batch = context.batch
        batch.clear()
        if prompt:
            batch.add([_ANY_TOKEN] * prompt, 0, 0, logits=1)
        else:
            for stream in range(streams):
                batch.add([_ANY_TOKEN + stream], depth, stream, logits=1)
        started = time.monotonic()
        if setting.threads < 0:
            free = neighbours.free_cores(started) if neighbours else None
            threads = governor.threads(work, started, free)
        else:
            threads = setting.threads or most
        context.use_threads(threads)
        if context.decode() != 0:
            raise SystemExit("llama.cpp could not compute the batch")
        ended = time.monotonic()
        if setting.threads < 0:
            governor.observe(work, threads, ended - started, ended)
        steps.append(Step(ended, time.monotonic() - started, threads))
        depth += 1
        if prompt or depth == _DEPTH:
            depth = 0
            for stream in range(streams):
                context.forget(stream)
    print(json.dumps([[step.ended_at, step.seconds, step.threads] for step in steps]), flush=True)


def _told_to_stop() -> bool:
    try:
        return os.read(sys.stdin.fileno(), 1) == b""
    except BlockingIOError:
        return False


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase of one run came to."""

    tokens_per_second: float
    late_tokens_per_second: float
    slow_for_seconds: float
    mean_threads: float


def run(name: str, arguments: argparse.Namespace) -> list[Phase]:
    """One child through all phases."""
    environment = {key: value for key, value in os.environ.items() if key not in _OPENMP_VARIABLES}
    root = Path(__file__).resolve().parent.parent
    environment |= SETTINGS[name].environment | {"PYTHONPATH": str(root)}
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"the run of {name} did not start")
        time.sleep(0.5)  # the first touch of every buffer
        times: list[tuple[float, float]] = []
        for _, nice in PHASES:
            with neighbour(nice, arguments.core):
                started = time.monotonic()
                time.sleep(arguments.seconds)
                times.append((started, time.monotonic()))
        child.stdin.close()
        steps = [Step(*step) for step in json.loads(child.stdout.readline())]
    finally:
        child.kill()
        child.wait()
    tokens = arguments.prompt or arguments.streams
    return [_phase(steps, start, end, tokens) for start, end in times]


def _phase(steps: list[Step], start: float, end: float, tokens: int) -> Phase:
    settled = min(_SETTLED_SECONDS, (end - start) / 2)
    late_rate = _rate(steps, start + settled, end, tokens)
    slow_for, window = 0.0, start
    while window + _WINDOW_SECONDS <= end:
        if _rate(steps, window, window + _WINDOW_SECONDS, tokens) < 0.8 * late_rate:
            slow_for = window + _WINDOW_SECONDS - start
        window += _WINDOW_SECONDS
    overlaps = [(step, min(step.ended_at, end) - max(step.ended_at - step.seconds, start)) for step in steps]
    computing = sum(overlap for _, overlap in overlaps if overlap > 0)
    threads = sum(step.threads * overlap for step, overlap in overlaps if overlap > 0) / max(1e-9, computing)
    return Phase(_rate(steps, start, end, tokens), late_rate, slow_for, threads)


def _rate(steps: list[Step], start: float, end: float, tokens: int) -> float:
    # A step that crosses an edge counts with the part inside.
    done = 0.0
    for step in steps:
        overlap = min(step.ended_at, end) - max(step.ended_at - step.seconds, start)
        if overlap > 0:
            done += overlap / step.seconds
    return done * tokens / (end - start)


def main() -> None:
    """Parse, run interleaved, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each of the five phases")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="the full count")
    parser.add_argument("--streams", type=int, default=1, help="tokens a generation step computes")
    parser.add_argument("--prompt", type=int, default=0, help="compute prompts of this many tokens instead")
    parser.add_argument("--core", type=int, default=0, help="core of the neighbour")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        decode_until_told(arguments)
        return
    results: dict[str, list[list[Phase]]] = {name: [] for name in arguments.settings}
    for _ in range(arguments.repeats):
        for name in arguments.settings:
            results[name].append(run(name, arguments))
    print(f"{'tokens/s: whole phase, late, slow for (s), mean threads':26}")
    print(" " * 21 + "".join(f"{title:>26}" for title, _ in PHASES))
    for name, runs in results.items():
        cells = []
        for phases in zip(*runs, strict=True):
            whole = statistics.median(phase.tokens_per_second for phase in phases)
            late = statistics.median(phase.late_tokens_per_second for phase in phases)
            slow = statistics.median(phase.slow_for_seconds for phase in phases)
            threads = statistics.median(phase.mean_threads for phase in phases)
            cells.append(f"{whole:9.1f} {late:6.1f} {slow:4.1f} {threads:4.2f}")
        print(f"{name:21}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
