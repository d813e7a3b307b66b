"""Tokens/s of one worker process through the pool, without HTTP: own prompts, greedy, prompt time included.

    .venv/bin/python benchmarks/engine_throughput.py MODEL.gguf [--runs 3] [--tokens 64] [--threads 2]

Prints the median over the runs for each number of requests at once.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from service import machine
from service.domain.catalog import Lineage, Variant
from service.domain.generation import Finished, GenerationRequest, SamplingParams
from service.domain.names import parse_ref
from service.gguf.files import facts, read_header
from service.workers.options import PoolOptions, WorkerOptions
from service.workers.pool import Pool

AT_ONCE = (1, 4, 16)


class NoRungs:
    """Every start begins at the top of the launch ladder."""

    def rung(self, machine: str, digest: str) -> str | None:
        """Nothing is remembered."""
        return None

    def set_rung(self, machine: str, digest: str, rung: str) -> None:
        """A benchmark on a lower rung would measure something else."""
        raise SystemExit(f"the worker only runs on rung {rung}; see `quantry doctor`")


async def measure(model: Path, *, runs: int, tokens: int, threads: int) -> dict[int, list[float]]:
    """Tokens/s of each run, by number of requests at once."""
    options = PoolOptions(
        worker=WorkerOptions(
            batch_tokens=512, threads=threads, gpu_layers=-1, load_timeout_seconds=600, hang_seconds=60
        ),
        machine="benchmark",
        context_length=1024,
        parallel=max(AT_ONCE),
        memory_budget_bytes=machine.memory_bytes(),
        max_loaded_models=1,
        max_queued_requests=1000,
        keep_alive_seconds=600,
        queue_timeout_seconds=600,
    )
    key = parse_ref("benchmark").key
    header = read_header(model)
    described = facts(header)
    variant = Variant(
        1, key, "", described.quantization, f"sha256:{0:064}", header.file_size, described, Lineage("imported"), ""
    )
    pool = Pool(options, path_of=lambda _digest: model, rungs=NoRungs())
    await pool.start()

    async def ask(number: int) -> int:
        request = GenerationRequest(
            prompt=f"Once upon a time, in house number {number}, there was",
            max_tokens=tokens,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
        )
        end = [event async for event in await pool.submit(variant, request)][-1]
        assert isinstance(end, Finished), end
        return end.usage.completion_tokens

    await ask(0)  # the load, and the first touch of every buffer
    figures: dict[int, list[float]] = {count: [] for count in AT_ONCE}
    for _ in range(runs):
        for count in AT_ONCE:
            started = time.perf_counter()
            made = sum(await asyncio.gather(*(ask(number) for number in range(count))))
            figures[count].append(made / (time.perf_counter() - started))
    await pool.stop(drain_seconds=0)
    return figures


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    arguments = parser.parse_args()
    figures = asyncio.run(
        measure(arguments.model, runs=arguments.runs, tokens=arguments.tokens, threads=arguments.threads)
    )
    for count, rates in figures.items():
        listed = ", ".join(f"{rate:.1f}" for rate in rates)
        print(f"{count:3d} at once: {statistics.median(rates):7.1f} tokens/s  ({listed})")


if __name__ == "__main__":
    main()
