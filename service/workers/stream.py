"""One request's events on the server side: bounded, paused, cancellable, and each choice with exactly one end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from service.domain.errors import SlowReader
from service.domain.generation import Failed, GenerationEvent, Thought, Token, TokenLogprob, ToolCallDelta

# What an entry of log-probabilities and the head of a call count for beside text: about what they take in JSON.
_LOGPROB_CHARACTERS = 64
_CALL_CHARACTERS = 64


class Stream:
    """An async iterator, for one reader: what choices are made of, and one Finished for each; or one Failed for all.

    Of what the reader has not fetched, a choice's thinking, its text and each of its calls are joined. When that passes
    `pause_characters` the request is paused until the reader takes it; past `max_buffered_characters` the reader is cut
    off.
    """

    def __init__(
        self,
        *,
        on_cancel: Callable[[], None],
        max_buffered_characters: int,
        choices: int = 1,
        pause_characters: int | None = None,
        on_pause: Callable[[], None] | None = None,
        on_resume: Callable[[], None] | None = None,
    ) -> None:
        """`on_cancel` is called at most once, when the reader leaves before the end; nothing is called after it.

        `on_pause` and `on_resume` are called in turns, and only where `pause_characters` is given.
        """
        self._on_cancel = on_cancel
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._limit = max_buffered_characters
        self._pause_limit = max_buffered_characters if pause_characters is None else pause_characters
        self.prompt_tokens = 0  # 0 until the first event
        self._open = set(range(choices))  # choices that have not ended
        self._unread: list[GenerationEvent] = []
        self._ready: deque[GenerationEvent] = deque()  # taken from the unread and joined
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """True once nothing more will be put in."""
        return not self._open

    @property
    def paused(self) -> bool:
        """True while the request waits for its reader."""
        return self._paused

    def put(self, event: GenerationEvent) -> None:
        """Add an event; ignored after the end of its choice."""
        if isinstance(event, Failed):
            if not self._open:
                return
            self._open.clear()
        elif event.choice not in self._open:
            return
        elif isinstance(event, Token):
            self._buffered += len(event.text)
            if event.logprobs:
                self._buffered += _LOGPROB_CHARACTERS * sum(1 + len(entry.top) for entry in event.logprobs)
        elif isinstance(event, Thought):
            self._buffered += len(event.text)
        elif isinstance(event, ToolCallDelta):
            self._buffered += len(event.arguments) + (0 if event.id is None else _CALL_CHARACTERS)
        else:
            self._open.discard(event.choice)
        self._unread.append(event)
        if self._buffered > self._pause_limit and self._open:
            self._hold_back()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """The reader has left: free what the request holds. Does nothing after the end."""
        if self._open:
            self._fail(Failed("cancelled", "The client closed the connection."))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> GenerationEvent:
        if self._ready:
            return self._ready.popleft()
        while not self._unread:
            if not self._open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        unread, self._unread = self._unread, []
        self._buffered = 0
        if self._paused:
            self._paused = False
            if self._open and self._on_resume is not None:
                self._on_resume()
        if len(unread) == 1:
            return unread[0]
        self._ready.extend(_joined(unread))
        return self._ready.popleft()

    def _hold_back(self) -> None:
        if self._buffered > self._limit:
            error = SlowReader("The stream was not read fast enough and was cut off; read it as it comes.")
            self._fail(Failed(error.code, error.message))
        elif not self._paused:
            self._paused = True
            if self._on_pause is not None:
                self._on_pause()

    def _fail(self, failed: Failed) -> None:
        self.put(failed)
        self._on_cancel()


def _joined(events: list[GenerationEvent]) -> list[GenerationEvent]:
    """The same events with one Thought, one Token and one delta of each call for each choice, ahead of the ends.

    Choices are in the order of their first event. A choice's text comes before its calls, as most of it does.
    """
    thoughts: dict[int, list[str]] = {}
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    calls: dict[tuple[int, int], list[ToolCallDelta]] = {}
    ends: list[GenerationEvent] = []
    for event in events:
        if isinstance(event, Token):
            texts.setdefault(event.choice, []).append(event.text)
            if event.logprobs:
                logprobs.setdefault(event.choice, []).extend(event.logprobs)
        elif isinstance(event, Thought):
            thoughts.setdefault(event.choice, []).append(event.text)
        elif isinstance(event, ToolCallDelta):
            calls.setdefault((event.choice, event.index), []).append(event)
        else:
            ends.append(event)
    joined: list[GenerationEvent] = [Thought("".join(parts), choice) for choice, parts in thoughts.items()]
    joined += (Token("".join(parts), choice, tuple(logprobs.get(choice, ()))) for choice, parts in texts.items())
    joined += map(_one_call, calls.values())
    return joined + ends


def _one_call(deltas: list[ToolCallDelta]) -> ToolCallDelta:
    first = deltas[0]
    arguments = "".join(delta.arguments for delta in deltas)
    return ToolCallDelta(first.index, arguments, first.id, first.name, first.choice)
