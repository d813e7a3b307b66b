"""A build of llama.cpp is asked in a child, so one that does not suit the processor is a finding and no crash."""

from __future__ import annotations

import sys

import pytest

from service.cli.doctor import ask_llama


def test_the_build_that_is_installed_says_what_it_is() -> None:
    build = ask_llama()
    assert build.failure is None
    assert "llama.cpp" in build.name
    assert build.features


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise ImportError('no library')", "no library"),
        ("print('hello')", "not JSON"),
    ],
)
def test_a_build_that_dies_is_told_by_how_it_died(script: str, words: str) -> None:
    assert words in str(ask_llama((sys.executable, "-c", script)).failure)
