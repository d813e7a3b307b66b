"""The checkpoint of a calibration: sums so far in one file, replaced as a whole, and believed only by the same run.

Child processes only. A file that is missing, torn or of another run means starting anew, never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.llama.backend import build

Sums = dict[str, NDArray[np.float64]]
Counts = dict[str, NDArray[np.int64]]

_FORMAT = 1


def fingerprint(model: Path, text: str, *, window: int, together: int, process_output: bool) -> str:
    """A hash of all that the sums depend on but the number of windows: a longer run may go on from a shorter one.

    The model counts by its first bytes (the header), name and size: hashing all of a large file would take minutes.
    """
    status = model.stat()
    with model.open("rb") as file:
        start = hashlib.sha256(file.read(1024 * 1024)).hexdigest()
    parts = (
        _FORMAT,
        build().name,
        (model.name, status.st_size, status.st_mtime_ns, start),
        hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
        (window, together, process_output),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_sums(path: Path, mark: str, sums: Sums, counts: Counts, done: int) -> None:
    """Write the sums over the first `done` windows."""
    names = list(sums)
    about = json.dumps({"fingerprint": mark, "done": done, "names": names}).encode()
    arrays: dict[str, Any] = {"about": np.frombuffer(about, dtype=np.uint8)}
    for index, name in enumerate(names):
        arrays[f"sums{index}"], arrays[f"counts{index}"] = sums[name], counts[name]
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def load_sums(path: Path, mark: str, *, at_most: int) -> tuple[Sums, Counts, int]:
    """Sums, counts and the number of windows in them; empty and 0 unless the file is of this run."""
    try:
        # numpy leaves a file open that it opened itself and that is torn.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["fingerprint"] != mark or not 0 < about["done"] <= at_most:
                return {}, {}, 0
            sums = {name: arrays[f"sums{index}"] for index, name in enumerate(about["names"])}
            counts = {name: arrays[f"counts{index}"] for index, name in enumerate(about["names"])}
            return sums, counts, int(about["done"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}, {}, 0
