"""The promise of the header check: nothing but a refusal escapes it, and what it lets pass does not kill llama.cpp.

A taste of tests/chaos, which has a hundred thousand of them.
"""

from __future__ import annotations

from pathlib import Path

from tests.chaos.driver import run_driver


def test_no_accepted_mutant_kills_llama_cpp(tmp_path: Path) -> None:
    arguments = ("--mutants", 200, "--through", 12, "--folder", tmp_path)
    found = run_driver("fuzz_gguf", *arguments, timeout=90)
    assert found["validator"]["found"] == []
    assert found["llama"]["found"] == []
    assert found["validator"]["refused"] > 50
    assert found["llama"]["accepted"] > 5
