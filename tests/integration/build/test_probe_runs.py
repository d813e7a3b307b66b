"""The probes are compiled and run here; the check's child decodes for real, and its death is noticed."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from caching import sha256_of
from llama_build.check import BUILT_IN, Outcome, decode
from llama_build.probe import VECTOR_FAMILIES, Verdict, probe, verdict_of

PROBES = Path(__file__).resolve().parents[3] / "scripts" / "llama_build" / "probes"


def test_this_machine_is_probed_in_seconds(tmp_path: Path) -> None:
    seen = probe(tmp_path)
    assert seen.compiler
    assert seen.native_target
    if seen.machine == "x86_64":
        assert set(seen.vectors) == set(VECTOR_FAMILIES)


def test_an_instruction_that_faults_is_broken_and_not_a_crash_of_the_build(tmp_path: Path) -> None:
    program = tmp_path / "trap"
    subprocess.run(
        ["cc", "-x", "c", "-", "-o", program],
        input="int main(void) { __builtin_trap(); }",
        text=True,
        timeout=30,
        check=True,
    )
    assert verdict_of(subprocess.run([program], timeout=30, check=False).returncode) is Verdict.broken


def installed_site() -> Path:
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.parent


@pytest.fixture
def dying_site(tmp_path: Path) -> Path:
    """A folder whose llama_cpp dies as a wheel with AMX does on a machine without it."""
    package = tmp_path / "site" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    return package.parent


def test_the_installed_wheel_quantizes_and_decodes_every_checked_level(tmp_path: Path) -> None:
    checked = decode(installed_site(), tmp_path)
    assert checked.outcome is Outcome.passed, checked.detail
    assert checked.figures["cpu_backend"] == BUILT_IN
    assert {"Q4_0", "Q8_0", "Q4_K_M", "Q6_K"} <= set(checked.figures)


def test_a_wheel_that_dies_is_reported_as_dead_by_its_signal(tmp_path: Path, dying_site: Path) -> None:
    checked = decode(dying_site, tmp_path)
    assert checked.outcome is Outcome.died
    assert "SIGSEGV" in checked.detail


def test_the_demo_model_that_the_check_uses_is_part_of_the_repository() -> None:
    root = Path(__file__).resolve().parents[3]
    assert len(sha256_of(root / "demo" / "gloss-5m-f16.gguf")) == 64


def test_amx_that_the_machine_does_not_have_is_found_broken_when_the_compiler_believes_in_it(tmp_path: Path) -> None:
    program = tmp_path / "amx"
    compiled = subprocess.run(
        ["cc", "-mamx-tile", "-mamx-int8", PROBES / "amx.c", "-o", program],
        capture_output=True,
        timeout=30,
        check=False,
    )
    cpu = Path("/proc/cpuinfo")
    if compiled.returncode != 0 or not cpu.exists() or "amx_tile" in cpu.read_text():
        pytest.skip("needs a compiler that knows AMX on a Linux machine that does not have it")
    assert verdict_of(subprocess.run([program], timeout=30, check=False).returncode) is Verdict.broken
