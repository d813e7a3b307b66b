"""Promises of loads with other contexts and caches: by request, by operator, and whom a reload may disturb (nobody)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.catalog import FileFacts, Lineage, Variant
from service.domain.errors import DoesNotFit, InvalidParameter
from service.domain.generation import Failed, Finished, FinishReason, GenerationRequest, Message, SamplingParams, Token
from service.domain.memory import CacheChoice, CacheType, ContextOptions, memory_need
from service.domain.names import parse_ref
from service.gguf.files import facts, read_header
from service.workers.options import PoolOptions, WorkerOptions
from service.workers.placing import Level, LoadOptions
from service.workers.pool import Pool
from service.workers.status import WorkerStatus

GLOSS = Path(__file__).parents[3] / "demo" / "gloss-5m-f16.gguf"
FACTS = facts(read_header(GLOSS))
VARIANT = Variant(
    1, parse_ref("gloss").key, "", "F16", f"sha256:{1:064x}", 1, FACTS, Lineage("imported"), "2026-01-01T00:00:00Z"
)
HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
GREEDY = SamplingParams(temperature=0.0)
WORD = GenerationRequest(messages=(Message("user", 'What does "horse" mean?'),), sampling=GREEDY)
# Runs until the context is full.
ENDLESS = GenerationRequest(prompt="It was", sampling=GREEDY, ignore_eos=True)
OPTIONS = PoolOptions(
    worker=WorkerOptions(batch_tokens=512, threads=1, gpu_layers=0, load_timeout_seconds=60, hang_seconds=30),
    machine="test",
    context_length=128,
    parallel=4,
    memory_budget_bytes=4 << 30,
    max_loaded_models=4,
    max_queued_requests=100,
    keep_alive_seconds=300,
    queue_timeout_seconds=20,
)


class NoRungs:
    def rung(self, machine: str, digest: str) -> str | None:
        return None

    def set_rung(self, machine: str, digest: str, rung: str) -> None:
        raise AssertionError(rung)


@asynccontextmanager
async def running_pool(options: PoolOptions = OPTIONS, levels: tuple[Level, ...] = ()) -> AsyncIterator[Pool]:
    pool = Pool(options, path_of=lambda _digest: GLOSS, rungs=NoRungs(), smaller_levels=lambda _variant: levels)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop(drain_seconds=0)


async def answer(pool: Pool, request: GenerationRequest) -> tuple[str, Finished | Failed]:
    text, end = "", None
    async for event in await pool.submit(VARIANT, request):
        if isinstance(event, Token):
            text += event.text
        else:
            end = event
    assert end is not None
    return text, end


def tokens_of(end: Finished | Failed) -> int:
    assert isinstance(end, Finished), end
    return end.usage.prompt_tokens + end.usage.completion_tokens


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def status_of(pool: Pool) -> WorkerStatus:
    [status] = pool.status()
    return status


def need(context: int, facts: FileFacts = FACTS) -> int:
    return memory_need(facts, context).total_bytes


async def test_a_request_gets_the_context_it_asks_for_and_nobody_loses_a_text() -> None:
    """The running one ends on its own worker, those that come during the reload are served by the next."""
    larger = replace(ENDLESS, context_length=200)
    async with running_pool() as pool:
        await pool.load(VARIANT)
        first = status_of(pool)
        assert first.context_length == 128
        running = asyncio.create_task(answer(pool, ENDLESS))
        await until(lambda: status_of(pool).active_requests == 1)
        both = [asyncio.create_task(answer(pool, larger)) for _ in range(2)]
        await asyncio.sleep(0)
        meanwhile = asyncio.create_task(answer(pool, WORD))
        await asyncio.sleep(0)
        assert status_of(pool).queued_requests == 3
        ends = [end for _, end in await asyncio.gather(running, *both)]
        assert all(isinstance(end, Finished) and end.reason is FinishReason.LENGTH for end in ends)
        assert [tokens_of(end) for end in ends] == [128, 200, 200]
        assert (await meanwhile)[0] == HORSE
        second = status_of(pool)
        assert second.context_length == 200
        assert second.memory_bytes > first.memory_bytes
        await answer(pool, WORD)
        assert status_of(pool).pid == second.pid  # one reload for all, and none back


async def test_a_cold_load_has_the_context_of_the_request_that_wakes_it() -> None:
    async with running_pool() as pool:
        _, end = await answer(pool, replace(WORD, context_length=300))
        assert isinstance(end, Finished)
        assert end.timings.load_seconds > 0
        assert status_of(pool).context_length == 300


async def test_more_context_than_the_model_was_trained_for_is_refused_with_the_limit() -> None:
    async with running_pool() as pool:
        with pytest.raises(InvalidParameter, match="trained for a context of 512 tokens"):
            await pool.submit(VARIANT, replace(WORD, context_length=513))
        assert pool.status() == ()


async def test_a_larger_context_that_does_not_fit_is_refused_and_the_worker_stays() -> None:
    levels = (Level("gloss:Q4_K_M", replace(FACTS, tensor_bytes=4_000_000), stored=True, recommended=True),)
    budget = need(512) - 1_000_000
    async with running_pool(replace(OPTIONS, memory_budget_bytes=budget, parallel=1), levels) as pool:
        await pool.load(VARIANT)
        pid = status_of(pool).pid
        refused = asyncio.create_task(answer(pool, replace(WORD, context_length=512)))
        small = asyncio.create_task(answer(pool, WORD))
        with pytest.raises(DoesNotFit) as caught:
            await refused
        assert f"needs {need(512)} bytes" in caught.value.message
        assert "largest context that fits is 256 tokens" in caught.value.message
        assert "gloss:Q4_K_M (stored) would fit" in caught.value.message
        assert (await small)[0] == HORSE
        status = status_of(pool)
        assert (status.pid, status.context_length, status.memory_bytes) == (pid, 128, need(128))


async def test_what_the_operator_asks_is_kept_until_it_is_unloaded_by_hand() -> None:
    asked = LoadOptions(256, 2, CacheChoice.Q8_0, CacheChoice.Q4_0)
    async with running_pool(replace(OPTIONS, keep_alive_seconds=0.2)) as pool:
        await pool.load(VARIANT)
        await pool.load(VARIANT, asked)
        status = status_of(pool)
        assert (status.context_length, status.parallel) == (256, 2)
        assert (status.cache_type_k, status.cache_type_v) == ("q8_0", "q4_0")
        await until(lambda: not pool.is_loaded(VARIANT.digest))  # its keep-alive is over
        text, _ = await answer(pool, WORD)
        assert text.startswith("Horse (noun)")
        assert status_of(pool).cache_type_v == "q4_0"
        await pool.unload(VARIANT)
        await pool.load(VARIANT)
        assert (status_of(pool).context_length, status_of(pool).cache_type_k) == (128, "f16")


async def test_loading_as_it_is_loaded_changes_nothing() -> None:
    async with running_pool() as pool:
        await pool.load(VARIANT)
        pid = status_of(pool).pid
        await pool.load(VARIANT, LoadOptions(context_length=128, cache_type_k=CacheChoice.AUTO))
        await pool.load(VARIANT)
        assert status_of(pool).pid == pid


async def test_an_automatic_cache_is_quantized_only_when_nothing_else_fits() -> None:
    quantized = ContextOptions(cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    budget = memory_need(FACTS, 512, 1, quantized).total_bytes
    automatic = replace(OPTIONS, context_length=512, cache_type_k=CacheChoice.AUTO, cache_type_v=CacheChoice.AUTO)
    async with running_pool(automatic) as pool:
        await pool.load(VARIANT)
        assert (status_of(pool).cache_type_k, status_of(pool).parallel) == ("f16", 4)
    async with running_pool(replace(automatic, memory_budget_bytes=budget)) as pool:
        assert (await answer(pool, WORD))[0] == HORSE
        assert (status_of(pool).cache_type_k, status_of(pool).cache_type_v, status_of(pool).parallel) == (
            "q8_0",
            "q8_0",
            1,
        )
        assert status_of(pool).memory_bytes <= budget


async def test_a_worker_without_flash_attention_answers_the_same() -> None:
    async with running_pool(replace(OPTIONS, flash_attention=False)) as pool:
        assert (await answer(pool, WORD))[0] == HORSE
        with pytest.raises(InvalidParameter, match="flash attention"):
            await pool.load(VARIANT, LoadOptions(cache_type_v=CacheChoice.Q8_0))
