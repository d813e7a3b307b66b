"""The `quantry` command: one small file per topic, all clients of the REST API but `serve`, `doctor`, `demo`.

Runs in a process of its own, beside the server. Talks to it over HTTP alone and never opens its database or blobs.
"""

from __future__ import annotations

from service.cli.program import main

__all__ = ["main"]
