"""The promise of the header check: what it lets pass does not end llama.cpp by a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"


def run(folder: Path, seed: int, seconds: float) -> dict[str, object]:
    script = Path(__file__).with_name("mutants_through_llama.py")
    done = subprocess.run(
        [sys.executable, str(script), str(GLOSS), str(folder), str(seed), str(seconds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=seconds + 90,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_no_accepted_mutant_kills_llama_cpp(tmp_path: Path) -> None:
    found = run(tmp_path, seed=1, seconds=6)
    assert found["killed"] == []
    assert int(str(found["accepted"])) > 5
    assert int(str(found["refused"])) > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_accepted_mutant_kills_llama_cpp_in_minutes_of_trying(tmp_path: Path) -> None:
    found = run(tmp_path, seed=int.from_bytes(os.urandom(4), "little"), seconds=180)
    assert found["killed"] == []
