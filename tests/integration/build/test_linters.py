"""The files that no test runs as a whole, images, shell scripts and YAML, satisfy their linters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
YAMLLINT = "{extends: default, rules: {line-length: {max: 120}, comments: {min-spaces-from-content: 1}}}"


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "docker/Dockerfile"],
        [
            "shellcheck",
            ".ci/run",
            *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docker/**/*.sh")),
        ],
        ["yamllint", "--strict", "-d", YAMLLINT, "docker-compose.yml"],
    ],
    ids=lambda command: command[0],
)
def test_a_linter_finds_nothing(command: list[str]) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
