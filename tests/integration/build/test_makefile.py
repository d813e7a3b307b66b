"""`make` says what it will do and what is missing; the long targets are run by CI itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def make(*arguments: str, folder: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("MAKE")}, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_what_people_type() -> None:
    listed = {line.split()[1] for line in make("help").stdout.splitlines()}
    assert {"demo", "test", "check", "lint", "lock", "clean", "wheel"} <= listed


def test_tests_and_demo_fetch_the_model_that_they_need() -> None:
    for target in ("demo", "check"):
        assert "scripts/fetch_smollm2.py" in make("--dry-run", target).stdout


def test_every_install_is_constrained(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    planned = make("--dry-run", "setup", folder=tmp_path).stdout
    installs = [line for line in planned.splitlines() if "pip install" in line]
    assert len(installs) >= 4
    assert all("--constraint constraints.txt" in line for line in installs)


def test_without_a_new_enough_python_the_message_says_so(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "rm", "awk", "mkdir", "touch", "make"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name in ("python3", "python3.11"):
        # As a version manager's shim does for a version that is not installed.
        (programs / name).write_text("#!/bin/sh\nexit 127\n")
        (programs / name).chmod(0o755)
    done = make(".venv/.stamps/venv", folder=tmp_path, PATH=str(programs))
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
