"""Our conversion held against llama.cpp's: what is compared, and the record of what its converter made.

`python -m tests.integration.gguf.reference PYTHON LLAMA_CPP` runs the reference on the checkpoints of
tests/checkpoints.py and writes reference.json. PYTHON has the packages of REQUIREMENTS; LLAMA_CPP is the folder of
llama.cpp's sources, vendor/llama.cpp in llama-cpp-python's source distribution.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import checkpoints

_LINES = re.compile(r"\], (?=\")|\{(?=\")")

RECORD = Path(__file__).with_name("reference.json")
DRIVER = Path(__file__).with_name("run_reference.py")
REQUIREMENTS = ("torch", "transformers==4.57.6", "sentencepiece", "safetensors", "numpy", "protobuf", "mistral-common")
"""Of transformers the release that llama.cpp's converter asks for; its fifth rewrites tokenizers as it loads them."""

RUNS = {family: [("F32", "f32"), ("F32", "f16"), ("BF16", "bf16")] for family in checkpoints.FAMILIES} | {
    "llama": [("F32", "f32"), ("F32", "f16"), ("F32", "bf16"), ("F16", "bf16"), ("BF16", "f16"), ("BF16", "bf16")]
}
"""Types of the checkpoint's tensors and of the file made of it, by family."""

# What the reference would find by the hash of a real vocabulary; tests/unit/gguf/vocabulary hold our way of finding it.
PRE_TOKENIZERS = {
    "llama": "smollm",
    "llama3": "llama-bpe",
    "mistral-nemo": "tekken",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "qwen3-moe": "qwen2",
    "smollm3": "llama-bpe",
    "bert": "jina-v2-en",
    "roberta": "roberta-bpe",
}

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " two  spaces, and   three\n\nlines\tand tabs ",
    "It's 1984; they'd say I'LL see 3.14159 or 1,000,000!",
    "def main(): return [x for x in range(100)]  # why?\n    pass\n",
    "Über die Brücke, l'été, Привет, мир! 我喜欢茶 これは 🙂🦙",
    "naïve café résumé (unhappiness) walking-runs <tag> ##ing",
    "",
    "a",
)


