"""What one worker was asked and has not answered yet. Server process; sends and starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from service.domain.errors import QuantryError, by_code
from service.domain.generation import EmbeddingRequest, Failed

T = TypeVar("T")

# Texts of one frame to the worker: the vectors of these fit into one frame back at up to 16,000 dimensions.
TEXTS_PER_FRAME = 256


class Pending(Generic[T]):
    """Futures by request id; each gets one result, unless its waiter leaves first."""

    def __init__(self) -> None:
        self._futures: dict[int, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    def open(self, request_id: int) -> asyncio.Future[T]:
        """Where the answer to `request_id` will be."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._futures[request_id] = future
        return future

    def forget(self, request_id: int) -> bool:
        """Nobody waits for it any more; False when its answer had come."""
        return self._futures.pop(request_id, None) is not None

    def deliver(self, request_id: int, answer: T) -> None:
        """Hand an answer to whoever waits for it."""
        future = self._futures.pop(request_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def fail(self, request_id: int, failed: Failed) -> None:
        """Hand a refusal to whoever waits."""
        future = self._futures.pop(request_id, None)
        if future is not None and not future.done():
            future.set_exception(
                by_code(failed.code)(failed.message, param=failed.param, retry_after_seconds=failed.retry_after_seconds)
            )

    def fail_all(self, error: QuantryError) -> None:
        """The worker is gone, or about to go."""
        futures, self._futures = self._futures, {}
        for future in futures.values():
            if not future.done():
                future.set_exception(error)


def parts_of(request: EmbeddingRequest) -> Iterator[EmbeddingRequest]:
    """The same texts in requests small enough for a frame."""
    for start in range(0, len(request.inputs), TEXTS_PER_FRAME):
        yield replace(request, inputs=request.inputs[start : start + TEXTS_PER_FRAME])
