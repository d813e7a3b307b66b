"""What the machine says of its GPUs, without one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from service import machine

MIB = 1 << 20


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nvidia-smi, and a llama-cpp-python built with CUDA; the script that answers."""
    library = tmp_path / "llama_cpp" / "lib"
    library.mkdir(parents=True)
    (library / "libggml-cuda.so").touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "llama_cpp")])
    monkeypatch.setattr(machine.util, "find_spec", lambda _name: found)
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setattr(machine.shutil, "which", lambda _name: str(tool))
    return tool


def answer(tool: Path, script: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o700)


def test_the_memory_of_all_gpus_counts(cuda: Path) -> None:
    answer(cuda, "echo 81559; echo 81559")
    assert machine.gpu_memory_bytes() == 2 * 81559 * MIB


@pytest.mark.parametrize("script", ["exit 9", "echo '[N/A]'", "echo No devices were found", ""])
def test_a_tool_that_does_not_say_means_no_gpu(cuda: Path, script: str) -> None:
    answer(cuda, script)
    assert machine.gpu_memory_bytes() is None


def test_a_build_without_cuda_uses_no_gpu(cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(cuda, "echo 81559")
    monkeypatch.setattr(machine.util, "find_spec", lambda _name: None)
    assert machine.gpu_memory_bytes() is None


def test_a_tool_that_hangs_is_given_up(cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_args: object, **_options: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 1)

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert machine.gpu_memory_bytes() is None
