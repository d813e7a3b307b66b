"""How the end of a probe is read, and what a person without a compiler is told."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from caching import CacheError
from llama_build.probe import Verdict, find_compilers, verdict_of


@pytest.mark.parametrize(
    ("returncode", "verdict"),
    [
        (0, Verdict.works),
        (77, Verdict.absent),
        (-signal.SIGSEGV, Verdict.broken),
        (-signal.SIGILL, Verdict.broken),
        (10, Verdict.broken),
        (11, Verdict.broken),
        (124, Verdict.broken),
    ],
)
def test_only_a_clean_end_means_that_the_instruction_works(returncode: int, verdict: Verdict) -> None:
    assert verdict_of(returncode) is verdict


def test_without_a_compiler_the_message_names_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no C\+\+ toolchain: cc and c\+\+ not found.*build-essential"):
        find_compilers({"PATH": str(tmp_path)})


def test_a_compiler_named_in_the_environment_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no-such-compiler"):
        find_compilers({"PATH": str(tmp_path), "CC": "no-such-compiler", "CXX": "no-such-compiler"})


def test_a_compiler_may_be_named_with_arguments(tmp_path: Path) -> None:
    program = tmp_path / "ccache"
    program.touch()
    program.chmod(0o755)
    environ = {"PATH": str(tmp_path), "CC": "ccache gcc", "CXX": "ccache g++"}
    assert find_compilers(environ) == (["ccache", "gcc"], ["ccache", "g++"])
