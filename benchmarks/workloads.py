"""The workloads: what is asked of which sides, and how a run becomes named figures. Knows no processes.

An arm is one side with its own flags or request fields; a workload runs all its arms on the same prompts.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client import Answer, Ask, Stream, Target, ask_once
from benchmarks.figures import summarize
from benchmarks.load import closed_loop, open_loop, with_cancellations
from benchmarks.prompts import SCHEMA, copying, long_prompt, passage, people, question

QUANTRY = "quantry"
LLAMA_SERVER = "llama-server"
LLAMA_BENCH = "llama-bench"
EXAMPLES_SERVER = "examples-server"
LLAMA_CPP_SERVER = "llama_cpp.server"
SIDES = (QUANTRY, LLAMA_SERVER, LLAMA_BENCH, EXAMPLES_SERVER, LLAMA_CPP_SERVER)


@dataclass(frozen=True)
class Arm:
    """One side of a workload. `variant` chooses among a server's sets of flags; `fields` go into each request."""

    name: str
    side: str
    variant: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Figures by name, and the texts where the workload compares them."""

    figures: dict[str, float]
    texts: tuple[str, ...] = ()


Run = Callable[[Target, int, bool], Coroutine[Any, Any, Measured]]
"""(target, seed, quick) -> figures. Raises RunFailed when a request failed."""


@dataclass(frozen=True)
class Workload:
    """`context` tokens for each of `parallel` requests; skipped for models whose context is below `needs`.

    `neighbour`: another process keeps one core busy from the start of the server on.
    """

    name: str
    title: str
    run: Run
    arms: tuple[Arm, ...]
    context: int = 1024
    needs: int = 256
    parallel: int = 16
    neighbour: bool = False


class RunFailed(Exception):
    """A request of the run failed; its figures would mean nothing."""


NO_DRAFTS = {"speculate": False}
"""Speculation has a row of its own; everywhere else both sides compute every token one after another."""

OURS = Arm("quantry", QUANTRY, fields=NO_DRAFTS)
SPLIT = Arm("llama-server", LLAMA_SERVER, "split")
UNIFIED = Arm("llama-server, unified", LLAMA_SERVER, "unified")
EXAMPLES = Arm("examples/server", EXAMPLES_SERVER)
LOCKED = Arm("llama_cpp.server", LLAMA_CPP_SERVER)


def _measured(answers: list[Answer], texts: tuple[str, ...] = ()) -> Measured:
    errors = sorted({answer.error for answer in answers if answer.error})
    if errors:
        raise RunFailed("; ".join(errors))
    return Measured(summarize(answers).as_dict(), texts)


def clients(count: int, requests: int, tokens: int, *, shared_words: int = 0) -> Run:
    """A closed loop of `count` clients with own questions, behind one system prompt when `shared_words` is set."""

    async def run(target: Target, seed: int, quick: bool) -> Measured:
        each = 1 if quick else requests
        length = min(tokens, 16) if quick else tokens
        system = passage(seed, shared_words) if shared_words else ""
        lists = [
            [Ask(question(seed, number * each + turn), length, system) for turn in range(each)]
            for number in range(count)
        ]
        return _measured(await closed_loop(target, lists))

    return run


def beside_neighbour(count: int, requests: int, tokens: int) -> Run:
    """The same after three seconds of other requests: how long a server needs to settle is another question."""
    measure = clients(count, requests, tokens)

    async def run(target: Target, seed: int, quick: bool) -> Measured:
        until = time.monotonic() + 3.0
        turn = 0
        while time.monotonic() < until:
            turn += 1
            _measured([await ask_once(target, Ask(question(seed, 10_000 + turn), 8))])
        return await measure(target, seed, quick)

    return run


async def copy(target: Target, seed: int, quick: bool) -> Measured:
    """One client, greedy, answers that end by themselves or after 256 tokens."""
    asks = [Ask(text, 48 if quick else 256, ignore_eos=False) for text in copying(seed)]
    answers = await closed_loop(target, [asks[:1] if quick else asks])
    return _measured(answers, tuple(answer.text for answer in answers))


async def schema(target: Target, seed: int, quick: bool) -> Measured:
    """Four requests one after another; an arm with the schema in its fields ends where the schema does."""
    bound = "response_format" in target.extra
    asks = [
        Ask(people(seed, number), 48 if quick else 256, ignore_eos=not bound) for number in range(1 if quick else 4)
    ]
    return _measured(await closed_loop(target, [asks]))


_STREAMS = 4
_STREAM_TOKENS = 700
_POLL_SECONDS = 0.02
_SETTLED_EVENTS = 12
_RUN_SECONDS = 600.0


async def long_arrival(target: Target, seed: int, quick: bool) -> Measured:
    """Four streams run; a prompt of 4,000 tokens arrives. `gap_max`: the worst gap in any stream from then on."""
    streams = [await Stream(target, Ask(question(seed, number), _STREAM_TOKENS)).start() for number in range(_STREAMS)]
    deadline = time.monotonic() + _RUN_SECONDS
    while any(stream.events < _SETTLED_EVENTS for stream in streams) and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    sent_at = time.perf_counter()
    late = await ask_once(target, Ask(long_prompt(seed), 8), _RUN_SECONDS)
    for stream in streams:
        stream.hang_up()
    answers = [await stream.wait(_RUN_SECONDS) for stream in streams]
    base = _measured([late, *answers]).figures
    worst = 0.0
    running = 0
    for answer in answers:
        # The last token before the arrival opens the first gap; the end of the run closes the last one.
        before = [moment for moment in answer.times if moment <= sent_at][-1:]
        after = [moment for moment in answer.times if moment > sent_at]
        ended = answer.completion_tokens >= _STREAM_TOKENS
        running += not ended
        moments = [*before, *after] if ended else [*before, *after, late.ended_at]
        worst = max([worst, *(b - a for a, b in itertools.pairwise(moments))])
    return Measured(
        {
            "gap_max": worst if worst else math.nan,
            "ttft_long": late.first_token_seconds,
            "long_prompt_tokens": late.prompt_tokens,
            "streams_still_running": running,
            "total_rate": base["total_rate"],
        }
    )


async def arrivals(target: Target, seed: int, quick: bool) -> Measured:
    """Open loop: requests at random times, a fifth of which hang up in mid-stream."""
    count = 4 if quick else 30
    asks = [Ask(question(seed, number), 16 if quick else 64) for number in range(count)]
    answers = await open_loop(target, with_cancellations(asks, share=0.2, seed=seed), rate=1.0, seed=seed)
    return _measured(answers)


async def staggered(target: Target, seed: int, quick: bool) -> Measured:
    """Eight clients that start a quarter of a second apart."""
    length = 16 if quick else 96
    lists = [[Ask(question(seed, number), length)] for number in range(2 if quick else 8)]
    return _measured(await closed_loop(target, lists, stagger_seconds=0.25))


_JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "people", "strict": True, "schema": SCHEMA}}
_PYTHON_PEERS = (EXAMPLES, LOCKED)

WORKLOADS = (
    Workload(
        "one",
        "1 client",
        clients(1, 3, 128),
        (OURS, SPLIT, Arm("llama-bench", LLAMA_BENCH), *_PYTHON_PEERS),
    ),
    Workload("four", "4 clients, own prompts", clients(4, 3, 64), (OURS, SPLIT, *_PYTHON_PEERS)),
    Workload("eight", "8 clients, own prompts", clients(8, 2, 64), (OURS, SPLIT, EXAMPLES)),
    Workload("sixteen", "16 clients, own prompts", clients(16, 2, 64), (OURS, SPLIT, EXAMPLES)),
    Workload(
        "shared",
        "16 clients sharing a 300-word system prompt",
        clients(16, 1, 64, shared_words=300),
        (OURS, SPLIT, UNIFIED, EXAMPLES),
        needs=640,
    ),
    Workload(
        "shared-turns",
        "the same, three requests each",
        clients(16, 3, 48, shared_words=300),
        (OURS, SPLIT, UNIFIED, EXAMPLES),
        needs=640,
    ),
    Workload(
        "neighbour-1",
        "1 client, a busy neighbour on one core",
        beside_neighbour(1, 2, 48),
        (OURS, SPLIT, Arm("llama-server, 1 thread", LLAMA_SERVER, "one-thread")),
        neighbour=True,
    ),
    Workload(
        "neighbour-8",
        "8 clients, a busy neighbour on one core",
        beside_neighbour(8, 1, 48),
        (OURS, SPLIT, Arm("llama-server, 1 thread", LLAMA_SERVER, "one-thread")),
        neighbour=True,
    ),
    Workload(
        "copy",
        "copying or editing a given text, 1 client, greedy",
        copy,
        (
            Arm("quantry", QUANTRY),
            Arm("quantry, no drafts", QUANTRY, fields=NO_DRAFTS),
            Arm("llama-server, n-gram drafts", LLAMA_SERVER, "drafts"),
        ),
        needs=512,
    ),
    Workload(
        "long",
        "a 4,000-token prompt arriving while 4 streams run",
        long_arrival,
        (OURS, SPLIT, UNIFIED),
        context=5120,
        needs=5120,
        parallel=5,
    ),
    Workload(
        "schema",
        "JSON schema output",
        schema,
        (
            Arm("quantry, schema", QUANTRY, fields=NO_DRAFTS | {"response_format": _JSON_SCHEMA}),
            OURS,
            Arm("llama-server, schema", LLAMA_SERVER, "split", {"response_format": _JSON_SCHEMA}),
        ),
        needs=400,
    ),
    Workload("arrivals", "open loop, 1 request/s, a fifth cancelled", arrivals, (OURS, SPLIT, EXAMPLES)),
    Workload("staggered", "8 clients starting 0.25 s apart", staggered, (OURS, SPLIT, EXAMPLES)),
)
