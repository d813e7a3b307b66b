"""A worker's resident memory with a full cache, beside what domain/memory.py predicts.

    .venv/bin/python benchmarks/worker_memory.py MODEL.gguf [--context 4096] [--parallel 1]

Loads the model in this process, as a worker does, and fills every cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil

from service import machine
from service.domain.generation import GenerationRequest, SamplingParams
from service.domain.memory import memory_need
from service.engine.engine import Engine
from service.gguf.files import facts, read_header
from service.llama.context import Context
from service.llama.model import Model

MIB = 1 << 20
_ANY_TOKEN = 5


def main() -> None:
    """Parse, load, fill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=1)
    arguments = parser.parse_args()
    cells = arguments.context * arguments.parallel
    described = facts(read_header(arguments.model))
    model = Model(arguments.model, gpu_layers=0, use_extra_buffers=True)
    context = Context(
        model,
        cells=cells,
        sequences=arguments.parallel,
        batch_tokens=512,
        threads=machine.physical_cores(),
        flash_attention=True,
    )
    engine = Engine(model, context, context_length=arguments.context, slots=arguments.parallel, batch_tokens=512)
    request = GenerationRequest(prompt="", max_tokens=2, sampling=SamplingParams(temperature=0.0), ignore_eos=True)
    for number in range(arguments.parallel):
        engine.submit(number, [_ANY_TOKEN] * (arguments.context - 4), request)
    while not engine.is_idle:
        engine.step()
    need = memory_need(described, cells)
    print(f"resident   {psutil.Process().memory_info().rss / MIB:8.1f} MiB")
    print(f"predicted  {need.total_bytes / MIB:8.1f} MiB")
    for name in ("weights_bytes", "kv_cache_bytes", "compute_bytes", "runtime_bytes"):
        print(f"  {name:16} {getattr(need, name) / MIB:8.1f} MiB")
    engine.close()


if __name__ == "__main__":
    main()
