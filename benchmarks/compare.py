"""Runs quantry and its peers one after another on the same work, interleaved, and prints the table of aims.

    .venv/bin/python -m benchmarks.compare --quick --sides quantry,llama-server
    .venv/bin/python -m benchmarks.compare --model smollm2-q4_1 --out results

Order: for each repeat, for each workload, for each side: start, warm up, measure, end. Every other repeat takes the
sides in the opposite order, so that a machine that gets slower (or faster) favours nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.models import RECIPES, Measurable, prepare
from benchmarks.peers import CacheError, Peers, end_on_signals, find_or_build, pinned_source, say
from benchmarks.plot import svg
from benchmarks.processes import StartFailed, busy_core, memory_mib, running
from benchmarks.servers import VARIANTS, Bench, quantry, serving
from benchmarks.table import aims_table, details_table
from benchmarks.targets import AIMS, BESIDE, rows
from benchmarks.workloads import (
    LLAMA_BENCH,
    QUANTRY,
    SIDES,
    WORKLOADS,
    Arm,
    Measured,
    RunFailed,
    Workload,
)
from service import machine

_BENCH_SECONDS = 600.0


@dataclass
class Results:
    """What has been measured so far: workload -> arm -> one entry for each repeat."""

    figures: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    texts: dict[str, dict[str, list[tuple[str, ...]]]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, workload: str, arm: str, measured: Measured) -> None:
        """Keep one run."""
        self.figures.setdefault(workload, {}).setdefault(arm, []).append(measured.figures)
        self.texts.setdefault(workload, {}).setdefault(arm, []).append(measured.texts)

    def same_texts(self) -> dict[str, bool]:
        """Whether quantry wrote the same with and without drafts, in every repeat of a workload that keeps texts."""
        verdicts = {}
        for workload, arms in self.texts.items():
            ours = [runs for arm, runs in arms.items() if arm.startswith("quantry")]
            if len(ours) == 2 and any(ours[0]):
                verdicts[workload] = ours[0] == ours[1]
        return verdicts


def measure(bench: Bench, workload: Workload, arm: Arm, *, seed: int, quick: bool, nice: int) -> Measured:
    """One run of one side. Raises StartFailed, RunFailed, CacheError."""
    assert bench.model is not None
    if arm.side == LLAMA_BENCH:
        return _kernels_alone(bench, quick)
    context = min(workload.context, bench.model.context_length)
    with (
        busy_core(nice) if workload.neighbour else nullcontext(),
        serving(bench, arm.side, arm.variant, context=context, parallel=workload.parallel, fields=arm.fields) as server,
    ):
        measured = asyncio.run(workload.run(server.target, seed, quick))
        return Measured(measured.figures | {"memory_mib": memory_mib(server.process)}, measured.texts)


def _kernels_alone(bench: Bench, quick: bool) -> Measured:
    """llama-bench's token generation: no server, no sampling, random tokens."""
    assert bench.model is not None
    assert bench.peers is not None
    command = [str(bench.peers.program("llama-bench")), "-m", str(bench.model.path), "-t", str(bench.threads)]
    command += ["-p", "0", "-n", "16" if quick else "128", "-r", "1" if quick else "3", "-fa", "on", "-o", "json"]
    log = bench.logs / "llama-bench.log"
    with running(command, dict(os.environ), log) as process:
        try:
            status = process.wait(_BENCH_SECONDS)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"llama-bench took more than {_BENCH_SECONDS:.0f} s") from None
    text = log.read_text(errors="replace")
    if status != 0 or "[\n" not in text:
        raise StartFailed(f"llama-bench ended with status {status}: {text[-300:]}")
    report = json.JSONDecoder().raw_decode(text[text.index("[\n") :])[0]
    return Measured({"generation_rate": float(report[0]["avg_ts"])})


def chosen(only: str, sides: str) -> list[Workload]:
    """The workloads named in `only` (all when empty) with the arms of `sides`. SystemExit for unknown names."""
    names = [name for name in only.split(",") if name]
    known = {workload.name: workload for workload in WORKLOADS}
    wanted = [side for side in sides.split(",") if side]
    for name in (*(n for n in names if n not in known), *(s for s in wanted if s not in SIDES)):
        raise SystemExit(f"{name} is unknown; workloads: {', '.join(known)}; sides: {', '.join(SIDES)}")
    picked = [known[name] for name in names] or list(WORKLOADS)
    kept = [replace(work, arms=tuple(arm for arm in work.arms if arm.side in wanted)) for work in picked]
    return [work for work in kept if work.arms]


