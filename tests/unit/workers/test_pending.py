"""Promises of waiting for answers: one end for each waiter, whoever leaves first."""

from __future__ import annotations

import asyncio

import pytest

from service.domain.errors import PromptTooLong, WorkerDied
from service.domain.generation import EmbeddingRequest, Embeddings, Failed
from service.workers.pending import TEXTS_PER_FRAME, Pending, parts_of

VECTORS = Embeddings((b"\0\0\0\0",), 3)


async def test_each_waiter_gets_its_own_end_and_late_answers_are_dropped() -> None:
    pending: Pending[Embeddings] = Pending()
    first, second, third = (pending.open(number) for number in (1, 2, 3))
    pending.deliver(2, VECTORS)
    pending.deliver(2, VECTORS)
    pending.fail(1, Failed("context_length_exceeded", "Too long.", "input"))
    assert await second == VECTORS
    with pytest.raises(PromptTooLong) as refused:
        await first
    assert refused.value.param == "input"
    assert pending.forget(3)
    assert not pending.forget(1)
    pending.deliver(3, VECTORS)
    assert not third.done()
    assert len(pending) == 0


async def test_a_dead_worker_fails_all_who_still_wait() -> None:
    pending: Pending[Embeddings] = Pending()
    waiting, gone = pending.open(1), pending.open(2)
    gone.cancel()
    pending.fail_all(WorkerDied("Dead."))
    with pytest.raises(WorkerDied):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(pending) == 0


@pytest.mark.parametrize("count", [1, TEXTS_PER_FRAME, TEXTS_PER_FRAME + 1, 5 * TEXTS_PER_FRAME - 3])
def test_parts_hold_every_text_once_in_order_and_fit_into_a_frame(count: int) -> None:
    request = EmbeddingRequest(tuple(map(str, range(count))), normalize=False, dimensions=5)
    parts = list(parts_of(request))
    assert sum((part.inputs for part in parts), ()) == request.inputs
    assert all(0 < len(part.inputs) <= TEXTS_PER_FRAME for part in parts)
    assert {(part.normalize, part.dimensions) for part in parts} == {(False, 5)}