def summary(path: Path) -> dict[str, dict[str, list[Any]]]:
    """A GGUF file: of each tensor its type, shape and the sha256 of its bytes; of each key its type and value.

    Values longer than a line are given by their sha256 and length. Raises what gguf raises for a file that is none.
    """
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    fields = {
        key: ["/".join(kind.name for kind in field.types), _short(value_of(field))]
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    return {"tensors": tensors, "fields": fields}


def value_of(field: gguf.ReaderField) -> Any:
    """A key's value; texts by their bytes (Latin-1), as not all are UTF-8."""
    if field.types[-1] is gguf.GGUFValueType.STRING:
        texts = [bytes(field.parts[index]).decode("latin-1") for index in field.data]
        return texts if len(field.types) > 1 else texts[0]
    return field.contents()


def _short(value: Any) -> Any:
    text = json.dumps(value)
    if len(text) <= 200:
        return value
    return {"length": len(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}


# ---- differences on purpose ----

IGNORED_KEYS: Mapping[str, str] = {
    "general.name": "The reference makes a title of the folder's name where the card gives none.",
    "general.basename": "The reference guesses it from the folder's name.",
    "general.finetune": "The reference guesses it from the folder's name.",
}
"""Keys that are not compared, each with the reason."""

_SPACE_PREFIX = (
    "The reference asks for a field that the tokenizer's class does not have. As spaces are merged, llama.cpp begins "
    "every word with one all the same."
)
_LISTED = (
    "The reference takes what the ends of a text are from tokenizer.json alone; without it llama.cpp would end texts "
    "only, and take </s> for what is not known."
)
_CODE_GEMMA = "The reference gives CodeGemma's tokens to every Gemma; llama.cpp knows all of them by their texts."

DIFFERENT: Mapping[tuple[str, str], str] = {
    ("llama2-fast", "tokenizer.ggml.scores"): (
        "The reference gives every token of a tokenizer.json without tokenizer.model the score -1000, so that "
        "llama.cpp merges from the left instead of by rank; ours are the ranks, and tokens are as the model's own."
    ),
    ("xlm-roberta", "tokenizer.ggml.add_space_prefix"): _SPACE_PREFIX,
    ("reranker", "tokenizer.ggml.add_space_prefix"): _SPACE_PREFIX,
    ("reranker", "bert.pooling_type"): "The reference leaves it to who serves the model.",
    **{
        ("xlm-roberta-slow", f"tokenizer.ggml.{name}"): _LISTED
        for name in ("add_bos_token", "add_eos_token", "add_sep_token", "seperator_token_id", "unknown_token_id")
    },
    ("gemma3-vision", "tokenizer.ggml.eos_token_id"): (
        "The reference leaves out what is a list; ours is the first, where llama.cpp would preset <bos>."
    ),
    ("mistral-tekken", "tokenizer.ggml.scores"): "The reference writes zeros, which llama.cpp does not read for BPE.",
    ("mistral-tekken", "tokenizer.chat_template"): (
        "The reference writes the name of one that llama.cpp has built in, or its own of the community's; ours is the "
        "one in the checkpoint."
    ),
    **{
        ("gemma", f"tokenizer.ggml.{name}_token_id"): _CODE_GEMMA
        for name in ("prefix", "suffix", "middle", "fsep", "eot")
    },
}
"""Keys of single families that are meant to differ, each with the reason."""


def differences(family: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One line each; empty when all is the same but for what is meant to differ."""
    found = list(_unlike("tensor", ours["tensors"], theirs["tensors"], set()))
    ignored = set(IGNORED_KEYS) | {key for name, key in DIFFERENT if name == family}
    return found + list(_unlike("key", ours["fields"], theirs["fields"], ignored))


def _unlike(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], ignored: set[str]) -> Iterable[str]:
    for name in sorted((set(ours) | set(theirs)) - ignored):
        if name not in ours:
            yield f"{what} {name} is missing: {theirs[name]}"
        elif name not in theirs:
            yield f"{what} {name} is one too many: {ours[name]}"
        elif ours[name] != theirs[name]:
            yield f"{what} {name} is {ours[name]}, not {theirs[name]}"


# ---- running the reference ----


def run_reference(python: Path, llama_cpp: Path, folder: Path) -> dict[str, Any]:
    """What reference.json holds, made anew in `folder`. Raises RuntimeError with what the reference wrote."""
    jobs = [
        {
            "family": family,
            "run": f"{dtype}-{outtype}",
            "checkpoint": str(checkpoints.write(folder / dtype / family, family, dtype=dtype)),
            "outtype": outtype,
            "target": str(folder / f"{family}-{dtype}-{outtype}.gguf"),
            "pre": PRE_TOKENIZERS.get(family, "default"),
            "texts": TEXTS,
        }
        for family, runs in RUNS.items()
        for dtype, outtype in runs
    ]
    command = [str(python), str(DRIVER), str(llama_cpp)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-5000:])
    answer = json.loads(done.stdout.splitlines()[-1])
    families: dict[str, Any] = {}
    for job, told in zip(jobs, answer["answers"], strict=True):
        made = summary(Path(str(job["target"])))
        entry = families.setdefault(
            str(job["family"]), {"tokens": told["tokens"], "fields": made["fields"], "file_types": {}, "tensors": {}}
        )
        entry["file_types"][job["run"]] = made["fields"].pop("general.file_type")
        entry["tensors"][job["run"]] = made["tensors"]
        if made["fields"] != {key: value for key, value in entry["fields"].items() if key != "general.file_type"}:
            raise RuntimeError(f"{job['family']}: keys depend on the type, which the record has no place for")
    versions = answer["versions"] | {"llama-cpp-python": version("llama-cpp-python")}
    return {"made": datetime.now(UTC).date().isoformat(), "versions": versions, "families": families}


def recorded(record: Mapping[str, Any], family: str, dtype: str, outtype: str) -> dict[str, Any]:
    """One file of the record, as `summary` gives it."""
    entry, run = record["families"][family], f"{dtype}-{outtype}"
    fields = {**entry["fields"], "general.file_type": entry["file_types"][run]}
    return {"tensors": entry["tensors"][run], "fields": fields}


def write_record(record: Mapping[str, Any]) -> None:
    """One line a tensor and a key, so that a change shows which."""
    text = json.dumps(record, sort_keys=True)
    RECORD.write_text(_LINES.sub(lambda end: end[0].rstrip() + "\n", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        write_record(run_reference(Path(sys.argv[1]), Path(sys.argv[2]), Path(made_in)))
