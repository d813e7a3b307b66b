"""Promises of adapters in the pool: loaded when a request first names them, within the budget, and let go of again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from service.domain.catalog import Adapter, AdapterFacts, Lineage, Variant
from service.domain.errors import BlobCorrupt, Conflict, DoesNotFit
from service.domain.generation import AdapterUse, Failed, Finished, GenerationRequest, SamplingParams, Token
from service.domain.names import parse_ref
from service.gguf.files import facts, read_header
from service.workers import adapters as beside
from service.workers.pool import Pool
from service.workers.status import WorkerStatus
from tests import tiny_models
from tests.integration.workers.test_reload import OPTIONS, NoRungs

BASE = f"sha256:{0:064x}"


@dataclass
class Stage:
    """A pool over a tiny llama with adapters 1 to 4, and one that is for another model."""

    pool: Pool
    variant: Variant
    adapters: dict[str, Adapter]

    async def text(self, *names: str, scale: float = 1.0, **more: object) -> str:
        request = GenerationRequest(
            prompt="It was", max_tokens=8, sampling=SamplingParams(temperature=0.0), ignore_eos=True, **more
        )
        adapters = [self.adapters[name] for name in names]
        uses = tuple(AdapterUse(adapter.digest, scale) for adapter in adapters)
        text = ""
        async for event in await self.pool.submit(self.variant, replace(request, adapters=uses), None, adapters):
            assert not isinstance(event, Failed), event
            if isinstance(event, Token):
                text += event.text
            assert not isinstance(event, Finished) or event.usage.completion_tokens == 8
        return text

    @property
    def status(self) -> WorkerStatus:
        [status] = self.pool.status()
        return status


@asynccontextmanager
async def stage(folder: Path, tiny: dict[str, Path], **options: object) -> AsyncIterator[Stage]:
    base = tiny["llama"]
    files = {BASE: base}
    adapters = {}
    for number, name in enumerate(("one", "two", "three", "four", "foreign"), start=1):
        path = folder / f"{name}.gguf"
        if not path.exists():
            tiny_models.write_adapter(path, tiny["recurrent"] if name == "foreign" else base, seed=number)
        digest = f"sha256:{number:064x}"
        files[digest] = path
        about = AdapterFacts("llama", 4, 4.0, 8, 4096)
        adapters[name] = Adapter(
            parse_ref("tiny").key, name, digest, path.stat().st_size, about, "2026-01-01T00:00:00Z"
        )
    found = facts(read_header(base))
    variant = Variant(
        1,
        parse_ref("tiny").key,
        "",
        "F16",
        BASE,
        base.stat().st_size,
        found,
        Lineage("imported"),
        "2026-01-01T00:00:00Z",
    )
    pool = Pool(replace(OPTIONS, **options), path_of=files.__getitem__, rungs=NoRungs())
    await pool.start()
    try:
        yield Stage(pool, variant, adapters)
    finally:
        await pool.stop(drain_seconds=0)


async def test_an_adapter_is_loaded_once_for_all_who_name_it_and_texts_are_those_of_their_own(
    tmp_path: Path, tiny: dict[str, Path]
) -> None:
    async with stage(tmp_path, tiny) as at:
        sets = [(), ("one",), ("two",), ("two", "one"), ("one",), ()]
        together = await asyncio.gather(*(at.text(*names) for names in sets))
        assert sorted(at.status.adapters) == ["one", "two"]
        assert together == [await at.text(*names, cache_prompt=False) for names in sets]
        assert len(set(together)) == 4
        assert at.status.memory_bytes == at.pool.memory_held_bytes


async def test_what_is_no_adapter_of_the_model_fails_its_request_alone(tmp_path: Path, tiny: dict[str, Path]) -> None:
    async with stage(tmp_path, tiny) as at:
        plain = await at.text()
        held = at.status.memory_bytes
        results = await asyncio.gather(at.text("foreign"), at.text(), at.text("one", "foreign"), return_exceptions=True)
        assert [type(result) for result in results] == [Conflict, str, Conflict]
        assert (results[1], at.status.adapters) == (plain, ("one",))
        assert at.status.memory_bytes == held + at.adapters["one"].size_bytes
        at.adapters["two"] = replace(at.adapters["two"], corrupt=True)
        with pytest.raises(BlobCorrupt):
            await at.text("two")


async def test_adapters_come_back_after_their_worker_has_died(tmp_path: Path, tiny: dict[str, Path]) -> None:
    async with stage(tmp_path, tiny) as at:
        before = await at.text("one")
        assert at.status.pid is not None
        os.kill(at.status.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while at.status.state == "ready":
                await asyncio.sleep(0.01)
        assert at.status.adapters == ()
        assert await at.text("one") == before


async def test_the_adapter_used_least_recently_goes_when_there_are_too_many(
    tmp_path: Path, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "MAX_ADAPTERS", 2)
    async with stage(tmp_path, tiny) as at:
        first = {name: await at.text(name) for name in ("one", "two")}
        await at.text("one")
        await at.text("three")
        assert sorted(at.status.adapters) == ["one", "three"]
        for names in (("two",), ("one",), ("two", "one"), ()):
            await at.text(*names)
        assert sorted(at.status.adapters) == ["one", "two"]
        assert {name: await at.text(name) for name in ("one", "two")} == first


async def test_a_budget_without_room_for_an_adapter_gives_it_room_of_the_cache(
    tmp_path: Path, tiny: dict[str, Path]
) -> None:
    async with stage(tmp_path, tiny) as at:
        plain, adapted = await at.text(), await at.text("one")
        size = at.adapters["one"].size_bytes
        needed = at.status.memory_bytes - size
    async with stage(tmp_path, tiny, memory_budget_bytes=needed + size // 2) as at:
        assert await at.text() == plain
        assert at.status.parallel == 4
        assert await at.text("one") == adapted
        assert (at.status.parallel, at.status.adapters) == (2, ("one",))
        assert at.status.memory_bytes <= needed + size // 2
        # Another one takes the place of the first, without a reload.
        pid = at.status.pid
        await at.text("two")
        assert "two" in at.status.adapters
        assert at.status.pid == pid
        assert at.status.memory_bytes <= needed + size // 2
        assert await at.text() == plain


async def test_an_adapter_that_can_never_fit_is_refused_and_the_worker_goes_on(
    tmp_path: Path, tiny: dict[str, Path]
) -> None:
    async with stage(tmp_path, tiny, memory_budget_bytes=1 << 30) as at:
        plain = await at.text()
        pid = at.status.pid
        at.adapters["two"] = replace(at.adapters["two"], size_bytes=1 << 30)
        with pytest.raises(DoesNotFit):
            await at.text("two")
        assert await at.text() == plain
        assert (at.status.pid, at.status.adapters) == (pid, ())
