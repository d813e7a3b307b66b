"""Decides how to build: from what the probe saw to a ladder of flag sets, fastest first. Pure.

The builder climbs down one rung when the wheel of the rung above dies or computes nonsense in the check.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llama_build.probe import Probe, Verdict

SLIM_CMAKE = Path(__file__).resolve().parent / "slim.cmake"
"""Included into the build; its text is part of a wheel's identity, its place is not."""


class Mode(StrEnum):
    """What the wheel is for."""

    native = "native"
    """This machine, every instruction that works here."""
    portable = "portable"
    """Any machine of this architecture: one CPU library per generation, the best one chosen when it is loaded."""
    cuda = "cuda"
    """Portable, plus the CUDA backend as a library that is loaded where there is a GPU."""


@dataclass(frozen=True)
class Rung:
    """One way to build: CMake definitions and extra compiler flags."""

    name: str
    defines: tuple[tuple[str, str], ...]
    compiler_flags: tuple[str, ...] = ()
    reason: str = ""

    @property
    def loads_backends(self) -> bool:
        """Whether backends are libraries of their own, chosen and loaded at run time."""
        return ("GGML_BACKEND_DL", "ON") in self.defines

    def cmake_defines(self) -> dict[str, str]:
        """Every definition handed to CMake, the compiler flags among them."""
        defines = dict(self.defines)
        if self.compiler_flags:
            joined = " ".join(self.compiler_flags)
            defines |= {"CMAKE_C_FLAGS": joined, "CMAKE_CXX_FLAGS": joined}
        return defines


COMMON = (
    ("CMAKE_BUILD_TYPE", "Release"),
    # Nothing in quantry opens libmtmd (images), the tools or the server; the binding does not import them either.
    ("LLAVA_BUILD", "OFF"),
    ("LLAMA_BUILD_TESTS", "OFF"),
    ("LLAMA_BUILD_EXAMPLES", "OFF"),
    ("LLAMA_BUILD_TOOLS", "OFF"),
    ("LLAMA_BUILD_SERVER", "OFF"),
    ("LLAMA_BUILD_APP", "OFF"),
    ("LLAMA_ALL_WARNINGS", "OFF"),
)

_PORTABLE = (
    ("GGML_NATIVE", "OFF"),
    ("GGML_BACKEND_DL", "ON"),
    ("GGML_CPU_ALL_VARIANTS", "ON"),
    # Backends are installed as programs are; they belong beside libggml.so, where the package can find them.
    ("CMAKE_INSTALL_BINDIR", "llama_cpp/lib"),
    ("CMAKE_INSTALL_RPATH", "$ORIGIN"),
)

_CUDA = (("GGML_CUDA", "ON"), ("GGML_CUDA_NCCL", "OFF"))

_BASELINE_OFF = tuple((f"GGML_{name}", "OFF") for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C"))


def ladder(mode: Mode, probe: Probe) -> tuple[Rung, ...]:
    """The rungs to try, fastest first; the first one is what the probe says should work."""
    if mode is Mode.portable:
        return (Rung("portable", COMMON + _PORTABLE),)
    if mode is Mode.cuda:
        return (Rung("cuda", COMMON + _PORTABLE + _CUDA),)

    rungs = []
    native = (("GGML_NATIVE", "ON"),)
    if not probe.broken_vectors:
        if probe.amx is not Verdict.broken:
            rungs.append(Rung("native", COMMON + native))
        # Worth a rung wherever the compiler would use AMX: the probe multiplies one tile, the kernels do more.
        if probe.amx is not Verdict.absent and probe.amx_flags:
            reason = "AMX is advertised and does not work here" if probe.amx is Verdict.broken else ""
            rungs.append(Rung("native-without-amx", COMMON + native, probe.amx_flags, reason))
    reason = f"advertised and not executed here: {', '.join(probe.broken_vectors)}" if probe.broken_vectors else ""
    generic = (*COMMON, ("GGML_NATIVE", "OFF"))
    rungs.append(Rung("generic", generic, reason=reason))
    if probe.machine in ("x86_64", "AMD64"):
        rungs.append(Rung("baseline", generic + _BASELINE_OFF))
    return tuple(rungs)


def wheel_key(version: str, rung: Rung, probe: Probe, environ: dict[str, str]) -> str:
    """The folder name that a wheel is kept under: readable, and different whenever the wheel would be.

    The wheel is tagged py3-none, so the Python ABI has no part in it; the compiler, the C library and the CPU that
    -march=native stands for have.
    """
    identity = {
        "version": version,
        "defines": sorted(rung.cmake_defines().items()),
        "slim": SLIM_CMAKE.read_text(encoding="utf-8"),
        "system": probe.system,
        "libc": probe.libc,
        "compiler": probe.compiler,
        "cpu": probe.native_target if rung.name.startswith("native") else "",
        "environment": {name: environ.get(name, "") for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")},
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return f"llama_cpp_python-{version}-{rung.name}-{probe.machine}-{digest}"
