"""Damaged checkpoints, tokenizers, adapters, old and split files and bundles are read or refused, and nothing else.

A taste of tests/chaos, which has thousands of each.
"""

from __future__ import annotations

from pathlib import Path

from tests.chaos.driver import run_driver


def test_damaged_sources_are_read_or_refused(tmp_path: Path) -> None:
    found = run_driver("fuzz_readers", "--folder", tmp_path, "--count", 6, timeout=100)
    assert {name: said["found"] for name, said in found.items() if said["found"]} == {}
    assert sum(said.get("refused", 0) for said in found.values()) > 10
