"""Vectors on their way out: float32, little-endian, as numbers. For every dialect."""

from __future__ import annotations

import sys
from array import array


def numbers(vector: bytes) -> list[float]:
    """The numbers of one vector."""
    found = array("f", vector)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()
