"""Frames between the server and its children: what is written is read, and nothing else passes."""

from __future__ import annotations

import asyncio
import io
import struct
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.domain.catalog import FileFacts, LevelPlan, ModelShape
from service.domain.generation import Failed as FailedEvent
from service.domain.generation import (
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    Reasoning,
    Timings,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
    Usage,
)
from service.domain.jobs import MadeFile
from service.domain.recipes import Recipe
from service.frames import MAX_FRAME_BYTES, BadFrame, FrameReader, encode
from service.jobs import messages
from service.jobs.messages import Done, Failed, ImportTask, LaboratoryTask, LevelStep, Made, Progress
from service.workers import protocol

FACTS = FileFacts("Q8_0", 10, 8.5, 20, ModelShape("llama", layers=2), types=(("Q8_0", 3),))
PLAN = LevelPlan("Q4_K_M", 100, 4.5, False, ("blk.0.attn_q.weight",), (("Q4_K", 2),))
MESSAGES = [
    Progress(3, 0.25, "tensor 12 of 56"),
    Made(0, MadeFile("/x", "sha256:00", 5, FACTS, (PLAN,), 1.5), "llama-cpp-python 0"),
    Failed("disk_full", "Make room.", "to"),
    Done(),
]
TASKS = [
    ImportTask("/a.gguf", "/in/x", "gloss", None, 19),
    LaboratoryTask("/b", (LevelStep("/in/y", Recipe("Q8_0", allow_requantize=True), 800, None),), 0, 19),
]


EVENTS = [
    protocol.Events([(1, 0, "text")], [(2, Finished(FinishReason.STOP, Usage(3, 4), Timings(load_seconds=0.5)))], []),
    protocol.Events([], [], [(7, FailedEvent("worker_died", "Send it again.", None, 1))]),
    protocol.Events(thoughts=[(1, 0, "hm")], calls=[(1, ToolCallDelta(0, "{}", "call_1", "f", choice=1))]),
    protocol.Pong(1, 2, 3),
]
REQUEST = GenerationRequest(messages=(Message("user", "hi \U0001f600"),), stop=("a", "b"))
CALLING = GenerationRequest(
    messages=(Message("assistant", "", "hm", (ToolCall("1", "f", "{}"),)), Message("tool", "x", None, (), "1", "f")),
    tools=(Tool("f", "", "{}", strict=True),),
    tool_choice=ToolChoice(ToolMode.NAMED, "f", parallel=False),
    reasoning=Reasoning(enabled=True, max_tokens=5, effort="low", split=False),
)


def read(kind, data: bytes):
    return FrameReader(kind).read_blocking(io.BytesIO(data))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        *((messages.Message, message) for message in MESSAGES),
        *((messages.Task, task) for task in TASKS),
        *((protocol.FromWorker, event) for event in EVENTS),
        (protocol.ToWorker, protocol.Submit(1, REQUEST)),
        (protocol.ToWorker, protocol.Submit(1, CALLING)),
    ],
)
async def test_a_message_arrives_as_it_was_sent(kind, message):
    assert read(kind, encode(message)) == message
    stream = asyncio.StreamReader()
    stream.feed_data(encode(message))
    assert await FrameReader(kind).read(stream) == message


def test_a_frame_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(BadFrame, match="limit"):
        read(messages.Message, b"\xff\xff\xff\xff")
    with pytest.raises(BadFrame, match="limit"):
        encode(Failed("x", "x" * (MAX_FRAME_BYTES + 1)))


def test_a_frame_cut_short_is_the_end_of_the_stream():
    frame = encode(TASKS[0])
    for length in (0, 3, 4, len(frame) - 1):
        assert read(messages.Task, frame[:length]) is None


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_raise_nothing_but_bad_frame(body):
    with suppress(BadFrame):
        read(protocol.FromWorker, struct.pack(">I", len(body)) + body)


@given(st.lists(st.integers(1, 300), max_size=30))
def test_frames_are_read_whole_however_the_bytes_come(sizes):
    async def read_all() -> list[object]:
        stream, reader, data, got = asyncio.StreamReader(), FrameReader(protocol.FromWorker), b"".join(frames), []
        start = 0
        for size in sizes:
            stream.feed_data(data[start : start + size])
            start += size
            await asyncio.sleep(0)
        stream.feed_data(data[start:])
        stream.feed_eof()
        while (message := await reader.read(stream)) is not None:
            got.append(message)
        return got

    frames = [encode(event) for event in EVENTS]
    assert asyncio.run(read_all()) == EVENTS
    frames.append(encode(EVENTS[0])[:-1])  # cut short by a death
    assert asyncio.run(read_all()) == EVENTS


async def test_a_frame_over_the_limit_is_refused_by_its_length_alone():
    stream = asyncio.StreamReader()
    stream.feed_data(b"\xff\xff\xff\xff")
    with pytest.raises(BadFrame, match="limit"):
        await FrameReader(protocol.FromWorker).read(stream)
