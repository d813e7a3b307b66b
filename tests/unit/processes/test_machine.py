"""What the machine has, as the process may use it: GPUs without one, control groups laid out in a folder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
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


@pytest.fixture
def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lays out control groups: what the kernel says this process is in, and files by path."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _pid: set(range(6)), raising=False)

    def lay_out(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return lay_out


@pytest.mark.parametrize(
    ("own", "files", "cores", "quota"),
    [
        ("0::/\n", {}, 6, None),
        ("0::/\n", {"cpu.max": "max 100000"}, 6, None),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2, 2.5),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1, 0.5),
        ("0::/\n", {"cpu.max": "3200000 100000"}, 6, 32.0),
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "300000 100000", "a.slice/b.service/cpu.max": "max 1"}, 3, 3.0),
        ("0::/docker/of-the-host\n", {"cpu.max": "400000 100000"}, 4, 4.0),
        ("7:cpu:/x\n3:memory:/y\n", {"cpu/x/cpu.cfs_quota_us": "150000", "cpu/x/cpu.cfs_period_us": "50000"}, 3, 3.0),
        ("7:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6, None),
        ("nonsense\n", {"cpu.max": "nonsense and more"}, 6, None),
    ],
)  # fmt: skip
def test_no_more_cores_are_used_than_affinity_and_quotas_allow(
    control_groups: Callable[..., None], own: str, files: dict[str, str], cores: int, quota: float | None
) -> None:
    control_groups(own, **files)
    assert machine.cpu_quota() == quota
    assert machine.usable_cores() == cores


def test_the_least_memory_limit_of_all_control_groups_counts(control_groups: Callable[..., None]) -> None:
    control_groups("0::/a/b\n", **{"memory.max": "max", "a/memory.max": str(3 << 20), "a/b/memory.max": str(4 << 20)})
    assert machine.memory_bytes() == 3 << 20
    control_groups("3:memory:/y\n", **{"memory/y/memory.limit_in_bytes": str(1 << 20)})
    assert machine.memory_bytes() == 1 << 20
