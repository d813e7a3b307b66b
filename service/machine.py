"""What this machine has: memory (as the container is allowed), cores, CPU features, GPUs, an id for its rungs."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path

import psutil

_GPU_SECONDS = 10.0
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the control group's limit when that is less."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


def default_memory_budget_bytes() -> int:
    """What models may take when nobody says otherwise: 80 % of `memory_bytes`, the rest is for everything else."""
    return memory_bytes() * 4 // 5


def physical_cores() -> int:
    """Cores to compute on: hyper-threads share one core's arithmetic units."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def cpu_model() -> str:
    """The processor's own name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def description() -> str:
    """The machine in a few words, for people and to tell whether speeds were measured here."""
    return f"{cpu_model()}, {physical_cores()} cores"


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
