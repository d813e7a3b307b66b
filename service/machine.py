"""What this machine has: memory and cores (as the container is allowed), CPU features, GPUs, an id for its rungs."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path

import psutil

_GPU_SECONDS = 10.0
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the least limit of its control groups when that is less."""
    total = int(psutil.virtual_memory().total)
    limits = _settings("memory", "memory.max") + _settings("memory", "memory.limit_in_bytes")
    return min([total, *(int(text) for text in limits if text.isdigit())])


def default_memory_budget_bytes() -> int:
    """What models may take when nobody says otherwise: 80 % of `memory_bytes`, the rest is for everything else."""
    return memory_bytes() * 4 // 5


def usable_cores() -> int:
    """Cores to compute on: hyper-threads share one core's arithmetic units.

    No more than the process may run on, nor than its CPU quota pays for: threads that wait for one that is held back
    lose more than that one.
    """
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups of this process allow it; None for all there is."""
    shares = [text.split() for text in _settings("cpu", "cpu.max")]
    quotas, periods = _settings("cpu", "cpu.cfs_quota_us"), _settings("cpu", "cpu.cfs_period_us")
    shares += [list(pair) for pair in zip(quotas, periods, strict=False)]
    found = [
        int(share[0]) / int(share[1])
        for share in shares
        if len(share) == 2 and share[0].isdigit() and share[1].isdigit() and int(share[1])
    ]
    return min(found, default=None)


def cpu_model() -> str:
    """The processor's own name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def description() -> str:
    """The machine in a few words, for people and to tell whether speeds were measured here."""
    return f"{cpu_model()}, {usable_cores()} cores"


def available_bytes() -> int:
    """Memory that is free now, or can be freed without hurting anybody."""
    return int(psutil.virtual_memory().available)


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that the kernels of llama.cpp can use, of those the processor reports (x86; else empty)."""
    known = (
        "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
        "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    )  # fmt: skip
    present = set(_cpuinfo("flags").split())
    return tuple(name for name in known if name in present)


def gpu_memory_bytes() -> int | None:
    """Memory of all NVIDIA GPUs together, free or not; None without one that the installed llama.cpp could use.

    llama.cpp spreads layers over all of them.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None or not _has_cuda():
        return None
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) << 20 for line in said.split() if line.isdigit()]
    return sum(sizes) or None


def _has_cuda() -> bool:
    """Whether llama-cpp-python was built with CUDA; looked up without importing it."""
    found = util.find_spec("llama_cpp")
    folders = found.submodule_search_locations if found is not None else None
    return any(True for folder in folders or () for _ in Path(folder).glob("lib/*ggml-cuda*"))


def machine_id() -> str:
    """Changes when the processor or the llama.cpp build changes: what a remembered rung depends on."""
    facts = "\n".join((platform.machine(), cpu_model(), _cpuinfo("flags"), binding_version()))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def binding_version() -> str:
    """Version of the installed llama-cpp-python, without importing it."""
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "not installed"


def _settings(controller: str, name: str) -> list[str]:
    """What a setting says in the control groups that this process is in, its own first; both versions of the interface.

    Inside a container the root of what is mounted is its own group, whatever path the kernel tells.
    """
    folders = dict.fromkeys(
        root / Path(*path.parts[:depth])
        for root in (_CGROUPS, _CGROUPS / controller)
        for path in _own_cgroups(controller)
        for depth in range(len(path.parts), -1, -1)
    )
    found = []
    for folder in folders:
        try:
            found.append((folder / name).read_text().strip())
        except OSError:
            continue
    return found


def _own_cgroups(controller: str) -> list[Path]:
    """The control groups of this process, relative to where they are mounted."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        lines = []
    fields = [line.split(":", 2) for line in lines]
    mine = [
        path
        for _, controllers, path in (each for each in fields if len(each) == 3)
        if not controllers or controller in controllers.split(",")
    ]
    return [Path(path.lstrip("/")) for path in mine] or [Path()]


def _cpuinfo(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
