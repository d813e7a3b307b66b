"""`python lying_server.py serve`: a server that takes every disk for an empty one, so that writes find out."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class _Roomy:
    """What `os.statvfs` gives, with room for everything."""

    def __init__(self, found: os.statvfs_result) -> None:
        self._found = found
        self.f_bavail = self.f_bfree = self.f_blocks = 1 << 40

    def __getattr__(self, name: str) -> int:
        return getattr(self._found, name)


if __name__ == "__main__":
    statvfs = os.statvfs
    os.statvfs = lambda path: _Roomy(statvfs(path))  # type: ignore[assignment, return-value]
    sys.path.insert(0, str(ROOT))
    runpy.run_module("service", run_name="__main__", alter_sys=True)
