"""A worker's resident memory with a full cache, beside what domain/memory.py predicts.

    .venv/bin/python benchmarks/worker_memory.py MODEL.gguf [--context 4096] [--parallel 1] [--cache f16]

Starts a worker as the server does, fills every cell, and lets every sequence generate.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

import psutil
import structlog

from service import machine
from service.domain.generation import Failed, Finished, GenerationRequest, SamplingParams
from service.domain.memory import CacheType, ContextOptions, Placement, memory_need
from service.gguf.files import facts, read_header
from service.workers.ladder import Rung
from service.workers.options import WorkerOptions
from service.workers.supervisor import Worker

MIB = 1 << 20
_UNIT = " horse"
_ANSWER_TOKENS = 16


async def resident_bytes(path: Path, placement: Placement, rung: Rung) -> int:
    """Of a worker that has used all of its context."""
    worker = Worker(
        name=path.stem,
        path=path,
        placement=placement,
        options=WorkerOptions(
            batch_tokens=placement.options.batch_tokens,
            threads=machine.usable_cores(),
            gpu_layers=0,
            load_timeout_seconds=600,
            hang_seconds=600,
        ),
        rung=rung,
        on_death=lambda worker: None,
    )
    await worker.start()
    try:
        per_unit = (await _tokens(worker, 30) - await _tokens(worker, 10)) / 20
        await _tokens(worker, int((placement.context_length - _ANSWER_TOKENS - 8) / per_unit))
        return int(psutil.Process(worker.pid).memory_info().rss)
    finally:
        await worker.stop()


async def _tokens(worker: Worker, units: int) -> int:
    """Run prompts of that many words in all sequences at once; tokens of each."""
    request = GenerationRequest(
        prompt=_UNIT * units,
        max_tokens=_ANSWER_TOKENS,
        sampling=SamplingParams(seed=1),
        ignore_eos=True,
        cache_prompt=False,  # shared cells would leave others empty
    )
    count = 0
    for stream in [worker.submit(request, 0.0) for _ in range(worker.placement.parallel)]:
        async for event in stream:
            if isinstance(event, Failed):
                raise SystemExit(event.message)
            if isinstance(event, Finished):
                count = event.usage.prompt_tokens
    return count


def main() -> None:
    """Parse, load, fill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--cache", type=CacheType, choices=list(CacheType), default=CacheType.F16)
    parser.add_argument("--rung", type=Rung, choices=list(Rung), default=Rung.FULL)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    flash_attention = arguments.rung in (Rung.FULL, Rung.NO_EXTRA_BUFFERS)
    options = ContextOptions(
        cache_type_k=arguments.cache,
        cache_type_v=arguments.cache if flash_attention else CacheType.F16,
        flash_attention=flash_attention,
    )
    need = memory_need(
        facts(read_header(arguments.model)), arguments.context * arguments.parallel, arguments.parallel, options
    )
    placement = Placement(arguments.context, arguments.parallel, need, options)
    resident = asyncio.run(resident_bytes(arguments.model, placement, arguments.rung))
    print(f"resident   {resident / MIB:8.1f} MiB")
    print(f"predicted  {need.total_bytes / MIB:8.1f} MiB, {need.total_bytes / resident:.3f} of it")
    for name in ("weights_bytes", "kv_cache_bytes", "compute_bytes", "runtime_bytes"):
        print(f"  {name:16} {getattr(need, name) / MIB:8.1f} MiB")


if __name__ == "__main__":
    main()
