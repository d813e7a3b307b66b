"""Files and folders on the server's own disk that a request names. Both sides; looks, and reads nothing."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from service.domain.errors import InvalidParameter

MODEL_PATHS = "a .gguf file there, or of the folder of a checkpoint"
ADAPTER_PATHS = "a GGUF adapter there, or of the folder of a PEFT adapter"


def check_readable(path: Path, what: str) -> None:
    """Raise `unreadable` unless it is the absolute path of a file or folder that the server can read."""
    with suppress(OSError, ValueError):  # ValueError: a NUL in the path
        mode = path.stat().st_mode
        wanted = os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK
        if path.is_absolute() and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and os.access(path, wanted):
            return
    raise unreadable(path, what)


def unreadable(path: Path, what: str) -> InvalidParameter:
    """One message for all that may be wrong with a path, which asks for `what`: it tells nothing of what lies there."""
    return InvalidParameter(
        f"{path.name[:80]!r} is nothing that the server can read; give the absolute path of {what}, or upload it.",
        param="path",
    )
