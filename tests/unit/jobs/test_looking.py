"""Looks at addresses: who asks for the same at once looks once, and what was seen is not kept for long."""

from __future__ import annotations

import asyncio

import pytest

from service.domain.errors import Forbidden, ModelNotFound
from service.domain.remote import RemoteAccess, RemoteFile, RemoteLevel, RemoteModel
from service.jobs import looking
from service.jobs.looking import Looks
from service.remote.messages import Seen


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Eyes(Looks):
    """Looks without a child."""

    def __init__(self, files=1):
        super().__init__(RemoteAccess())
        self.looked = []
        self._files = files

    async def _look(self, address):
        self.looked.append(address)
        await asyncio.sleep(0)
        if "nothing" in address:
            return Seen(code="model_not_found", message="It is not there.", param="from")
        files = tuple(RemoteFile(f"{number}.gguf", "", 1) for number in range(self._files))
        return Seen(RemoteModel(address, "c" * 40, (RemoteLevel("F16", "F16", files),)), "F16")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(looking, "time", clock)
    return clock


async def test_who_asks_for_the_same_at_once_looks_once(clock):
    looks = Eyes()
    seen = await asyncio.gather(*(looks.at("hf.co/o/r") for _ in range(3)), looks.at("huggingface.co/o/r"))
    assert {choice for _, choice in seen} == {"F16"}
    assert len(looks.looked) <= 2, "two at a time"
    await looks.at("hf.co/o/r@main")
    assert len(looks.looked) <= 2


async def test_what_was_seen_is_forgotten_soon(clock):
    looks = Eyes()
    await looks.at("hf.co/o/r")
    clock.now += 20.0
    await looks.at("hf.co/o/other")
    assert len(looks._known) == 1
    await looks.at("hf.co/o/r")
    assert looks.looked == ["hf.co/o/r", "hf.co/o/other", "hf.co/o/r"]


async def test_large_repositories_do_not_fill_the_memory(clock):
    looks = Eyes(files=8000)
    for number in range(10):
        await looks.at(f"hf.co/o/r{number}")
    assert 1 <= len(looks._known) <= 2
    await looks.at("hf.co/o/r9")
    assert len(looks.looked) == 10


async def test_what_cannot_be_seen_is_told_and_not_remembered(clock):
    looks = Eyes()
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            await looks.at("hf.co/o/nothing")
    assert len(looks.looked) == 2
    with pytest.raises(Forbidden):
        await looks.at("https://example.org/x.gguf")
    assert len(looks.looked) == 2
