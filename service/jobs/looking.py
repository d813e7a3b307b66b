"""What lies at an address elsewhere: a short-lived child looks. Server process: it opens no connection of its own.

What was seen is remembered for a moment, so that a pull right after a look does not ask twice.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from service.children import child_argv
from service.domain.errors import by_code
from service.domain.remote import RemoteAccess, RemoteModel, admit, origin_of, parse_address
from service.frames import encode
from service.jobs.one_answer import answer_of
from service.remote.messages import Look, Seen

_AT_A_TIME = 2
_REMEMBERED = 64
_REMEMBERED_SECONDS = 15.0
_SECONDS = 60.0


class Looks:
    """Looks at addresses, two at a time."""

    def __init__(
        self,
        access: RemoteAccess,
        memory_bytes: int = 0,
        argv: tuple[str, ...] = child_argv("service.remote.listing"),
    ) -> None:
        """`memory_bytes` is what a recommended level should fit in, 0: nothing is known. `argv` starts the child."""
        self.access = access
        self.memory_bytes = memory_bytes
        self._argv = argv
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._known: dict[str, tuple[float, RemoteModel, str]] = {}

    async def at(self, address: str) -> tuple[RemoteModel, str]:
        """What lies there, and the `choice` of the level that the address means.

        Raises InvalidParameter, Forbidden, ModelNotFound, NotSupported, RemoteRefused, RemoteFailed, DeadlineExceeded,
        JobChildDied.
        """
        parsed = parse_address(address)
        admit(origin_of(parsed, self.access), self.access.hosts)
        known = self._known.get(parsed.display)
        if known is not None and time.monotonic() - known[0] < _REMEMBERED_SECONDS:
            return known[1], known[2]
        async with self._turns:
            seen = await self._look(parsed.display)
        if seen.model is None or seen.choice is None:
            raise by_code(seen.code or "")(seen.message, param=seen.param)
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known.pop(parsed.display, None)
        self._known[parsed.display] = (time.monotonic(), seen.model, seen.choice)
        return seen.model, seen.choice

    async def _look(self, address: str) -> Seen:
        output = await answer_of(
            self._argv,
            encode(Look(address, self.access, self.memory_bytes)),
            _SECONDS,
            late=f"The other server did not answer within {_SECONDS:g} seconds; try again later.",
            died="The process that looks at the address was killed; try again.",
        )
        return await asyncio.to_thread(msgspec.json.decode, output, type=Seen)
