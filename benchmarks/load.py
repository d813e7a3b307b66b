"""Load generator: streamed completions from any server that speaks OpenAI's dialect, in a closed or an open loop.

    .venv/bin/python -m benchmarks.load --port 8080 --model smollm2:Q4_1 --clients 8 --requests 3
    .venv/bin/python -m benchmarks.load --port 8080 --model smollm2:Q4_1 --rate 2 --requests 40 --cancel 0.2

Closed loop: each client sends its next request when the last one has ended. Open loop: requests arrive at random
(Poisson) at a rate of their own, whether the server keeps up or not.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
from collections.abc import Sequence

from benchmarks.client import Answer, Ask, Target, ask_once
from benchmarks.figures import summarize
from benchmarks.prompts import passage, question


async def closed_loop(
    target: Target, clients: Sequence[Sequence[Ask]], *, stagger_seconds: float = 0.0, timeout_seconds: float = 600.0
) -> list[Answer]:
    """One client for each list of requests; client n starts n * `stagger_seconds` after the first."""

    async def run(number: int, asks: Sequence[Ask]) -> list[Answer]:
        await asyncio.sleep(number * stagger_seconds)
        return [await ask_once(target, ask, timeout_seconds) for ask in asks]

    lists = await asyncio.gather(*(run(number, asks) for number, asks in enumerate(clients)))
    return [answer for answers in lists for answer in answers]


async def open_loop(
    target: Target, asks: Sequence[Ask], *, rate: float, seed: int, timeout_seconds: float = 600.0
) -> list[Answer]:
    """Send `rate` requests/s on average, with exponential times between them that follow from `seed`."""
    times = random.Random(seed)
    running: list[asyncio.Task[Answer]] = []
    for ask in asks:
        running.append(asyncio.create_task(ask_once(target, ask, timeout_seconds)))
        await asyncio.sleep(times.expovariate(rate))
    return list(await asyncio.gather(*running))


def with_cancellations(asks: Sequence[Ask], *, share: float, seed: int) -> list[Ask]:
    """The same requests, of which about `share` hang up somewhere before their end."""
    chance = random.Random(seed)
    return [
        dataclasses.replace(ask, cancel_after=chance.randint(1, max(1, ask.max_tokens - 1)))
        if chance.random() < share
        else ask
        for ask in asks
    ]


def main() -> None:
    """Parse, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model", required=True, help="name that the server knows the model by")
    parser.add_argument("--completions", action="store_true", help="raw prompts to /v1/completions instead of chat")
    parser.add_argument("--clients", type=int, default=1, help="closed loop: clients at once (default 1)")
    parser.add_argument("--requests", type=int, default=4, help="requests of each client; in all, with --rate")
    parser.add_argument("--rate", type=float, help="open loop: requests/s on average")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--shared-words", type=int, default=0, help="words of a system prompt that all requests share")
    parser.add_argument("--stagger", type=float, default=0.0, help="closed loop: seconds between the clients' starts")
    parser.add_argument("--cancel", type=float, default=0.0, help="share of requests that hang up in mid-stream")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, arrivals and cancellations")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one request")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    arguments = parser.parse_args()

    target = Target(arguments.host, arguments.port, arguments.model, chat=not arguments.completions)
    system = passage(arguments.seed, arguments.shared_words) if arguments.shared_words else ""
    count = arguments.requests * (1 if arguments.rate else arguments.clients)
    plain = [Ask(question(arguments.seed, number), arguments.tokens, system) for number in range(count)]
    asks = with_cancellations(plain, share=arguments.cancel, seed=arguments.seed)
    if arguments.rate:
        answers = asyncio.run(
            open_loop(target, asks, rate=arguments.rate, seed=arguments.seed, timeout_seconds=arguments.timeout)
        )
    else:
        clients = [asks[number :: arguments.clients] for number in range(arguments.clients)]
        answers = asyncio.run(
            closed_loop(target, clients, stagger_seconds=arguments.stagger, timeout_seconds=arguments.timeout)
        )
    figures = summarize(answers).as_dict()
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:18} {value:12.6g}")
    for error in sorted({answer.error for answer in answers if answer.error}):
        print(f"error: {error}")


if __name__ == "__main__":
    main()
