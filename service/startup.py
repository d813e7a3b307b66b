"""What a process makes at its start and keeps to its end, kept from the garbage collector. For every process.

Imports make half a million objects that refer to one another and never go. While they come the collector would walk
over them again and again, a third of the time of a start; later each full collection, and the end of the process,
would walk over them once more.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Nothing is collected within the block; what is there at its end is never looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
