"""Child of test_mutants_reach_llama.py: damaged headers through our check and, where it lets them pass, llama.cpp.

Arguments: source file, folder for scratch files, seed, seconds. Each accepted mutant gets a forked process of its
own; prints a JSON object of counts and of the mutants that ended llama.cpp by a signal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from service.domain.errors import InvalidModel, QuantryError
from service.domain.recipes import Recipe
from service.gguf.files import read_header
from service.llama.context import Context
from service.llama.model import Model
from service.llama.quantizer import quantize_model

INTERESTING = (0, 1, 2, 3, 5, 12, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def run_through_llama(path: Path) -> None:
    """Plan, quantize, load, tokenize and decode."""
    quantize_model(path, Path(os.devnull), Recipe("Q4_0"), dry_run=True, threads=1)
    quantize_model(path, path.with_suffix(".out"), Recipe("Q4_0", allow_requantize=True), threads=1)
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    tokens = model.tokenize("hello w\u00f6rld \x00 the", add_special=True, parse_special=True)
    for token in tokens:
        model.piece(token)
    context = Context(model, cells=256, sequences=1, batch_tokens=64, threads=1, flash_attention=False)
    context.batch.clear()
    context.batch.add(tokens[:64] or [0], 0, 0, logits=1)
    context.decode()


def child(path: Path) -> int:
    """The status of a process that does all that: 0 done, 1 refused by llama.cpp in good order, else a signal."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(30)
        try:
            run_through_llama(path)
        except QuantryError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(source: Path, folder: Path, seed: int, seconds: float) -> dict[str, object]:
    """Mutate until the time is up."""
    raw = source.read_bytes()
    end = read_header(source).data_offset
    path = folder / "mutant.gguf"
    path.write_bytes(raw)
    generator = random.Random(seed)
    counts: Counter[str] = Counter()
    killed: list[object] = []
    stop = time.monotonic() + seconds
    with path.open("r+b", buffering=0) as file:
        while time.monotonic() < stop:
            changes = []
            for _ in range(generator.choice((1, 1, 2))):
                # The first 1200 bytes hold the counts and all hyper-parameters, the last 3500 all tensors.
                place = generator.choice((generator.randrange(1200), generator.randrange(end - 3500, end - 8)))
                size = generator.choice((1, 4, 8))
                value = generator.choice((*INTERESTING, generator.getrandbits(64))) % (1 << 8 * size)
                changes.append((place, value.to_bytes(size, "little")))
            for place, value_bytes in changes:
                os.pwrite(file.fileno(), value_bytes, place)
            try:
                read_header(path)
            except InvalidModel:
                counts["refused"] += 1
            else:
                status = child(path)
                counts["accepted"] += 1
                if status < 0 or status == 2:
                    killed.append([status, [(place, value_bytes.hex()) for place, value_bytes in changes]])
            for place, value_bytes in changes:
                os.pwrite(file.fileno(), raw[place : place + len(value_bytes)], place)
    return {**counts, "killed": killed}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
