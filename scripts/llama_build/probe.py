"""Asks the machine, by running small programs, which of its advertised instructions really work.

Everything risky runs in a child process: a signal there is an answer. Knows nothing about flags or builds.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from caching import CacheError

_PROBES = Path(__file__).resolve().parent / "probes"
_TIMEOUT_SECONDS = 60
_NOT_COMPILED_IN = 77
_HELLO_CXX = "#include <vector>\nint main() { return 0; }\n"

VECTOR_FAMILIES = ("avx2", "fma_f16c", "bmi2", "avx_vnni", "avx512", "avx512_vbmi", "avx512_vnni", "avx512_bf16")
AMX_FLAGS = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")

NO_COMPILER = (
    "no C++ toolchain: {missing} not found. Install one (Debian, Ubuntu: apt-get install build-essential; "
    "Fedora: dnf install gcc-c++ make; macOS: xcode-select --install) or set CC and CXX"
)


class Verdict(StrEnum):
    """What running an instruction showed."""

    works = "works"
    broken = "broken"
    absent = "absent"


@dataclass(frozen=True)
class Probe:
    """What this machine and its compiler can do; the part of a wheel's identity that is not a flag."""

    system: str
    machine: str
    libc: str
    compiler: str
    native_target: str
    """Digest of every macro the compiler defines under -march=native: the CPU as the compiler sees it."""
    amx: Verdict
    amx_flags: tuple[str, ...]
    """The flags that switch AMX off and that this compiler accepts."""
    vectors: dict[str, Verdict] = field(default_factory=dict)
    openmp: bool = False

    @property
    def broken_vectors(self) -> tuple[str, ...]:
        """Vector families that the compiler would use and the machine does not execute."""
        return tuple(name for name, verdict in self.vectors.items() if verdict is Verdict.broken)

    def as_dict(self) -> dict[str, object]:
        """Plain values, for the record kept beside a wheel."""
        return asdict(self)


def verdict_of(returncode: int) -> Verdict:
    """0 works, 77 was not compiled in, anything else (a signal is negative) is broken."""
    if returncode == 0:
        return Verdict.works
    return Verdict.absent if returncode == _NOT_COMPILED_IN else Verdict.broken


def find_compilers(environ: dict[str, str]) -> tuple[list[str], list[str]]:
    """The C and C++ compiler commands that CMake would take too; raises CacheError with the remedy."""
    found = []
    missing = []
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        if environ.get(variable):
            command = shlex.split(environ[variable])
        else:
            command = next(([name] for name in names if shutil.which(name, path=environ.get("PATH"))), [])
        if command and shutil.which(command[0], path=environ.get("PATH")):
            found.append(command)
        else:
            missing.append(command[0] if command else names[0])
    if missing:
        raise CacheError(NO_COMPILER.format(missing=" and ".join(missing)))
    return found[0], found[1]


def _run(command: list[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        # A probe that hangs is as unusable as one that dies.
        return subprocess.CompletedProcess(command, 124, "", "timed out")


def _compile(compiler: list[str], source: str, target: Path, flags: tuple[str, ...]) -> bool:
    return _run([*compiler, "-O1", *flags, str(_PROBES / source), "-o", str(target)]).returncode == 0


def _accepts(compiler: list[str], flag: str) -> bool:
    return _run([*compiler, "-Werror", flag, "-E", "-x", "c", "-"], text="").returncode == 0


def _native_flag(machine: str) -> str:
    return "-march=native" if machine in ("x86_64", "AMD64", "i686") else "-mcpu=native"


def probe(scratch: Path, environ: dict[str, str] | None = None) -> Probe:
    """Compiles and runs the probes in `scratch` (under a second); raises CacheError when there is no compiler."""
    c_compiler, cxx_compiler = find_compilers(dict(os.environ) if environ is None else environ)
    machine = platform.machine()
    native = _native_flag(machine)

    trial = scratch / "trial"
    if _run([*cxx_compiler, "-x", "c++", "-", "-o", str(trial)], text=_HELLO_CXX).returncode != 0:
        raise CacheError(NO_COMPILER.format(missing="a C++ standard library"))
    openmp = _compile(cxx_compiler, "openmp.c", trial, ("-x", "c++", "-fopenmp")) and _run([str(trial)]).returncode == 0

    amx = Verdict.absent
    vectors: dict[str, Verdict] = {}
    if native == "-march=native":
        program = scratch / "amx"
        if _compile(c_compiler, "amx.c", program, (native,)):
            amx = verdict_of(_run([str(program)]).returncode)
        program = scratch / "vectors"
        if _compile(c_compiler, "vectors.c", program, (native,)):
            vectors = {name: verdict_of(_run([str(program), name]).returncode) for name in VECTOR_FAMILIES}

    macros = _run([*c_compiler, native, "-dM", "-E", "-x", "c", "-"], text="").stdout
    return Probe(
        system=sys.platform,
        machine=machine,
        libc="-".join(platform.libc_ver()),
        compiler=(_run([*cxx_compiler, "--version"]).stdout.splitlines() or ["unknown"])[0],
        native_target=sha256("\n".join(sorted(macros.splitlines())).encode()).hexdigest()[:16],
        amx=amx,
        amx_flags=tuple(flag for flag in AMX_FLAGS if _accepts(c_compiler, flag)) if vectors else (),
        vectors=vectors,
        openmp=openmp,
    )
