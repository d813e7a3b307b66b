"""A PEFT adapter converted here is what llama.cpp's own convert_lora_to_gguf.py makes of it: every tensor and key.

The default run compares with its recorded results (reference_adapters.json); `pytest -m clients` runs the script.
`python -m tests.integration.gguf.test_reference_adapters PYTHON LLAMA_CPP` makes the record anew.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from service.gguf import convert
from service.gguf.adapters import read_adapter
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import open_tensors
from service.gguf.files import read_header
from service.gguf.peft import convert_adapter
from tests import adapters, checkpoints
from tests.integration.gguf.test_reference import _llama_cpp, _python

RECORD = Path(__file__).with_name("reference_adapters.json")
FAMILIES = ("llama", "mistral-nemo", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
# What the script takes from elsewhere than the adapter, or adds for people alone.
_ABOUT_PEOPLE = ("general.name", "general.basename", "general.size_label", "general.file_type", "general.finetune")


def written(folder: Path, family: str) -> tuple[Path, Path]:
    """A checkpoint, and an adapter for all matrices of its layers: their folders."""
    checkpoint = checkpoints.write(folder / family, family)
    random = np.random.default_rng(11)
    factors: adapters.Factors = {}
    for name, tensor in sorted(open_tensors(Files.of_folder(checkpoint)).items()):
        if name.endswith("_proj.weight"):
            rows, columns = tensor.shape
            a, b = (random.standard_normal(shape, dtype=np.float32) for shape in ((3, columns), (rows, 3)))
            factors[name.removesuffix(".weight")] = (a, b)
    return checkpoint, adapters.write_peft(folder / f"{family}-adapter", factors, dtype="BF16", lora_alpha=5)


def summary(path: Path) -> dict[str, Any]:
    """What a file holds: keys with their values, tensors with shape, type and hash."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "general.base_model.", *_ABOUT_PEOPLE))
        and name != "general.quantization_version"
    }
    tensors = {
        tensor.name: [list(map(int, tensor.shape)), tensor.tensor_type.name, _hash(tensor.data)]
        for tensor in reader.tensors
    }
    return {"fields": fields, "tensors": dict(sorted(tensors.items()))}


def run_reference(python: Path, llama_cpp: Path, folder: Path) -> dict[str, Any]:
    found = {}
    for family in FAMILIES:
        checkpoint, adapter = written(folder, family)
        target = folder / f"{family}.gguf"
        script = [str(python), str(llama_cpp / "convert_lora_to_gguf.py"), "--outfile", str(target)]
        command = [*script, "--base", str(checkpoint), "--outtype", "f32", str(adapter)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(f"{family}: {done.stderr[-3000:]}")
        found[family] = summary(target)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_that_of_the_recorded_reference_and_fits_its_converted_base(family: str, tmp_path: Path) -> None:
    checkpoint, adapter = written(tmp_path, family)
    base_path, target = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    convert.convert(Files.of_folder(checkpoint), base_path, "F16", lambda *_: None)
    base = read_header(base_path)
    convert_adapter(Files.of_folder(adapter), base, target, lambda *_: None)
    read_adapter(target, base)
    assert summary(target) == json.loads(RECORD.read_text())[family]


@pytest.mark.clients
@pytest.mark.timeout(1800)
def test_the_reference_run_now_makes_the_adapters_that_are_recorded(tmp_path: Path) -> None:
    found = run_reference(_python(tmp_path / "environment"), _llama_cpp(tmp_path / "sources"), tmp_path)
    assert found == json.loads(RECORD.read_text())


def _hash(data: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        record = run_reference(Path(sys.argv[1]), Path(sys.argv[2]), Path(temporary))
    # A line for each tensor, so that a change shows which.
    text = json.dumps(record, sort_keys=True).replace('], "blk', '],\n"blk').replace("{", "{\n").replace("}, ", "},\n")
    RECORD.write_text(text + "\n")
