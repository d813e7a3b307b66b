"""How pip is asked for the wheel, and how the end of its check is read."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from caching import CacheError
from llama_build.builder import kept
from llama_build.check import Outcome, interpret
from llama_build.rungs import Rung
from llama_build.wheel import build_environment, constraint, pinned_source, pip_command

RUNG = Rung("trial", (("GGML_NATIVE", "ON"), ("LLAVA_BUILD", "OFF")), ("-mno-amx-tile", "-mno-amx-int8"))


def test_the_version_comes_from_the_constraints() -> None:
    text = "# llama-cpp-python==0.0.1\nLlama-Cpp-Python==0.3.36\nnumpy==2.0.0\n"
    assert constraint("llama-cpp-python", text) == "0.3.36"
    with pytest.raises(CacheError, match="make lock"):
        constraint("scipy", text)


def test_the_source_has_a_pinned_sum_for_the_pinned_version() -> None:
    version, sha256 = pinned_source()
    assert version
    assert len(sha256) == 64


def test_pip_verifies_the_source_and_never_takes_a_wheel_that_it_built_before() -> None:
    command = pip_command(Path("requirements.txt"), Path("out"))
    assert "--require-hashes" in command
    assert "--no-cache-dir" in command
    assert command[command.index("--no-binary") + 1] == "llama-cpp-python"


def test_the_rungs_flags_reach_the_build() -> None:
    environ = build_environment({"PATH": "/bin"}, RUNG, Path("/pins.txt"))
    defines = environ["SKBUILD_CMAKE_DEFINE"].split(";")
    assert "GGML_NATIVE=ON" in defines
    assert "CMAKE_CXX_FLAGS=-mno-amx-tile -mno-amx-int8" in defines
    assert environ["PIP_CONSTRAINT"] == environ["PIP_BUILD_CONSTRAINT"] == "/pins.txt"
    assert int(environ["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1
    assert environ["PATH"] == "/bin"


def test_a_chosen_number_of_jobs_is_respected() -> None:
    assert build_environment({"CMAKE_BUILD_PARALLEL_LEVEL": "1"}, RUNG, Path("p"))["CMAKE_BUILD_PARALLEL_LEVEL"] == "1"


def test_a_check_that_is_killed_by_a_signal_names_it() -> None:
    checked = interpret(-signal.SIGSEGV, "", "")
    assert checked.outcome is Outcome.died
    assert "SIGSEGV" in checked.detail


def test_a_check_whose_figures_are_nonsense_is_not_passed() -> None:
    checked = interpret(3, "", "Q4_0: correlation with F16 is 0.02\n")
    assert checked.outcome is Outcome.wrong
    assert "Q4_0" in checked.detail


def test_a_check_that_fails_for_another_reason_stops_the_build_instead_of_changing_flags() -> None:
    with pytest.raises(CacheError, match="No module named numpy"):
        interpret(1, "", "ModuleNotFoundError: No module named numpy\n")


def test_a_passed_check_brings_its_figures() -> None:
    checked = interpret(0, 'noise\n{"Q8_0": {"similarity": 0.99}}\n', "")
    assert checked.outcome is Outcome.passed
    assert checked.figures == {"Q8_0": {"similarity": 0.99}}


@pytest.mark.parametrize("record", ["", "{", '{"outcome": "passed", "wheel": "gone.whl", "size_bytes": 4}'])
def test_a_cache_entry_that_is_not_whole_counts_as_none(tmp_path: Path, record: str) -> None:
    (tmp_path / "build.json").write_text(record)
    assert kept(tmp_path) is None


def test_a_truncated_wheel_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text('{"outcome": "passed", "wheel": "a.whl", "size_bytes": 4}')
    (tmp_path / "a.whl").write_bytes(b"abc")
    assert kept(tmp_path) is None
    (tmp_path / "a.whl").write_bytes(b"abcd")
    found = kept(tmp_path)
    assert found is not None
    assert found.wheel == tmp_path / "a.whl"
