"""What lies at an address elsewhere: a short-lived child looks. Server process: it opens no connection of its own.

What was seen is remembered for a moment, so that a pull right after a look does not ask twice.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from service.children import child_argv
from service.domain.addresses import parse_address
from service.domain.errors import by_code
from service.domain.reach import admit, origin_of
from service.domain.remote import RemoteAccess, RemoteModel
from service.frames import encode
from service.jobs.one_answer import answer_of
from service.remote.messages import Look, Seen

_AT_A_TIME = 2
_REMEMBERED_FILES = 20_000  # of all that is remembered: a repository may list as many by itself
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
        known = self._recent(parsed.display)
        if known is not None:
            return known
        async with self._turns:
            known = self._recent(parsed.display)  # someone else may have looked meanwhile
            if known is not None:
                return known
            seen = await self._look(parsed.display)
            if seen.model is None or seen.choice is None:
                raise by_code(seen.code or "")(seen.message, param=seen.param)
            self._remember(parsed.display, seen.model, seen.choice)
        return seen.model, seen.choice

    def _recent(self, address: str) -> tuple[RemoteModel, str] | None:
        """What was seen there a moment ago; what was seen earlier is forgotten."""
        oldest = time.monotonic() - _REMEMBERED_SECONDS
        self._known = {address: seen for address, seen in self._known.items() if seen[0] >= oldest}
        known = self._known.get(address)
        return None if known is None else (known[1], known[2])

    def _remember(self, address: str, model: RemoteModel, choice: str) -> None:
        self._known[address] = (time.monotonic(), model, choice)
        while sum(_files_of(model) for _, model, _ in self._known.values()) > _REMEMBERED_FILES:
            del self._known[next(iter(self._known))]

    async def _look(self, address: str) -> Seen:
        output = await answer_of(
            self._argv,
            encode(Look(address, self.access, self.memory_bytes)),
            _SECONDS,
            late=f"The other server did not answer within {_SECONDS:g} seconds; try again later.",
            died="The process that looks at the address was killed; try again.",
        )
        return await asyncio.to_thread(msgspec.json.decode, output, type=Seen)


def _files_of(model: RemoteModel) -> int:
    return 1 + sum(len(level.files) for level in model.levels)
