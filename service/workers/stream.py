"""One request's events on the server side: bounded, cancellable, with exactly one end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from service.domain.errors import SlowReader
from service.domain.generation import Failed, Finished, GenerationEvent, Token


class Stream:
    """An async iterator of Token, then one Finished or Failed.

    Tokens that the reader has not fetched yet are joined; more than `max_buffered_characters` of them means a reader
    that does not read, which is cut off.
    """

    def __init__(self, *, on_cancel: Callable[[], None], max_buffered_characters: int) -> None:
        """`on_cancel` is called at most once, when the reader leaves before the end."""
        self._on_cancel = on_cancel
        self._limit = max_buffered_characters
        self._texts: deque[str] = deque()
        self._buffered = 0
        self._end: Finished | Failed | None = None
        self._given_end = False
        self._wake = asyncio.Event()

    @property
    def ended(self) -> bool:
        """True once nothing more will be put in."""
        return self._end is not None

    def put(self, event: GenerationEvent) -> None:
        """Add an event; ignored after the end."""
        if self._end is not None:
            return
        if isinstance(event, Token):
            self._texts.append(event.text)
            self._buffered += len(event.text)
            if self._buffered > self._limit:
                error = SlowReader("The stream was not read fast enough and was cut off; read it as it comes.")
                self._end = Failed(error.code, error.message)
                self._on_cancel()
        else:
            self._end = event
        self._wake.set()

    def cancel(self) -> None:
        """The reader has left: free what the request holds. Does nothing after the end."""
        if self._end is None:
            self._end = Failed("cancelled", "The client closed the connection.")
            self._on_cancel()
            self._wake.set()

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        while not self._given_end:
            await self._wake.wait()
            self._wake.clear()
            if self._texts:
                text = "".join(self._texts)
                self._texts.clear()
                self._buffered = 0
                yield Token(text)
            if self._end is not None and not self._texts:
                self._given_end = True
                yield self._end
