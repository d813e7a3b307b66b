"""The servers that quantry is compared with, fetched and built outside the repository, once for each machine.

    .venv/bin/python -m benchmarks.peers

llama-server and llama-bench come from the llama.cpp sources inside the llama-cpp-python source archive that
`scripts/pins.toml` pins: the version that quantry itself runs on, with the flags that quantry's own build takes here
(without AMX where the probe sees it fail). The two Python servers of that archive run on the same libraries, each in
a virtual environment of its own. Everything lies in `$QUANTRY_WHEEL_CACHE/peers`, else `~/.cache/quantry/peers`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))  # the build scripts are no package: they run before anything is installed

from caching import CacheError, cache_root, end_on_signals, fail, lock, publish, say, sha256_of, staging  # noqa: E402
from llama_build.probe import Probe, probe  # noqa: E402
from llama_build.rungs import Mode, Rung, ladder  # noqa: E402
from llama_build.wheel import DISTRIBUTION, constraint, constraints_text, cores, pinned_source  # noqa: E402

# The runner speaks, stops and fails as the build scripts do.
__all__ = [
    "CacheError",
    "Peers",
    "PythonPeer",
    "end_on_signals",
    "find_or_build",
    "pinned_source",
    "python_peer",
    "say",
]

PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")
CHECK_MODEL = ROOT / "demo" / "gloss-5m-f16.gguf"
_BUILD_SECONDS = 60 * 60
_PIP_SECONDS = 15 * 60
_CHECK_SECONDS = 120

# What the rung says about tests, tools and servers is for a wheel; here the tools are what is wanted.
_TOOLS_ON = {
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_NUMBER": "1",
    "LLAMA_BUILD_COMMIT": "sdist",
    # Programs find their libraries beside them, so that the finished folder can be renamed into place.
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
}

# As the documents of each server say; uvicorn with its faster parts, as quantry has it.
REQUIREMENTS = {
    "examples-server": (
        "diskcache",
        "fastapi",
        "jinja2",
        "numpy",
        "openai",
        "pydantic",
        "safetensors",
        "typing-extensions",
        "uvicorn[standard]",
    ),
    "llama_cpp.server": (
        "PyYAML>=5.1",
        "diskcache>=5.6.1",
        "fastapi>=0.100.0",
        "jinja2>=2.11.3",
        "numpy>=1.20.0",
        "pydantic-settings>=2.0.1",
        "sse-starlette>=1.6.1",
        "starlette-context>=0.3.6,<0.4",
        "typing-extensions>=4.5.0",
        "uvicorn[standard]>=0.22.0",
    ),
}


@dataclass(frozen=True)
class Peers:
    """Where the peers lie: a folder of programs and libraries, and the unpacked source archive."""

    programs: Path
    source: Path
    describe: str

    def program(self, name: str) -> Path:
        """The path of one of PROGRAMS."""
        return self.programs / name


@dataclass(frozen=True)
class PythonPeer:
    """An interpreter with one Python server's requirements, and the environment that shows it the libraries."""

    python: Path
    environment: dict[str, str]


def peers_root() -> Path:
    """The folder of everything fetched and built here."""
    return cache_root() / "peers"


def find_or_build(existing: Path | None = None) -> Peers:
    """The peers, built when they are not there yet; `existing` is a CMake build folder to use instead.

    Raises CacheError with the remedy.
    """
    source = fetch_source()
    if existing is not None:
        programs = next((folder for folder in (existing / "bin", existing) if (folder / PROGRAMS[0]).is_file()), None)
        if programs is None:
            raise CacheError(f"{existing} holds no llama-server; build it, or leave --peer-build out")
        return Peers(programs.resolve(), source, "an existing build")
    with tempfile.TemporaryDirectory(prefix="quantry-probe-") as scratch:
        seen = probe(Path(scratch))
    failures = []
    for rung in ladder(Mode.native, seen):
        folder = peers_root() / _key(rung, seen)
        with lock(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "build.json").is_file():
                reason = _build(rung, source, folder)
                if reason:
                    failures.append(f"{rung.name}: {reason}")
                    continue
        return Peers(folder / "bin", source, rung.name + (f" ({rung.reason})" if rung.reason else ""))
    raise CacheError("no build of llama-server works on this machine: " + "; ".join(failures))


def fetch_source() -> Path:
    """The unpacked source archive, fetched through pip and checked against its pinned sum the first time."""
    version, sha256 = pinned_source()
    final = peers_root() / f"source-{version}-{sha256[:12]}"
    with lock(final.with_name(f".{final.name}.lock")):
        if final.is_dir():
            return final
        say(f"fetching the sources of {DISTRIBUTION} {version}, once")
        with staging(final.with_name(f".{final.name}.staging")) as folder:
            requirements = folder / "requirements.txt"
            requirements.write_text(f"{DISTRIBUTION}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--require-hashes", "--no-binary", DISTRIBUTION, "--dest", str(folder / "archive")]
            _run([*command, "--requirement", str(requirements)], _PIP_SECONDS, "the sources were not fetched")
            archives = sorted((folder / "archive").glob("*.tar.gz"))
            if len(archives) != 1 or sha256_of(archives[0]) != sha256:
                raise CacheError(f"what pip fetched is not the pinned archive of {DISTRIBUTION} {version}")
            with tarfile.open(archives[0]) as archive:
                archive.extractall(folder / "unpacked", filter="data")
            (unpacked,) = (folder / "unpacked").iterdir()
            publish(unpacked, final)
    return final


