"""What an import costs beside a plain copy of the same file: copy, hash, check, plan, load.

    .venv/bin/python -m benchmarks.import_file [--gib 2] [--repeats 3]

A GGUF file of that size with random weights is written once. Each repeat copies it (1 MiB at a time, fsync at the end,
in Python as the import does, no hash) and imports it by its path into a store on the same file system, in turns; the
file's pages are dropped from the cache before each. Reported: MB/s of the copy, of the copy step (which also hashes),
and of the whole import; the aim is half the copy's pace for the step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import httpx
import numpy as np

from benchmarks.models import GLOSS
from benchmarks.servers import Bench, quantry

_CHUNK_BYTES = 1 << 20
_WIDTH = 2048
_INNER = 8192
_HEADS = 16


def write_model(path: Path, size_bytes: int) -> None:
    """A llama of about `size_bytes` in F16, with the tokenizer of gloss and as many layers as it takes."""
    layer_bytes = 2 * (4 * _WIDTH * _WIDTH + 3 * _WIDTH * _INNER)
    layers = max(1, round(size_bytes / layer_bytes))
    source = gguf.GGUFReader(GLOSS)
    vocabulary = len(source.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    shapes = {"token_embd.weight": (vocabulary, _WIDTH), "output_norm.weight": (_WIDTH,)}
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_{name}.weight": (_WIDTH, _WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}{name}_norm.weight": (_WIDTH,) for name in ("attn", "ffn")}
        shapes |= {f"{block}ffn_{name}.weight": (_INNER, _WIDTH) for name in ("gate", "up")}
        shapes[f"{block}ffn_down.weight"] = (_WIDTH, _INNER)
    kinds = {name: np.float16 if len(shape) > 1 else np.float32 for name, shape in shapes.items()}
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, np.dtype(kinds[name]), int(np.prod(shape)) * np.dtype(kinds[name]).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.write_tensor_data((random.standard_normal(shape, np.float32) * 0.02).astype(kinds[name]))
    writer.close()


def drop(path: Path) -> None:
    """Have the file's pages leave the cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def copy_seconds(source: Path, target: Path) -> float:
    """A plain copy, on disk when it ends."""
    drop(source)
    started_at = time.monotonic()
    with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as output:
        while chunk := file.read(_CHUNK_BYTES):
            output.write(chunk)
        os.fsync(output.fileno())
    seconds = time.monotonic() - started_at
    target.unlink()
    return seconds


def import_seconds(source: Path, url: str, repeat: int) -> tuple[float, float]:
    """(the copy step, the whole import)."""
    drop(source)
    name = f"large{repeat}"
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(1) as pool:
        started_at = time.monotonic()
        answer = pool.submit(httpx.post, f"{url}/v1/models", json={"name": name, "path": str(source)}, timeout=600)
        step_seconds = 0.0
        while not answer.done():
            [*jobs] = (job for job in client.get("/v1/jobs").json()["data"] if job["model"] == name)
            if jobs and not step_seconds and jobs[0]["steps"][1]["status"] != "queued":
                step_seconds = time.monotonic() - started_at
            time.sleep(0.05)
        answer.result().raise_for_status()
        whole = time.monotonic() - started_at
        client.delete(f"/v1/models/{name}").raise_for_status()
    return step_seconds, whole


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    copies, steps, wholes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "large.gguf"
        write_model(model, int(arguments.gib * 2**30))
        size = model.stat().st_size / 1e6
        print(f"{size:.0f} MB")
        bench = Bench(home=Path(folder) / "home", logs=Path(folder), threads=2, peers=None)
        with quantry(bench, context=512, parallel=1) as (_, url):
            for repeat in range(arguments.repeats):
                copies.append(copy_seconds(model, Path(folder) / "copy"))
                step, whole = import_seconds(model, url, repeat)
                steps.append(step)
                wholes.append(whole)
                paces = ", ".join(f"{size / seconds:.0f}" for seconds in (copies[-1], step, whole))
                print(f"MB/s of the copy, the copy step, the import: {paces}")
    copy, step, whole = map(statistics.median, (copies, steps, wholes))
    print(f"medians: copy step {copy / step:.2f} of the copy's pace, whole import {copy / whole:.2f}")


if __name__ == "__main__":
    main()
