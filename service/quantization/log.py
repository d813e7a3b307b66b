"""llama.cpp's quantizer speaks only through its log: this reads it. Pure functions over text.

The lines are those of src/llama-quant.cpp. Names of tensors hold no control characters (the header check sees to
that) and llama.cpp escapes line ends in metadata, so no file can forge a line here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME_AND_TYPE = r"\[ *(?P<index>\d+)/ *(?P<count>\d+)\] (?P<name>.*?) +- \[[ \d,]*\], type = +(?P<type>\w+), "
_STARTED = re.compile(_NAME_AND_TYPE)
_PLANNED = re.compile(_NAME_AND_TYPE + r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<target>\w+)\))?")
_FALLBACK = re.compile(r"warning: (?P<name>.*?) +- ncols +\d+ not divisible by +\d+ \(required for type ")
_NEEDS_IMATRIX = "actually completing this quantization will require an imatrix"


class LogLines:
    """Joins the pieces of llama.cpp's log into lines."""

    def __init__(self) -> None:
        self.partial = ""  # the beginning of the line that is still being written

    def feed(self, piece: str) -> list[str]:
        """Take one piece; the lines that it completes, without their ends."""
        *lines, self.partial = (self.partial + piece).split("\n")
        return lines


@dataclass(frozen=True, slots=True)
class StartedTensor:
    """The beginning of a tensor's line, written when its turn comes. `index` counts from 1."""

    index: int
    count: int
    name: str


def read_started(text: str) -> StartedTensor | None:
    """The tensor whose line begins `text`; None when it is another line, or not enough of one yet."""
    found = _STARTED.match(text)
    return None if found is None else StartedTensor(int(found["index"]), int(found["count"]), found["name"])


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a dry run said: the type each tensor would have, in llama.cpp's order, by ggml's type names."""

    types: dict[str, str]
    fallbacks: tuple[str, ...]  # tensors whose rows do not fill the blocks of the type meant for them
    needs_imatrix: bool


def read_dry_run(lines: Iterable[str]) -> DryRun:
    """Read the log lines of a dry run; lines of other kinds are passed over."""
    types: dict[str, str] = {}
    fallbacks: list[str] = []
    needs_imatrix = False
    for line in lines:
        if planned := _PLANNED.match(line):
            types[planned["name"]] = (planned["target"] or planned["type"]).upper()
        elif fallback := _FALLBACK.match(line):
            fallbacks.append(fallback["name"])
        elif _NEEDS_IMATRIX in line:
            needs_imatrix = True
    return DryRun(types=types, fallbacks=tuple(fallbacks), needs_imatrix=needs_imatrix)
