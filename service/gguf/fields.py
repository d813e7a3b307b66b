"""A key-value pair that is going to be written into a GGUF file.

Runs in job children. Says nothing of where the value comes from, or of how its bytes are laid out (`writing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """`type` is "str", "bool", "u32", "i32", "u64", "f32", or for sequences "arr[str]", "arr[u8]", "arr[i32]", ...

    `value` is the Python value. Strings may be given as bytes where they are no UTF-8.
    """

    key: str
    type: str
    value: Any
