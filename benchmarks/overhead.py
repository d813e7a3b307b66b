"""The engine's own time per step: what a step takes outside llama_decode, by phase, while n streams generate.

    .venv/bin/python -m benchmarks.overhead [MODEL.gguf] [--streams 1,4,16] [--steps 300] [--sampled] [--speculate]

A small model makes decode short and leaves Python's part as it is. The first table has only `Context.decode` wrapped;
the second wraps each phase as well, which costs about a microsecond a call: read its shares, not its sum.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import machine
from service.domain.generation import GenerationRequest, SamplingParams
from service.engine import engine as engine_module
from service.engine.engine import Engine
from service.llama.context import Context
from service.llama.model import Model

GLOSS = Path(__file__).resolve().parents[1] / "demo" / "gloss-5m-f16.gguf"
DECODE = "decode"

PHASES = {
    "service.llama.context:Context.decode": DECODE,
    "service.engine.engine:Engine._guess": "guess drafts",
    "service.engine.scheduler:Scheduler.plan": "schedule",
    "service.engine.scheduler:Scheduler.accept": "schedule",
    "service.engine.prefix_cache:PrefixCache.take_actions": "prefix cache",
    "service.engine.prefix_cache:PrefixCache.extend": "prefix cache",
    "service.llama.context:Batch.clear": "fill batch",
    "service.llama.context:Batch.add": "fill batch",
    "service.engine.governor:Governor.threads": "governor",
    "service.engine.governor:Governor.observe": "governor",
    "service.engine.pace:Pace.observe": "pace",
    "service.engine.pace:Pace.prompt_tokens": "pace",
    "service.llama.context:Context.logits": "logits view",
    "service.engine.choice:Choice.draw": "draw and stop checks",
    "service.engine.sampling:_Sampler.sample": "sample",
    "service.engine.text:TextStream.push": "text",
}
"""Functions by phase; those that are not there (any more) are left out. What no phase covers is `rest`."""


@dataclass
class Clock:
    """Seconds of each phase in the current step, without what the phases inside it took."""

    spent: dict[str, float] = field(default_factory=dict)
    _running: list[float] = field(default_factory=list)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self._running.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - started
                inner = self._running.pop()
                self.spent[name] = self.spent.get(name, 0.0) + took - inner
                if self._running:
                    self._running[-1] += took

        return timed


@contextmanager
def timing(clock: Clock, phases: dict[str, str]) -> Iterator[None]:
    """Every function in `phases` timed until the block is left."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for place, phase in phases.items():
            module_name, path = place.split(":")
            class_name, attribute = path.split(".")
            try:
                owner = getattr(importlib.import_module(module_name), class_name)
                function = vars(owner)[attribute]
            except (ImportError, AttributeError, KeyError):
                continue
            before.append((owner, attribute, function))
            setattr(owner, attribute, clock.wrap(phase, function))
        yield
    finally:
        for owner, attribute, function in before:
            setattr(owner, attribute, function)


def construct(kind: Callable[..., Any], *positional: Any, **offered: Any) -> Any:
    """Call `kind` with those of the offered arguments that it takes: constructors change, this program need not."""
    taken = inspect.signature(kind).parameters
    return kind(*positional, **{name: value for name, value in offered.items() if name in taken})


def make_engine(path: Path, streams: int, context_length: int, threads: int) -> tuple[Model, Engine]:
    """A model and an engine for that many streams, as a worker makes them."""
    model = Model(path, gpu_layers=0, use_extra_buffers=True)
    offered = {
        "cells": context_length * streams,
        "sequences": streams,
        "slots": streams,
        "context_length": context_length,
        "batch_tokens": 512,
        "threads": threads,
        "flash_attention": True,
    }
    context = construct(Context, model, **offered)
    options = getattr(engine_module, "EngineOptions", None)
    if options is not None:
        return model, construct(Engine, model, context, construct(options, **offered))
    return model, construct(Engine, model, context, **offered)


@dataclass(frozen=True)
class Steps:
    """Seconds of each measured step, and of each phase in it."""

    whole: list[float]
    phases: list[dict[str, float]]
    tokens: int

    def outside(self) -> list[float]:
        """Each step without llama_decode."""
        return [step - phases.get(DECODE, 0.0) for step, phases in zip(self.whole, self.phases, strict=True)]


