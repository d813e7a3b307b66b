"""The ladder of builds: a wheel that dies is not kept, the next rung is built, and the second call builds nothing.

Compiling takes minutes, so `build` is replaced by one that packs a package that lives or dies, and installing it by
unpacking; checking in a child, locking and keeping are the real ones.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from caching import CacheError
from llama_build import builder
from llama_build.check import BUILT_IN
from llama_build.probe import AMX_FLAGS, Probe, Verdict
from llama_build.rungs import Mode, Rung

SEEN = Probe(
    system="linux",
    machine="x86_64",
    libc="glibc-2.36",
    compiler="g++ 12",
    native_target="0123",
    amx=Verdict.works,
    amx_flags=AMX_FLAGS,
)
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
# Ends the child with a passed check, in place of decoding.
LIVES = f'import os, json\nprint(json.dumps({{"cpu_backend": "{BUILT_IN}"}}), flush=True)\nos._exit(0)\n'


class Compiler:
    """Stands for the minutes of compiling; remembers what was built and decides which rungs make broken wheels."""

    def __init__(self, broken: set[str]) -> None:
        self.broken = broken
        self.built: list[str] = []

    def build(self, rung: Rung, scratch: Path, log: Path) -> Path:
        self.built.append(rung.name)
        log.write_text("built\n")
        wheel = scratch / "llama_cpp_python-0.3.36-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llama_cpp/__init__.py", DIES if rung.name in self.broken else LIVES)
        return wheel


def unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(set())
    monkeypatch.setenv("QUANTRY_WHEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "probe", lambda scratch: SEEN)
    monkeypatch.setattr(builder, "build", made.build)
    monkeypatch.setattr(builder, "install", unpack)
    return made


def test_the_second_call_finds_what_the_first_one_built(compiler: Compiler) -> None:
    first = builder.find_or_build(Mode.native)
    assert builder.find_or_build(Mode.native) == first
    assert first.is_file()
    assert compiler.built == ["native"]


def test_a_wheel_that_dies_in_its_check_is_followed_by_a_safer_one(compiler: Compiler) -> None:
    compiler.broken = {"native"}
    wheel = builder.find_or_build(Mode.native)
    assert compiler.built == ["native", "native-without-amx"]
    assert "native-without-amx" in wheel.parent.name


def test_a_broken_rung_is_remembered_and_not_built_again(compiler: Compiler) -> None:
    compiler.broken = {"native", "native-without-amx"}
    first = builder.find_or_build(Mode.native)
    assert builder.find_or_build(Mode.native) == first
    assert compiler.built == ["native", "native-without-amx", "generic"]


def test_a_broken_wheel_is_never_left_in_the_cache(compiler: Compiler, tmp_path: Path) -> None:
    compiler.broken = {"native", "native-without-amx", "generic", "baseline"}
    with pytest.raises(CacheError, match=r"no build of llama\.cpp works on this machine.*SIGILL"):
        builder.find_or_build(Mode.native)
    assert list(tmp_path.rglob("*.whl")) == []
    assert list(tmp_path.rglob("*.staging")) == []


def test_building_again_can_be_asked_for(compiler: Compiler) -> None:
    builder.find_or_build(Mode.native)
    builder.find_or_build(Mode.native, rebuild=True)
    assert compiler.built == ["native", "native"]


def test_a_build_that_ignored_its_flags_is_refused(compiler: Compiler) -> None:
    with pytest.raises(CacheError, match="ignored its flags"):
        builder.find_or_build(Mode.portable)


def test_cuda_without_its_compiler_is_refused_before_anything_is_built(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CacheError, match="CUDA toolkit"):
        builder.find_or_build(Mode.cuda)
    assert compiler.built == []
