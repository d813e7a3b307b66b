"""Promises of the requests in a worker: each ends once, none is counted after its end, none hangs on a worker's end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.domain.errors import InvalidParameter, WorkerDied
from service.domain.generation import (
    AdapterUse,
    EmbeddingRequest,
    Embeddings,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Timings,
    Token,
    Usage,
)
from service.frames import MAX_FRAME_BYTES, encode
from service.workers.options import WorkerOptions
from service.workers.protocol import Cancel, Embed, Embedded, Events, Submit, ToWorker
from service.workers.questions import Detokenize
from service.workers.requests import Requests

OPTIONS = WorkerOptions(batch_tokens=64, threads=1, gpu_layers=0, load_timeout_seconds=1, hang_seconds=1)
WORDS = GenerationRequest(prompt="It was")
END = Finished(FinishReason.STOP, Usage(2, 1), Timings(0.0, 0.0, 0.0, 0.0))
DEATH = WorkerDied("The worker ended.", retry_after_seconds=1)


@pytest.fixture
def sent() -> list[ToWorker]:
    return []


@pytest.fixture
def requests(sent: list[ToWorker]) -> Requests:
    def send(message: ToWorker) -> None:
        encode(message)
        sent.append(message)

    return Requests(send, OPTIONS)


async def test_a_text_ends_once_and_is_then_forgotten(requests: Requests, sent: list[ToWorker]) -> None:
    stream = requests.submit(WORDS, 1.5, None)
    [submitted] = sent
    assert isinstance(submitted, Submit)
    assert len(requests) == 1
    requests.take(Events(texts=[(submitted.id, 0, "a dark")], finished=[(submitted.id, END)]))
    assert len(requests) == 0
    events = [event async for event in stream]
    assert events[0] == Token("a dark")
    assert isinstance(events[1], Finished)
    assert events[1].timings.load_seconds == 1.5
    requests.take(Events(texts=[(submitted.id, 0, "late")], failed=[(submitted.id, Failed("late", "Late."))]))
    requests.end(DEATH)
    stream.cancel()
    assert [event async for event in stream] == []
    assert sent == [submitted]


async def test_a_request_too_long_for_a_frame_is_refused_and_counted_nowhere(
    requests: Requests, sent: list[ToWorker]
) -> None:
    text = "x" * (MAX_FRAME_BYTES + 1)
    [refused] = [event async for event in requests.submit(GenerationRequest(prompt=text), 0.0, None)]
    assert isinstance(refused, Failed)
    assert refused.code == InvalidParameter.code
    with pytest.raises(InvalidParameter):
        await requests.embed(EmbeddingRequest(inputs=(text,)))
    assert (len(requests), sent) == (0, [])
    async with asyncio.timeout(1):
        await requests.wait_until_none()


async def test_all_that_waits_ends_with_the_worker_and_so_does_what_comes_later(requests: Requests) -> None:
    stream = requests.submit(GenerationRequest(prompt="x", adapters=(AdapterUse("one"),)), 0.0, None)
    assert requests.uses_adapter("one")
    waiting = [
        asyncio.create_task(requests.embed(EmbeddingRequest(inputs=("a",)))),
        asyncio.create_task(requests.ask(Detokenize((1,)))),
        asyncio.create_task(requests.load_adapter("two", Path("two.gguf"))),
    ]
    await asyncio.sleep(0)
    assert len(requests) == 4
    requests.end(DEATH)
    assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [WorkerDied] * 3
    late = requests.submit(WORDS, 0.0, None)
    for ended in (stream, late):
        [event] = [event async for event in ended]
        assert event == Failed("worker_died", DEATH.message, None, 1)
    with pytest.raises(WorkerDied):
        await requests.ask(Detokenize((1,)))
    assert len(requests) == 0
    assert not requests.uses_adapter("one")


async def test_texts_to_embed_whose_client_has_left_are_cancelled_in_the_worker(
    requests: Requests, sent: list[ToWorker]
) -> None:
    waiting = asyncio.create_task(requests.embed(EmbeddingRequest(inputs=("a",))))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    [embed, cancel] = sent
    assert isinstance(embed, Embed)
    assert cancel == Cancel(embed.id)
    requests.take(Embedded(embed.id, Embeddings((b"",), 1)))
    assert len(requests) == 0
