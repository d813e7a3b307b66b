"""Model files from before GGUF version 2, made into current ones: GGUF version 1, and ggjt (llama.cpp of 2023).

Runs in child processes, on files that a stranger chose. Weights keep their bytes: what is laid out
otherwise than today is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from service.domain.errors import InvalidModel
from service.gguf.header import MAGIC
from service.gguf.legacy import ggjt, gguf_v1
from service.gguf.rewriting import Progress, header_bytes, write_file

_FIRST_BYTES = 8


def is_legacy(path: Path) -> bool:
    """Whether the file is of such a format, or of one still older, which `upgrade` refuses with a remedy.

    False for what is no file that can be read.
    """
    try:
        return _is_gguf_v1(start := _start(path)) or start[:4] in ggjt.MAGICS
    except (OSError, ValueError):
        return False


def upgrade(source: Path, target: Path, progress: Progress) -> str:
    """Leave the model as GGUF version 3 at `target`, which must not exist, fsynced; what it was, for people.

    Memory is that of the metadata. Raises InvalidModel, OSError.
    """
    start = _start(source)
    if _is_gguf_v1(start):
        found = gguf_v1.read(source)
    elif start[:4] in ggjt.MAGICS:
        found = ggjt.read(source)
    else:
        raise InvalidModel("The file is neither GGUF version 1 nor ggjt; give a .gguf file.")
    tensors = [part.tensor for part in found.parts]
    write_file(target, header_bytes(found.pairs, tensors, found.alignment), found.parts, found.alignment, progress)
    return found.description


def _start(path: Path) -> bytes:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, _FIRST_BYTES, 0)
    finally:
        os.close(descriptor)


def _is_gguf_v1(start: bytes) -> bool:
    return start == MAGIC + (1).to_bytes(4, "little")
