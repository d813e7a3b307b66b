"""Giving back pages of a model file that loading has read and computing does not need.

llama.cpp maps the whole file and reads all of it. Tensors that it repacks, or copies to a GPU, then lie in memory
twice. Runs in worker children; knows addresses, nothing of tensors.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def release_mapped_pages(path: Path) -> int:
    """Drop this process's mapped pages of the file; the bytes that were mapped. What is used comes back by itself.

    Nothing is lost: the mapping is read-only, and the pages stay in the system's cache while there is room. Does
    nothing where the system cannot tell its mappings.
    """
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    wanted = os.path.realpath(path)
    released = 0
    for line in lines:
        fields = line.split(maxsplit=5)
        # Shared and without write access: a private page that was written to would be lost.
        if len(fields) == 6 and fields[5] == wanted and fields[1] == "r--s":
            start, end = (int(address, 16) for address in fields[0].split("-"))
            if madvise(start, end - start, mmap.MADV_DONTNEED) == 0:
                released += end - start
    return released
