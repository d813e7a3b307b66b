"""Measurements of a search, one JSON line each, appended as they come: a search that was cut off goes on after them.

Child processes. The file belongs to one source, text and importance matrix; its first line says which windows of the
text were looked at. A line that was cut short by a crash is passed over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Known:
    """What was measured before and what is measured now: mean KL divergence and its standard error, by types."""

    def __init__(self, path: Path) -> None:
        """Read the file, which need not be there, and open it to add to it."""
        self.windows: int | None = None
        self._of: int | None = None
        self._found: dict[str, tuple[float, float]] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            self._read(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell():
            self._file.write(b"\n")  # ends a line cut short

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self, windows: int, of: int) -> None:
        """Measurements from here on are over `windows` windows `of` a text's; those over others are forgotten."""
        if (self.windows, self._of) != (windows, of):
            self._write({"windows": windows, "of": of})
            self.windows, self._of = windows, of
            self._found.clear()

    def get(self, types: Mapping[str, str]) -> tuple[float, float] | None:
        """Divergence and error of the source with these types, if it was measured."""
        return self._found.get(_key(types))

    def add(self, types: Mapping[str, str], size_bytes: int, mean_kld: float, error: float) -> None:
        """Keep a measurement; `size_bytes` is that of the tensors named."""
        self._found[_key(types)] = (mean_kld, error)
        figures: dict[str, Any] = {"size_bytes": size_bytes, "mean_kld": mean_kld, "error": error}
        if len(types) == 1:
            ((tensor, kind),) = types.items()
            self._write({"tensor": tensor, "type": kind, **figures})
        else:
            self._write({"mix": _key(types), "tensors": len(types), **figures})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            if "windows" in told:
                windows, of = int(told["windows"]), int(told["of"])
                if (self.windows, self._of) != (windows, of):
                    self._found.clear()
                self.windows, self._of = windows, of
                return
            key = told["mix"] if "mix" in told else _key({told["tensor"]: told["type"]})
            figures = float(told["mean_kld"]), float(told["error"])
        except (ValueError, TypeError, KeyError):
            return
        if all(map(math.isfinite, figures)):
            self._found[str(key)] = figures


def _key(types: Mapping[str, str]) -> str:
    lines = "\n".join(f"{tensor}\t{kind}" for tensor, kind in sorted(types.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
