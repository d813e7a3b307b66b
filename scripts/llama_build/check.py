"""Proves a wheel in a child process: import it, quantize a small model, decode with each level.

The child is killed by whatever is wrong with the kernels; this side turns its death into a verdict. Knows nothing
about flags.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from caching import CacheError, repository_root

CHILD = Path(__file__).resolve().parent / "check_child.py"
MODEL = Path("demo") / "gloss-5m-f16.gguf"
TIMEOUT_SECONDS = 300
BUILT_IN = "built in"
"""What the child reports as its CPU backend when the library carries one instead of loading one."""
WRONG_NUMBERS = 3
"""Exit status of the child when a level's figures are far from the source's."""


class Outcome(StrEnum):
    """What the check showed."""

    passed = "passed"
    died = "died"
    wrong = "wrong"


@dataclass(frozen=True)
class Checked:
    """The verdict on a wheel, with the child's own figures when it lived to tell them."""

    outcome: Outcome
    detail: str
    figures: dict[str, object]


def install(wheel: Path, target: Path) -> None:
    """Installs the wheel and what it imports into a folder of its own; raises CacheError with pip's last words."""
    constraints = repository_root() / "constraints.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
    command += ["--constraint", str(constraints), str(wheel)]
    environ = dict(os.environ) | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, env=environ)
    if done.returncode != 0:
        raise CacheError(f"the wheel could not be installed for its check: {done.stderr.strip()[-800:]}")


def interpret(returncode: int, output: str, errors: str) -> Checked:
    """Decides from the child's end what happened; raises CacheError when it is not about the kernels. Pure."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return Checked(Outcome.died, f"the check died by {name}", {})
    if returncode == WRONG_NUMBERS:
        return Checked(Outcome.wrong, errors.strip()[-400:] or "the check computed nonsense", {})
    if returncode != 0:
        raise CacheError(f"the wheel's check failed, and not in its kernels:\n{errors.strip()[-1200:]}")
    return Checked(Outcome.passed, "", json.loads(output.strip().splitlines()[-1]))


def decode(installed: Path, scratch: Path, skip_variants: tuple[str, ...] = ()) -> Checked:
    """Runs the child on an installed wheel; seconds on a quiet machine."""
    # -S keeps every other llama_cpp of this interpreter out of sight.
    command = [sys.executable, "-S", "-B", str(CHILD), str(installed), str(repository_root() / MODEL), str(scratch)]
    command += list(skip_variants)
    # A busy neighbour makes spinning OpenMP threads 30 times slower; this is a check, not a race.
    environ = dict(os.environ) | {"OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False, env=environ
        )
    except subprocess.TimeoutExpired as error:
        # Not a verdict on the kernels: remembering it would keep a slower wheel for good.
        raise CacheError(
            f"the wheel's check did not end within {TIMEOUT_SECONDS} s; try again on a quieter machine"
        ) from error
    return interpret(done.returncode, done.stdout, done.stderr)
