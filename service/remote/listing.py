"""`python -m service.remote.listing`: looks at one address and says what lies there, as JSON. A short-lived child.

It reads one frame, which holds the token if there is one, and writes one document. It leaves with its parent.
"""

from __future__ import annotations

import resource
import sys

import msgspec

from service.children import bind_to_parent
from service.domain.errors import QuantryError, RemoteFailed
from service.frames import FrameReader
from service.remote.guard import Network
from service.remote.lookup import look_up
from service.remote.messages import Look, Seen
from service.remote.patience import Patience

_MEMORY_BYTES = 4 * 1024**3
# Someone waits for the answer.
_PATIENCE = Patience(tries=3, longest_pause_seconds=5.0)


def main() -> int:
    """Look, and say what was seen."""
    bind_to_parent()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    frames: FrameReader[Look] = FrameReader(Look)
    look = frames.read_blocking(sys.stdin.buffer)
    if look is None:
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(_seen(look)))
    return 0


def _seen(look: Look) -> Seen:
    try:
        network = Network(look.access)
        found = look_up(look.address, network, memory_bytes=look.memory_bytes, patience=_PATIENCE)
    except QuantryError as problem:
        return Seen(code=problem.code, message=problem.message, param=problem.param)
    except MemoryError:
        return Seen(code=RemoteFailed.code, message="The other server's answer takes more memory than it should.")
    return Seen(found.model, found.level.choice)


if __name__ == "__main__":
    sys.exit(main())