def measure(
    path: Path, streams: int, steps: int, threads: int, request: GenerationRequest, phases: dict[str, str]
) -> Steps:
    """Generate with `streams` streams; only steps in which nobody is at its prompt are measured."""
    clock = Clock()
    context_length = steps + 96
    model, engine = make_engine(path, streams, context_length, threads)
    context_length = min(context_length, engine.context_length)
    whole: list[float] = []
    spent: list[dict[str, float]] = []
    counted = 0
    with timing(clock, phases):
        for number in range(streams):
            words = f"Story {number}: once upon a time, in house number {number}, there was"
            engine.submit(number, model.tokenize(words, add_special=True, parse_special=False), request)
        seen: set[int] = set()
        while len(seen) < streams:  # prompts
            seen.update(number for number, _ in engine.step())
        for _ in range(16):  # dictionaries of token texts fill, threads settle
            engine.step()
        while not engine.is_idle and len(whole) < steps:
            clock.spent = {}
            started = time.perf_counter()
            events = engine.step()
            whole.append(time.perf_counter() - started)
            spent.append(clock.spent)
            counted += len(events)
    for number in range(streams):
        engine.cancel(number)
    engine.close()
    return Steps(whole, spent, counted)


def summary(plain: Steps, phased: Steps, streams: int) -> dict[str, Any]:
    """Medians in microseconds of a step."""
    step, outside = _median(plain.whole), _median(plain.outside())
    names = sorted({name for phases in phased.phases for name in phases})
    medians = {name: _median([phases.get(name, 0.0) for phases in phased.phases]) for name in names}
    rest = [whole - sum(phases.values()) for whole, phases in zip(phased.whole, phased.phases, strict=True)]
    return {
        "steps": len(plain.whole),
        "step": step,
        "decode": _median([phases.get(DECODE, 0.0) for phases in plain.phases]),
        "outside": outside,
        "outside_of_a_stream": outside / streams,
        "outside_share": outside / step,
        "phases": medians | {"rest": _median(rest)},
    }


def tables(report: dict[str, dict[str, Any]]) -> str:
    """The summaries as text."""
    columns = ("step", "decode", "outside", "outside_of_a_stream")
    lines = ["median microseconds of a step", f"{'streams':24}" + "".join(f"{streams:>10}" for streams in report)]
    for name in columns:
        lines.append(f"{name.replace('_', ' '):24}" + "".join(f"{entry[name]:10.1f}" for entry in report.values()))
    shares = "".join(f"{entry['outside_share']:10.2%}" for entry in report.values())
    lines += [f"{'outside, share':24}{shares}", "", "by phase, every phase timed"]
    for name in sorted({name for entry in report.values() for name in entry["phases"]}):
        lines.append(f"{name:24}" + "".join(f"{entry['phases'].get(name, 0.0):10.1f}" for entry in report.values()))
    return "\n".join(lines)


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e6


def main() -> None:
    """Parse, measure twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=GLOSS, help="GGUF file (default: gloss)")
    parser.add_argument("--streams", default="1,4,16", help="comma list (default 1,4,16)")
    parser.add_argument("--steps", type=int, default=300, help="measured steps (default 300)")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--sampled", action="store_true", help="temperature 0.8 with top-k, top-p, min-p; else greedy")
    parser.add_argument("--speculate", action="store_true", help="leave drafts on")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sampling = SamplingParams(seed=1) if arguments.sampled else SamplingParams(temperature=0.0)
    request = construct(GenerationRequest, prompt="", sampling=sampling, ignore_eos=True, speculate=arguments.speculate)
    only_decode = {place: phase for place, phase in PHASES.items() if phase == DECODE}
    report: dict[str, dict[str, Any]] = {}
    for streams in (int(text) for text in arguments.streams.split(",")):
        plain = measure(arguments.model, streams, arguments.steps, arguments.threads, request, only_decode)
        phased = measure(arguments.model, streams, arguments.steps, arguments.threads, request, PHASES)
        report[str(streams)] = summary(plain, phased, streams)
    print(json.dumps(report, indent=1) if arguments.json else tables(report))


if __name__ == "__main__":
    main()
