"""What the server and the child that looks at an address say to each other. Both sides; the only part of this room that
the server process loads.
"""

from __future__ import annotations

import msgspec

from service.domain.remote import RemoteAccess, RemoteModel


class Look(msgspec.Struct, frozen=True, tag="look"):
    """What to look at, and with what. `memory_bytes` as in `look_up`."""

    address: str
    access: RemoteAccess
    memory_bytes: int = 0


class Seen(msgspec.Struct, frozen=True):
    """What lies there and which level the address means (its `choice`); or what went wrong."""

    model: RemoteModel | None = None
    choice: str | None = None
    code: str | None = None
    message: str = ""
    param: str | None = None
