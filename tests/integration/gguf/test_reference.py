"""A checkpoint converted here is what llama.cpp's own converter makes of it: every tensor, key and token.

The default run compares with the recorded results of that converter (reference.json); `pytest -m clients` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import gguf
import pytest

from service.gguf import convert
from service.gguf.checkpoint_files import Files
from service.llama.model import Model
from tests import checkpoints
from tests.integration.gguf import reference

RECORD = json.loads(reference.RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """The GGUF file that we make of a family's checkpoint."""
    folder = tmp_path_factory.mktemp("converted")

    @cache
    def make(family: str, dtype: str, outtype: str) -> Path:
        source = folder / dtype / family
        if not source.exists():
            checkpoints.write(source, family, dtype=dtype)
        target = folder / f"{family}-{dtype}-{outtype}.gguf"
        convert.convert(Files.of_folder(source), target, outtype.upper(), lambda part, step: None)
        return target

    return make


def test_the_record_has_every_family_and_run() -> None:
    runs = {family: {f"{dtype}-{outtype}" for dtype, outtype in runs} for family, runs in reference.RUNS.items()}
    assert {family: set(entry["tensors"]) for family, entry in RECORD["families"].items()} == runs


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_tensors_and_keys_are_those_of_the_recorded_reference(
    family: str, converted: Callable[[str, str, str], Path]
) -> None:
    for dtype, outtype in reference.RUNS[family]:
        ours = reference.summary(converted(family, dtype, outtype))
        theirs = reference.recorded(RECORD, family, dtype, outtype)
        assert reference.differences(family, ours, theirs) == [], (dtype, outtype)


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_llama_cpp_cuts_texts_as_the_models_own_tokenizer_does(
    family: str, converted: Callable[[str, str, str], Path]
) -> None:
    """As `tokenizers` and `sentencepiece` did when the record was made."""
    model = Model(converted(family, "F32", "f16"), gpu_layers=0, use_extra_buffers=False)
    try:
        for text, tokens in zip(reference.TEXTS, RECORD["families"][family]["tokens"], strict=True):
            assert model.tokenize(text, add_special=False, parse_special=True) == tokens, text
    finally:
        model.close()


def test_scores_by_rank_are_needed_where_tokenizer_json_stands_alone(
    converted: Callable[[str, str, str], Path], tmp_path: Path
) -> None:
    """With the reference's scores, all the same, llama.cpp cuts the same texts otherwise."""
    path = Path(shutil.copy(converted("llama2-fast", "F32", "f16"), tmp_path))
    field = gguf.GGUFReader(path, "r+").get_field("tokenizer.ggml.scores")
    assert field is not None
    for index in field.data:
        field.parts[index][0] = -1000.0
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    tokens = [model.tokenize(text, add_special=False, parse_special=True) for text in reference.TEXTS]
    model.close()
    assert tokens != RECORD["families"]["llama2-fast"]["tokens"]


@pytest.mark.clients
@pytest.mark.timeout(1800)
def test_the_reference_run_now_makes_what_is_recorded(tmp_path: Path) -> None:
    """torch and the rest are installed from PyPI into an environment of their own (gigabytes), or taken from the one
    that QUANTRY_REFERENCE_PYTHON names. llama.cpp's sources come out of the source distribution of the llama-cpp-python
    that is installed here, or lie where QUANTRY_LLAMA_CPP says.
    """
    record = reference.run_reference(_python(tmp_path / "environment"), _llama_cpp(tmp_path / "sources"), tmp_path)
    for family, runs in reference.RUNS.items():
        assert record["families"][family]["tokens"] == RECORD["families"][family]["tokens"], family
        for dtype, outtype in runs:
            now, then = (reference.recorded(each, family, dtype, outtype) for each in (record, RECORD))
            assert now == then, (family, dtype, outtype)


def _python(folder: Path) -> Path:
    named = os.environ.get("QUANTRY_REFERENCE_PYTHON")
    if named:
        return Path(named)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *reference.REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode:
        pytest.skip(f"the reference does not install here: {done.stderr.strip().splitlines()[-1][:300]}")
    return python


def _llama_cpp(folder: Path) -> Path:
    named = os.environ.get("QUANTRY_LLAMA_CPP")
    if named:
        return Path(named)
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
    # pip reads the metadata of what it downloads, for which it installs the build system; nothing is compiled.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    archives = list(folder.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip(f"the sources of llama.cpp cannot be had here: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
