"""Converts a synthetic Llama checkpoint in BF16 and prints the peak memory of the process and megabytes a second.

    .venv/bin/python benchmarks/convert.py [--gib 2.5] [--vocabulary 128256] [--to F16] [--folder /tmp] [--holes]

The checkpoint has random weights in two shards and a large embedding; `--holes` leaves the files sparse (all zeros),
which costs no disk. The conversion runs in a process of its own; its largest resident size is what the kernel counted.
Beside it: the time that a plain copy of the result takes, hashed on the way, as the floor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_HIDDEN, _INNER, _HEADS, _KV_HEADS = 2048, 8192, 32, 8
_CHUNK_BYTES = 8 * 1024 * 1024
_CONVERT = """
import json, re, resource, sys, time
from pathlib import Path
from service.gguf.checkpoint_files import Files
from service.gguf.convert import convert
started = time.monotonic()
convert(Files.of_folder(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], lambda part, step: None)
seconds, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
peak_bytes = used.ru_maxrss
if sys.platform == "linux":  # where that counts what the parent had when it forked, too
    peak_bytes = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps([seconds, used.ru_utime + used.ru_stime, peak_bytes]))
"""


def main() -> None:
    """Make the checkpoint, convert it, copy the result, print."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="convert-") as scratch:
        folder = Path(scratch) / "checkpoint"
        size = write_checkpoint(folder, options.gib, options.vocabulary, holes=options.holes)
        target = Path(scratch) / "out.gguf"
        seconds, cpu_seconds, peak_bytes = convert(folder, target, options.to)
        made = target.stat().st_size
        copied = _copy_seconds(target, Path(scratch) / "copy.gguf")
        print(
            f"{size / 1e9:.2f} GB of BF16 -> {made / 1e9:.2f} GB of {options.to}: {seconds:.1f} s, "
            f"{cpu_seconds:.1f} s of CPU, "
            f"{made / 1e6 / seconds:.0f} MB/s written, peak memory {peak_bytes / 2**20:.0f} MiB; "
            f"a copy with its sum takes {copied:.1f} s"
        )


def convert(folder: Path, target: Path, kind: str) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and the largest resident size in bytes, of a process that converts."""
    command = [sys.executable, "-P", "-c", _CONVERT, str(folder), str(target), kind]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, cpu_seconds, peak_bytes = json.loads(done.stdout)
    return float(seconds), float(cpu_seconds), int(peak_bytes)


def write_checkpoint(folder: Path, gib: float, vocabulary: int, *, holes: bool) -> int:
    """A Llama of about `gib` GiB in two shards, with a tokenizer of a few tokens; its size in bytes."""
    folder.mkdir()
    layer = {
        "self_attn.q_proj": (_HIDDEN, _HIDDEN),
        "self_attn.k_proj": (_HIDDEN * _KV_HEADS // _HEADS, _HIDDEN),
        "self_attn.v_proj": (_HIDDEN * _KV_HEADS // _HEADS, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HIDDEN),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
        "input_layernorm": (_HIDDEN,),
        "post_attention_layernorm": (_HIDDEN,),
    }
    of_layer = 2 * sum(int(np.prod(shape)) for shape in layer.values())
    layers = max(1, round((gib * 2**30 - 2 * vocabulary * _HIDDEN) / of_layer))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
    }
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    names = list(shapes)
    total = 0
    for shard, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        total += _write_shard(
            folder / f"model-{shard:05}-of-00002.safetensors", {name: shapes[name] for name in part}, holes
        )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    return total


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], holes: bool) -> int:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if holes:
            file.truncate(8 + len(text) + offset)
        else:
            file.writelines(_random_weights(offset))
    return offset


def _random_weights(size: int) -> Iterator[bytes]:
    """Numbers around 0.02 in BF16: the upper halves of float32, 8 MiB at a time; the same block again and again."""
    values = np.random.default_rng(0).standard_normal(_CHUNK_BYTES // 2, np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    for start in range(0, size, _CHUNK_BYTES):
        yield block[: min(_CHUNK_BYTES, size - start)]


def _tokenizer() -> dict[str, Any]:
    """SmolLM's kind of byte-level BPE, with one token for each byte and one merge."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + number) for number in range(len(others))), "th"]
    splits = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {letter: number for number, letter in enumerate(letters)}, "merges": ["t h"]},
    }


def _copy_seconds(source: Path, target: Path) -> float:
    started = time.monotonic()
    hasher = hashlib.sha256()
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as copy:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            copy.write(chunk)
        os.fsync(copy.fileno())
    return time.monotonic() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gib", type=float, default=2.5)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--to", choices=("F16", "BF16", "F32"), default="F16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--holes", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
