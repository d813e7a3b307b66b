"""Turns one rung into a wheel: pip fetches the pinned source, checks its sum, and builds it in isolation.

Shows how far ninja is; the whole log goes to a file. Knows nothing about why the flags are what they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from caching import CacheError, pins, repository_root, say
from llama_build.rungs import SLIM_CMAKE, Rung

DISTRIBUTION = "llama-cpp-python"
BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja", "packaging", "pathspec")
TIMEOUT_SECONDS = 40 * 60

_HEARTBEAT_SECONDS = 20.0
_NINJA_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\] ")
# The binding installs its libraries where it opens them; the second copy, the headers and the fully versioned third
# copy of each library (a wheel has no links) only make the wheel bigger.
_LEFT_OUT = ("lib/**", "lib64/**", "include/**", "bin/**", "llama_cpp/lib/*.so.*.*")


def constraint(name: str, constraints: str) -> str:
    """The version that the text of constraints.txt pins for `name`; raises CacheError when it does not."""
    match = re.search(rf"^{re.escape(name)}==(\S+)", constraints, re.MULTILINE | re.IGNORECASE)
    if match is None:
        raise CacheError(f"constraints.txt pins no {name}; run `make lock`")
    return match.group(1)


def constraints_text() -> str:
    """The text of the repository's constraints.txt."""
    return (repository_root() / "constraints.txt").read_text(encoding="utf-8")


def pinned_source() -> tuple[str, str]:
    """Version and SHA-256 of the source archive; raises CacheError when the two pins are about different versions."""
    version = constraint(DISTRIBUTION, constraints_text())
    pin = pins(DISTRIBUTION)
    if pin["version"] != version:
        raise CacheError(
            f"constraints.txt says {DISTRIBUTION} {version}, scripts/pins.toml knows the sum of {pin['version']} only; "
            "put the new source archive's SHA-256 there"
        )
    return version, pin["sdist_sha256"]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pip_command(requirements: Path, output: Path) -> list[str]:
    """The one pip call that downloads, verifies and builds."""
    # pip's cache of built wheels does not know about flags: it would hand back another rung's wheel, or a stock one.
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-cache-dir", "--no-deps", "--require-hashes"]
    return [*command, "--no-binary", DISTRIBUTION, "--wheel-dir", str(output), "--requirement", str(requirements)]


def build_environment(environ: dict[str, str], rung: Rung, build_constraints: Path) -> dict[str, str]:
    """The environment for pip: the rung's flags, build tools pinned, all cores used."""
    pinned = str(build_constraints)
    defines = rung.cmake_defines() | {"CMAKE_PROJECT_INCLUDE": str(SLIM_CMAKE)}
    return environ | {
        # scikit-build-core's own variables: pip does not hand --config-settings to requirements that carry a hash.
        "SKBUILD_CMAKE_DEFINE": ";".join(f"{name}={value}" for name, value in defines.items()),
        "SKBUILD_WHEEL_EXCLUDE": ";".join(_LEFT_OUT),
        # Old pips read the first for the isolated build, new ones the second.
        "PIP_CONSTRAINT": pinned,
        "PIP_BUILD_CONSTRAINT": pinned,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CMAKE_BUILD_PARALLEL_LEVEL": environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(cores())),
    }


def build(rung: Rung, scratch: Path, log_path: Path) -> Path:
    """Builds the wheel into `scratch` and returns its path; raises CacheError with the end of the log."""
    version, sha256 = pinned_source()
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{DISTRIBUTION}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    text = constraints_text()
    build_constraints = scratch / "build-constraints.txt"
    build_constraints.write_text(
        "".join(f"{name}=={constraint(name, text)}\n" for name in BUILD_TOOLS), encoding="utf-8"
    )
    output = scratch / "wheel"
    environ = build_environment(dict(os.environ), rung, build_constraints)
    returncode = _run_showing_progress(pip_command(requirements, output), environ, log_path)
    wheels = sorted(output.glob("*.whl"))
    if returncode != 0 or len(wheels) != 1:
        tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise CacheError(f"building {DISTRIBUTION} {version} ({rung.name}) failed; the end of its log:\n{tail}")
    return wheels[0]


def _run_showing_progress(command: list[str], environ: dict[str, str], log_path: Path) -> int:
    started = shown = time.monotonic()
    # A session of its own: pip, CMake, ninja and the compilers are ended together, whatever ends this process's wait.
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    watchdog = threading.Timer(TIMEOUT_SECONDS, _end_group, (process.pid,))
    watchdog.daemon = True
    watchdog.start()
    try:
        with log_path.open("w", encoding="utf-8") as log:
            for line in process.stdout or ():
                log.write(line)
                step = _NINJA_STEP.match(line)
                now = time.monotonic()
                if step and now - shown >= _HEARTBEAT_SECONDS:
                    shown = now
                    say(f"  compiling llama.cpp: {step[1]}/{step[2]} after {now - started:.0f} s")
        return process.wait(TIMEOUT_SECONDS)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            _end_group(process.pid)
            process.wait(TIMEOUT_SECONDS)


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
