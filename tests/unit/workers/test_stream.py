"""Promises of a stream: order, exactly one end for each choice, a bound on what an idle reader may pile up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    Thought,
    Timings,
    Token,
    TokenChance,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from service.workers.stream import Stream

DONE = Finished(FinishReason.STOP, Usage(1, 2), Timings())
FAILED = Failed("worker_died", "Send it again.")


@dataclass
class Calls:
    """What a stream has asked for, in order."""

    made: list[str] = field(default_factory=list)

    def stream(self, **options: Any) -> Stream:
        given = {"max_buffered_characters": 100, **options}
        return Stream(
            on_cancel=lambda: self.made.append("cancel"),
            on_pause=lambda: self.made.append("pause"),
            on_resume=lambda: self.made.append("resume"),
            **given,
        )


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def read(stream: Stream) -> list[GenerationEvent]:
    return [event async for event in stream]


def entry(token: bytes, top: int = 0) -> TokenLogprob:
    return TokenLogprob(token, -0.5, (TokenChance(token, -0.5),) * top)


async def test_tokens_come_in_order_and_the_end_comes_once(calls: Calls) -> None:
    stream = calls.stream()
    for event in (Token("a"), Token("b"), DONE, DONE, Token("late")):
        stream.put(event)
    assert stream.ended
    assert await read(stream) == [Token("ab"), DONE]
    stream.cancel()
    assert calls.made == []


async def test_a_reader_that_keeps_up_gets_every_token_by_itself(calls: Calls) -> None:
    stream = calls.stream()
    reading = asyncio.create_task(read(stream))
    for event in (Token("a"), Token("b"), DONE):
        stream.put(event)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await reading == [Token("a"), Token("b"), DONE]


async def test_each_choice_ends_once_and_the_last_ends_the_stream(calls: Calls) -> None:
    stream = calls.stream(choices=2)
    first, second = replace(DONE, choice=0), replace(DONE, choice=1)
    for event in (Token("a", 1), Token("b", 0), Token("c", 1), second, second, Token("late", 1), Token("d", 0)):
        stream.put(event)
    assert not stream.ended
    assert [await anext(stream) for _ in range(3)] == [Token("ac", 1), Token("bd", 0), second]
    stream.put(first)
    assert stream.ended
    assert await read(stream) == [first]


async def test_one_failure_ends_all_choices(calls: Calls) -> None:
    stream = calls.stream(choices=3)
    for event in (Token("a", 2), replace(DONE, choice=0), FAILED, FAILED, replace(DONE, choice=1)):
        stream.put(event)
    assert await read(stream) == [Token("a", 2), replace(DONE, choice=0), FAILED]


async def test_logprobs_are_joined_with_their_texts(calls: Calls) -> None:
    stream = calls.stream(choices=2, max_buffered_characters=10_000)
    stream.put(Token("", 0, (entry(b"x"), entry(b"y"))))
    stream.put(Token("xy", 0))
    stream.put(Token("p", 1, (entry(b"p"),)))
    stream.put(Token("z", 0, (entry(b"z"),)))
    assert await anext(stream) == Token("xyz", 0, (entry(b"x"), entry(b"y"), entry(b"z")))
    assert await anext(stream) == Token("p", 1, (entry(b"p"),))


async def test_a_late_reader_pauses_its_request_until_it_reads(calls: Calls) -> None:
    stream = calls.stream(pause_characters=10)
    stream.put(Token("0123456789"))
    assert calls.made == []
    stream.put(Token("a"))
    stream.put(Token("b"))
    assert (calls.made, stream.paused) == (["pause"], True)
    assert await anext(stream) == Token("0123456789ab")
    assert (calls.made, stream.paused) == (["pause", "resume"], False)
    stream.put(Token("0123456789abc"))
    stream.put(DONE)
    assert await read(stream) == [Token("0123456789abc"), DONE]
    assert calls.made == ["pause", "resume", "pause"], "nothing is resumed after the end"


async def test_logprobs_count_like_text(calls: Calls) -> None:
    stream = calls.stream(pause_characters=500, max_buffered_characters=5000)
    stream.put(Token("", 0, (entry(b"x", top=20),)))
    assert calls.made == ["pause"]


async def test_a_reader_that_does_not_read_is_cut_off_and_its_request_cancelled(calls: Calls) -> None:
    stream = calls.stream(pause_characters=5, max_buffered_characters=10)
    stream.put(Token("0123456789"))
    stream.put(Token("x"))
    events = await read(stream)
    assert calls.made == ["pause", "cancel"]
    assert events[:-1] == [Token("0123456789x")]
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "slow_reader"


async def test_cancelling_frees_the_request_once(calls: Calls) -> None:
    stream = calls.stream(choices=2)
    stream.cancel()
    stream.cancel()
    assert calls.made == ["cancel"]
    assert [event.code for event in await read(stream) if isinstance(event, Failed)] == ["cancelled"]


EVENTS = st.one_of(
    st.builds(Token, st.text(max_size=8), st.integers(0, 2)),
    st.builds(lambda choice: replace(DONE, choice=choice), st.integers(0, 2)),
    st.just(FAILED),
)


@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=30))
def test_no_text_is_lost_or_comes_after_its_end_however_it_is_read(script: list[tuple[GenerationEvent, bool]]) -> None:
    async def run() -> tuple[list[GenerationEvent], Calls]:
        calls = Calls()
        stream = calls.stream(choices=3, pause_characters=6, max_buffered_characters=10_000)
        reading = asyncio.create_task(read(stream))
        for event, yields in script:
            stream.put(event)
            if yields:
                await asyncio.sleep(0)
        stream.cancel()
        return await reading, calls

    got, calls = asyncio.run(run())
    texts, ended, failed = {0: "", 1: "", 2: ""}, set(), False
    for event, _ in script:
        if failed or (not isinstance(event, Failed) and event.choice in ended) or len(ended) == 3:
            continue
        if isinstance(event, Token):
            texts[event.choice] += event.text
        elif isinstance(event, Finished):
            ended.add(event.choice)
        else:
            failed = True
    read_texts, ends = {0: "", 1: "", 2: ""}, []
    for event in got:
        if isinstance(event, Token):
            assert event.choice not in ends
            read_texts[event.choice] += event.text
        else:
            ends.append(event.choice if isinstance(event, Finished) else "failed")
    assert read_texts == texts
    assert len(ends) == len(set(ends))
    assert ("failed" in ends) == (len(ended) < 3)
    assert calls.made.count("pause") - calls.made.count("resume") in (0, 1)


async def test_thinking_text_and_calls_are_joined_each_for_itself(calls: Calls) -> None:
    stream = calls.stream(choices=2, max_buffered_characters=1000)
    for event in (
        Thought("Which "),
        Thought("city?"),
        Token("Let me "),
        Token("look."),
        ToolCallDelta(0, '{"a"', "id0", "f"),
        ToolCallDelta(0, ": 1}"),
        ToolCallDelta(1, "", "id1", "g"),
        ToolCallDelta(0, "{}", "id2", "f", choice=1),
        ToolCallDelta(1, "{}"),
        DONE,
        replace(DONE, choice=1),
    ):
        stream.put(event)
    assert await read(stream) == [
        Thought("Which city?"),
        Token("Let me look."),
        ToolCallDelta(0, '{"a": 1}', "id0", "f"),
        ToolCallDelta(1, "{}", "id1", "g"),
        ToolCallDelta(0, "{}", "id2", "f", choice=1),
        DONE,
        replace(DONE, choice=1),
    ]


@pytest.mark.parametrize("event", [Thought("x" * 60), ToolCallDelta(0, "x" * 60)])
async def test_thinking_and_calls_count_as_text_does(calls: Calls, event: GenerationEvent) -> None:
    stream = calls.stream(pause_characters=50, max_buffered_characters=1000)
    stream.put(event)
    assert stream.paused
    assert calls.made == ["pause"]
