"""The `quantry` command: one small file per topic, all clients of the REST API but `serve`, `doctor`, `demo`.

Runs in a process of its own, beside the server. Talks to it over HTTP alone and never opens its database or blobs.
"""

from __future__ import annotations

import sys

from service.startup import lasting

__all__ = ["main"]


def main() -> None:
    """Run the command; never returns."""
    try:
        with lasting():
            from service.cli.program import main as run
        run()
    except KeyboardInterrupt:  # before a command has begun, which tells of it itself
        sys.exit(130)