def python_peer(name: str, peers: Peers) -> PythonPeer:
    """One of the two Python servers, its environment made the first time. Raises CacheError when pip cannot."""
    requirements = REQUIREMENTS[name]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    digest = hashlib.sha256(json.dumps([version, *requirements]).encode()).hexdigest()[:12]
    venv = peers_root() / f"venv-{name}-{digest}"
    with lock(venv.with_name(f".{venv.name}.lock")):
        if not (venv / "complete").is_file():
            say(f"installing what {name} needs, once")
            shutil.rmtree(venv, ignore_errors=True)  # not renamed into place: a virtual environment knows its path
            _run([sys.executable, "-m", "venv", str(venv)], _PIP_SECONDS, f"no virtual environment for {name}")
            _pip(venv, requirements)
            (venv / "complete").touch()
        site = peers_root() / f"site-{hashlib.sha256(str(peers.programs).encode()).hexdigest()[:12]}"
        if not (site / "llama_cpp" / "lib").exists():
            shutil.rmtree(site, ignore_errors=True)
            shutil.copytree(
                peers.source / "llama_cpp", site / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__")
            )
            (site / "llama_cpp" / "lib").symlink_to(peers.programs)
    return PythonPeer(venv / "bin" / "python", {"PYTHONPATH": str(site)})


def _key(rung: Rung, seen: Probe) -> str:
    version, _ = pinned_source()
    identity = [sorted(_defines(rung).items()), seen.compiler, seen.libc, seen.native_target]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return f"llama.cpp-{version}-{rung.name}-{digest}"


def _defines(rung: Rung) -> dict[str, str]:
    return rung.cmake_defines() | _TOOLS_ON


def _build(rung: Rung, source: Path, folder: Path) -> str:
    """Build into `folder`; why it does not work here, or nothing."""
    tools = _build_tools()
    with staging(folder.with_name(f".{folder.name}.staging")) as scratch:
        tree = scratch / "tree"
        configure = [str(tools / "cmake"), "-G", "Ninja", "-S", str(source / "vendor" / "llama.cpp"), "-B", str(tree)]
        configure += [f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
        configure += [f"-D{name}={value}" for name, value in _defines(rung).items()]
        say(f"building llama-server ({rung.name}) on {cores()} cores, once: minutes")
        _run(configure, _BUILD_SECONDS, "CMake could not configure llama.cpp")
        build = [str(tools / "cmake"), "--build", str(tree), "--parallel", str(cores()), "--target", *PROGRAMS]
        _run(build, _BUILD_SECONDS, "llama-server did not build")
        reason = _check(tree / "bin")
        if reason:
            say(f"the {rung.name} build does not work here ({reason}); one rung safer")
            return reason
        result = scratch / "result"
        result.mkdir()
        os.replace(tree / "bin", result / "bin")
        record = {"rung": rung.name, "reason": rung.reason, "defines": _defines(rung)}
        (result / "build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        publish(result, folder)
    return ""


def _check(programs: Path) -> str:
    command = [str(programs / "llama-bench"), "-m", str(CHECK_MODEL), "-p", "48", "-n", "4", "-r", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False)
    return "" if done.returncode == 0 else f"llama-bench ended with status {done.returncode}"


def _build_tools() -> Path:
    text = constraints_text()
    pinned = tuple(f"{name}=={constraint(name, text)}" for name in ("cmake", "ninja"))
    venv = peers_root() / f"tools-{hashlib.sha256(' '.join(pinned).encode()).hexdigest()[:12]}"
    with lock(venv.with_name(f".{venv.name}.lock")):
        if not (venv / "complete").is_file():
            shutil.rmtree(venv, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(venv)], _PIP_SECONDS, "no virtual environment for CMake")
            _pip(venv, pinned)
            (venv / "complete").touch()
    return venv / "bin"


def _pip(venv: Path, requirements: tuple[str, ...]) -> None:
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*command, *requirements], _PIP_SECONDS, f"pip could not install {' '.join(requirements)}")


def _run(command: list[str], timeout_seconds: float, problem: str) -> None:
    # A session of its own, so that compilers end with the program that started them, whatever ends this wait.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    if process.returncode != 0:
        raise CacheError(f"{problem}; the end of its words:\n{output[-1500:]}")


def main() -> None:
    """Fetch, build and install everything; print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-build", type=Path, metavar="DIR", help="use this CMake build folder; build nothing")
    arguments = parser.parse_args()
    end_on_signals()
    try:
        peers = find_or_build(arguments.peer_build)
        print(f"llama-server, llama-bench: {peers.programs} ({peers.describe})")
    except CacheError as error:
        fail(error)
    for name in REQUIREMENTS:
        try:
            print(f"{name}: {python_peer(name, peers).python}")
        except CacheError as error:
            print(f"{name}: not available: {error}")


if __name__ == "__main__":
    main()
