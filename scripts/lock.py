#!/usr/bin/env python3
"""Writes constraints.txt: the exact version of everything that quantry's dependencies and extras resolve to today.

Asks pip for the resolution (nothing is installed) and adds the tools that build. Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from caching import CacheError, fail, pins, repository_root, say
from llama_build.wheel import BUILD_TOOLS, DISTRIBUTION

TIMEOUT_SECONDS = 900
TOOLS = ("pip", "setuptools", "wheel", *BUILD_TOOLS)
HEADER = """\
# Exact versions of everything quantry and its extras need, and of the tools that build it. Every install uses it.
# Made by `make lock` (scripts/lock.py: pip resolves pyproject.toml without installing). Do not edit by hand.
"""


def normalized(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project: dict[str, object]) -> list[str]:
    """Runtime dependencies, every extra and the build tools, as written in pyproject.toml."""
    direct = project["dependencies"]
    extras = project["optional-dependencies"]
    if not isinstance(direct, list) or not isinstance(extras, dict):
        raise CacheError("pyproject.toml has no [project] dependencies and optional-dependencies as lists and tables")
    return [*direct, *(line for lines in extras.values() for line in lines), *TOOLS]


def resolve(lines: list[str]) -> dict[str, str]:
    """Name -> version for the whole closure, decided by pip."""
    with tempfile.TemporaryDirectory(prefix="quantry-lock-") as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *lines]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        if done.returncode != 0:
            raise CacheError(f"pip found no resolution: {done.stderr.strip()[-1500:]}")
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normalized(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}


def render(versions: dict[str, str]) -> str:
    """The text of constraints.txt. Pure."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def main() -> None:
    """Resolves and writes."""
    root = repository_root()
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    try:
        versions = resolve(requirements(project))
    except CacheError as error:
        fail(error)
    (root / "constraints.txt").write_text(render(versions), encoding="utf-8")
    say(f"constraints.txt: {len(versions)} distributions")
    if versions[DISTRIBUTION] != pins(DISTRIBUTION)["version"]:
        say(f"put the SHA-256 of {DISTRIBUTION} {versions[DISTRIBUTION]}'s source archive into scripts/pins.toml")


if __name__ == "__main__":
    main()
