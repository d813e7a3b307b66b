"""What every child process shares: an environment without secrets, and an end that comes with its parent's.

Children are started with `python -m`, never forked, so that no copied lock or library state can hurt them.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import service

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|^QUANTRY_", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@")  # a URL with a password in it


def child_argv(module: str) -> tuple[str, ...]:
    """Command line that runs a module of ours; `-P` keeps the current folder out of what it can import."""
    return (sys.executable, "-P", "-m", module)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The server's environment without anything that may be a secret: the child reads files that strangers made."""
    kept = {
        name: value
        for name, value in environment.items()
        if not _SECRET_NAME.search(name) and not _SECRET_VALUE.search(value)
    }
    package_root = str(Path(service.__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, kept.get("PYTHONPATH"))))
    # On an abort ggml would start a debugger on itself.
    kept["GGML_NO_BACKTRACE"] = "1"
    # How long an idle OpenMP thread spins before it sleeps. The default spins for ever on few cores, and a busy
    # neighbour then costs 10 to 30 times; 10,000 rounds keep the full pace on a quiet machine (docs/measurements.md).
    kept["GOMP_SPINCOUNT"] = "10000"
    return kept


def bind_to_parent() -> None:
    """Called first in a child: no core dumps, no new privileges, and SIGKILL when the parent dies (Linux).

    The channel to the parent closes with it too; that end of file is what ends a child elsewhere.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    parent = os.getppid()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died between the two calls
        os._exit(1)


def signal_name(return_code: int) -> str | None:
    """The name of the signal that ended a process, from asyncio's negative return code; None for a plain exit."""
    if return_code >= 0:
        return None
    try:
        return signal.Signals(-return_code).name
    except ValueError:
        return f"signal {-return_code}"
