"""What a laboratory job costs a running stream: its tokens/s alone, beside a job that makes levels, and beside one that
measures them too.

    .venv/bin/python -m benchmarks.job_beside_stream [--model smollm2-q4_1] [--seconds 20] [--repeats 5]

One server, one client. Each repeat has three phases of `--seconds`, in another order each time: alone; beside a job
that makes every level that needs no importance matrix, beginning with another one in each repeat; beside one that
measures first the source and then each level. In a phase one stream follows another. A job is cancelled at the end of
its phase and its levels deleted. The pace of a stream is that after its first token; a phase has the median of its
streams. The aim: a ratio of 0.85.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.client import Ask, Target, ask_once
from benchmarks.models import RECIPES, call, prepare
from benchmarks.prompts import question
from benchmarks.servers import Bench, quantry
from service import machine
from service.domain.quants import QUANTIZATIONS, Family

_STREAM_SECONDS = 300.0
_JOB_START_SECONDS = 60.0
_SETTLE_SECONDS = 1.0
_ENDED = ("succeeded", "failed", "cancelled")
ALONE, MAKE, MEASURE = KINDS = ("alone", "make", "measure")


@dataclass(frozen=True, slots=True)
class Phase:
    """Tokens/s of each stream of a phase; with a job, what it was at and how far it came."""

    paces: tuple[float, ...]
    steps: tuple[str, ...] = ()
    job_progress: float = 0.0

    @property
    def pace(self) -> float:
        """The median of its streams."""
        return statistics.median(self.paces)


async def streams(target: Target, tokens: int, seconds: float, seed: int) -> tuple[float, ...]:
    """The paces of streams one after another, until one ends after `seconds`."""
    paces: list[float] = []
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        ask = Ask(question(seed, len(paces)), tokens, fields={"speculate": False})
        answer = await ask_once(target, ask, _STREAM_SECONDS)
        if answer.error is not None:
            raise SystemExit(f"a stream failed: {answer.error}")
        paces.append((answer.completion_tokens - 1) / (answer.times[-1] - answer.times[0]))
    return tuple(paces)


def makeable(url: str, model: str) -> list[str]:
    """Every level, largest first, that can be made of the model without an importance matrix."""
    levels = [level.label for level in QUANTIZATIONS.values() if level.family is not Family.FLOAT]
    plans = call(url, "POST", "/v1/quantize", {"model": model, "to": levels, "dry_run": True})["data"]
    return [plan["quantization"] for plan in plans if plan["error"] is None and not plan["needs_imatrix"]]


@contextmanager
def job(url: str, model: str, levels: list[str], flavour: str, *, evaluate: bool) -> Iterator[str]:
    """A running job of these levels; cancelled in the end, and its levels deleted. Its id."""
    body = {"model": model, "to": levels, "evaluate": evaluate, "flavour": flavour, "allow_requantize": True}
    job_id = str(call(url, "POST", "/v1/quantize", body)["id"])
    deadline = time.monotonic() + _JOB_START_SECONDS
    while not any(step["status"] != "queued" for step in call(url, "GET", f"/v1/jobs/{job_id}")["steps"]):
        if time.monotonic() > deadline:
            raise SystemExit("the job did not begin")
        time.sleep(0.05)
    try:
        yield job_id
    finally:
        now = call(url, "GET", f"/v1/jobs/{job_id}")
        if now["status"] not in _ENDED:
            call(url, "DELETE", f"/v1/jobs/{job_id}")
        while (now := call(url, "GET", f"/v1/jobs/{job_id}"))["status"] not in _ENDED:
            time.sleep(0.05)
        stored = {variant["name"] for variant in call(url, "GET", "/v1/variants")["data"]}
        for name in stored.intersection(now["result"]):
            call(url, "DELETE", f"/v1/variants/{name}")


def beside(url: str, target: Target, kind: str, levels: list[str], arguments: argparse.Namespace, repeat: int) -> Phase:
    """Streams beside a job; SystemExit where the job fails under them."""
    first = repeat * len(levels) // arguments.repeats
    turned = levels[first:] + levels[:first]
    with job(url, target.model, turned, f"{kind}{repeat}", evaluate=kind == MEASURE) as job_id:
        before = call(url, "GET", f"/v1/jobs/{job_id}")
        paces = asyncio.run(streams(target, arguments.tokens, arguments.seconds, _seed(repeat, kind)))
        after = call(url, "GET", f"/v1/jobs/{job_id}")
    if after["status"] == "failed":
        raise SystemExit(f"the job failed: {after['error']}")
    if after["status"] != "running":
        print(f"  the job ended within the phase; take fewer --seconds than {arguments.seconds:g}")
    was_done = {step["name"] for step in before["steps"] if step["status"] == "succeeded"}
    steps = [step["name"] for step in after["steps"] if step["progress"] > 0 and step["name"] not in was_done]
    return Phase(paces, tuple(steps), after["progress"])


def measure(url: str, target: Target, arguments: argparse.Namespace) -> list[dict[str, Phase]]:
    """The phases of each repeat, by kind."""
    levels = makeable(url, target.model)
    asyncio.run(streams(target, arguments.tokens, 0.1, -1))  # loads the model
    repeats = []
    for repeat in range(arguments.repeats):
        phases: dict[str, Phase] = {}
        for kind in (*KINDS[repeat % 3 :], *KINDS[: repeat % 3]):
            time.sleep(_SETTLE_SECONDS)
            if kind == ALONE:
                seed = _seed(repeat, kind)
                phases[kind] = Phase(asyncio.run(streams(target, arguments.tokens, arguments.seconds, seed)))
            else:
                phases[kind] = beside(url, target, kind, levels, arguments, repeat)
        repeats.append(phases)
        for kind in KINDS:
            phase = phases[kind]
            told = f"; job at {phase.job_progress:.1%}: {', '.join(phase.steps)}" if phase.steps else ""
            ratio = phase.pace / phases[ALONE].pace
            print(f"{repeat + 1} {kind:8} {phase.pace:8.1f} tokens/s, ratio {ratio:.3f}{told}", flush=True)
    return repeats


def _seed(repeat: int, kind: str) -> int:
    return len(KINDS) * repeat + KINDS.index(kind)


def summary(repeats: list[dict[str, Phase]]) -> dict[str, dict[str, float]]:
    """By kind: the median pace, its ratio to that alone, and the lowest and highest ratio of a single repeat."""
    alone = statistics.median(phases[ALONE].pace for phases in repeats)
    found = {}
    for kind in KINDS:
        pace = statistics.median(phases[kind].pace for phases in repeats)
        ratios = [phases[kind].pace / phases[ALONE].pace for phases in repeats]
        found[kind] = {"pace": pace, "ratio": pace / alone, "lowest": min(ratios), "highest": max(ratios)}
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-q4_1", help=f"{', '.join(RECIPES)}, or a GGUF file")
    parser.add_argument("--seconds", type=float, default=20.0, help="least length of a phase (default 20)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a stream (default 256)")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--json", action="store_true", help="print the phases as JSON as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantry-beside-") as folder:
        bench = Bench(home=Path(folder) / "home", logs=Path(folder), threads=arguments.threads, peers=None)
        bench.home.mkdir()
        with quantry(bench, context=2 * arguments.tokens, parallel=1) as (_, url):
            model = prepare(arguments.model, url, bench.home)
            target = Target("127.0.0.1", int(url.rsplit(":", 1)[1]), model.name, model.has_chat_template)
            repeats = measure(url, target, arguments)
    found = summary(repeats)
    if arguments.json:
        phases = [{kind: asdict(phase) for kind, phase in each.items()} for each in repeats]
        print(json.dumps({"model": arguments.model, "summary": found, "repeats": phases}, indent=2))
    for kind, figures in found.items():
        print(
            f"{arguments.model} {kind:8} {figures['pace']:8.1f} tokens/s, ratio {figures['ratio']:.3f} "
            f"({figures['lowest']:.3f} to {figures['highest']:.3f})"
        )


if __name__ == "__main__":
    main()