def run_all(bench: Bench, workloads: list[Workload], results: Results, arguments: argparse.Namespace) -> None:
    """Every repeat of every workload; a side that fails is told once and left out of that workload from then on."""
    assert bench.model is not None
    for repeat in range(arguments.repeats):
        for workload in workloads:
            if bench.model.context_length < workload.needs:
                results.problems[workload.name] = (
                    f"it needs a context of {workload.needs} tokens; the model's is smaller"
                )
                continue
            arms = workload.arms if repeat % 2 == 0 else tuple(reversed(workload.arms))
            for arm in arms:
                key = f"{workload.name}, {arm.name}"
                if key in results.problems:
                    continue
                started = time.monotonic()
                try:
                    # The same seed for all sides of a repeat: the same prompts.
                    seed = arguments.seed + repeat
                    measured = measure(
                        bench, workload, arm, seed=seed, quick=arguments.quick, nice=arguments.neighbour_nice
                    )
                except (StartFailed, RunFailed, CacheError, OSError) as error:
                    results.problems[key] = str(error)
                    say(f"  {key}: {error}")
                    continue
                results.add(workload.name, arm.name, measured)
                say(
                    f"  {repeat + 1}/{arguments.repeats} {key}: {_brief(measured.figures)} "
                    f"({time.monotonic() - started:.0f} s)"
                )


def _brief(figures: dict[str, float]) -> str:
    shown = ("total_rate", "generation_rate", "ttft_p50", "gap_max", "memory_mib")
    return ", ".join(f"{n} {figures[n]:.4g}" for n in shown if n in figures and not math.isnan(figures[n]))


def describe(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to judge the figures: machine, versions, flags, load."""
    assert bench.model is not None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": bench.model.label,
        "model_file": bench.model.path.name,
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": bench.threads,
        "memory_mib": machine.memory_bytes() >> 20,
        "python": platform.python_version(),
        "llama_cpp_python": pinned_source()[0],
        "peers": bench.peers.describe if bench.peers else None,
        "llama_server_variants": {name: list(flags) for name, flags in VARIANTS.items()},
        "load_average": list(os.getloadavg()),
        "openmp_variables": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))},
        "quick": arguments.quick,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "neighbour_nice": arguments.neighbour_nice,
    }


def report(results: Results, about: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print the tables, or the JSON; with `out`, write all of JSON, Markdown and SVG there."""
    same = results.same_texts()
    aims, beside = rows(AIMS, results.figures, same), rows(BESIDE, results.figures, same)
    title = f"quantry and its peers, {about['model']}, {about['cores']} cores, median of {about['repeats']}"
    problems = "\n".join(f"- {name}: {problem}" for name, problem in results.problems.items())
    markdown = "\n\n".join(
        part
        for part in (
            f"## {title}",
            f"{about['date']}, {about['threads']} threads, load average before {about['load_average'][0]:.2f}, peers: "
            f"{about['peers']}." + (" Quick: too short to mean anything." if about["quick"] else ""),
            aims_table(aims),
            "For information:\n\n" + aims_table(beside) if beside else "",
            details_table(results.figures),
            "Left out:\n\n" + problems if problems else "",
        )
        if part
    )
    data = json.dumps(
        {"about": about, "figures": results.figures, "same_texts": same, "problems": results.problems}, indent=1
    )
    print(data if as_json else markdown)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        name = f"{about['model'].replace('/', '-')}-{about['date'][:10]}"
        for ending, text in (("json", data), ("md", markdown + "\n"), ("svg", svg([*aims, *beside], title))):
            (out / f"{name}.{ending}").write_text(text, encoding="utf-8")
            say(f"wrote {out / f'{name}.{ending}'}")


def _prepared(bench: Bench, choice: str) -> Measurable:
    say(f"preparing {choice}")
    with quantry(bench, context=512, parallel=1) as (_, url):
        return prepare(choice, url, bench.home)


def main() -> None:
    """Parse, prepare, run, report; what was measured is reported on Ctrl-C, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-q4_1", help=f"{', '.join(RECIPES)}, or a GGUF file")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"comma list of {', '.join(SIDES)} (default all)")
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(w.name for w in WORKLOADS)}")
    parser.add_argument("--repeats", type=int, help="interleaved runs of everything (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few and short requests: does it run, not how fast")
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="threads of every side")
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat's prompts (default 1)")
    parser.add_argument("--neighbour-nice", type=int, default=19, help="niceness of the busy neighbour (default 19)")
    parser.add_argument("--peer-build", type=Path, metavar="DIR", help="a CMake build of llama.cpp to use as it is")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write JSON, Markdown and SVG into this folder")
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 5)
    end_on_signals()
    workloads = chosen(arguments.only, arguments.sides)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="quantry-bench-") as scratch:
        home, logs = Path(scratch) / "home", Path(scratch) / "logs"
        home.mkdir()
        logs.mkdir()
        peers: Peers | None = None
        if any(arm.side != QUANTRY for work in workloads for arm in work.arms):
            try:
                peers = find_or_build(arguments.peer_build)
            except CacheError as error:
                raise SystemExit(f"{error}\n(--sides quantry runs without peers)") from None
        bench = Bench(home, logs, arguments.threads, peers)
        bench = replace(bench, model=_prepared(bench, arguments.model))
        about = describe(bench, arguments)
        try:
            run_all(bench, workloads, results, arguments)
        except KeyboardInterrupt:
            say("interrupted; this is what was measured")
            results.problems["the run"] = "interrupted"
        report(results, about, arguments.out, arguments.json)
    sys.exit(130 if "the run" in results.problems else 0)


if __name__ == "__main__":
    main()
