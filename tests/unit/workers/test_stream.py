"""Promises of a stream: order, exactly one end, a bound on what an idle reader may pile up."""

from __future__ import annotations

from service.domain.generation import Failed, Finished, FinishReason, GenerationEvent, Timings, Token, Usage
from service.workers.stream import Stream

DONE = Finished(FinishReason.STOP, Usage(1, 2), Timings())


async def read(stream: Stream) -> list[GenerationEvent]:
    return [event async for event in stream]


async def test_tokens_come_in_order_and_the_end_comes_once() -> None:
    cancelled: list[bool] = []
    stream = Stream(on_cancel=lambda: cancelled.append(True), max_buffered_characters=100)
    for event in (Token("a"), Token("b"), DONE, DONE, Token("late")):
        stream.put(event)
    assert await read(stream) == [Token("ab"), DONE]
    stream.cancel()
    assert cancelled == []


async def test_a_reader_that_does_not_read_is_cut_off_and_its_request_cancelled() -> None:
    cancelled: list[bool] = []
    stream = Stream(on_cancel=lambda: cancelled.append(True), max_buffered_characters=10)
    stream.put(Token("0123456789"))
    stream.put(Token("x"))
    events = await read(stream)
    assert cancelled == [True]
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "slow_reader"


async def test_cancelling_frees_the_request_once() -> None:
    cancelled: list[bool] = []
    stream = Stream(on_cancel=lambda: cancelled.append(True), max_buffered_characters=10)
    stream.cancel()
    stream.cancel()
    assert cancelled == [True]
