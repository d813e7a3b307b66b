"""Work that Ollama's dialect tells of as it goes, `create` and `pull`: a status a line, and its error as the last."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from service.api.responses import Dialect
from service.api.streams import error_event, line
from service.domain.errors import QuantryError

Statuses = AsyncGenerator[dict[str, Any], None]


async def lines(statuses: Statuses) -> AsyncGenerator[bytes, None]:
    """The statuses as a stream sends them."""
    try:
        async with aclosing(statuses):
            async for status in statuses:
                yield line(status)
    except QuantryError as error:
        yield error_event(error, Dialect.OLLAMA)


async def drained(statuses: Statuses) -> None:
    """The work alone. Raises what it ends with."""
    async with aclosing(statuses):
        async for _ in statuses:
            pass
