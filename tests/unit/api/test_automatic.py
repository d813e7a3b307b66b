"""`model:auto` in every dialect: the stored level that is recommended here and now, and the header says which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.api import automatic
from service.domain.memory import MemoryNeed
from service.workers.status import WorkerStatus

HELLO = [{"role": "user", "content": "Hello"}]
# Path -> what a body needs beside `model`.
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 4},
    "/api/generate": {"prompt": "Hello", "raw": True},
    "/api/chat": {"messages": HELLO},
    "/completion": {"prompt": "Hello"},
}


@pytest.fixture
def api(make_api):
    """An application with `gloss:F16`, Q8_0 and Q2_K of it, and a plan for Q4_K_M, which would be recommended."""
    api = make_api()
    source = api.add("gloss", "F16", content=b"f" * 800)
    api.add("gloss", "Q8_0", content=b"q" * 400, source=source)
    api.add("gloss", "Q2_K", content=b"2" * 200, source=source)
    return api


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ROUTES)
async def test_auto_is_the_recommended_level_that_is_stored_in_every_dialect(client, api, path, stream):
    body = {"model": "gloss:auto", **ROUTES[path], "stream": stream}
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    assert [variant.name for variant, _ in api.pool.submitted] == ["gloss:Q8_0"]


async def test_auto_is_written_in_any_case_and_shown_like_any_name(client):
    assert (await client.get("/v1/variants/GLOSS:AUTO")).json()["name"] == "gloss:Q8_0"
    assert (await client.get("/v1/models/gloss:auto")).json()["id"] == "gloss:Q8_0"
    assert (await client.post("/api/show", json={"model": "glos:auto"})).status_code == 404
    unknown = await client.post("/v1/generate", json={"model": "glos:auto", "prompt": "Hello"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "gloss" in unknown.json()["error"]["message"]


async def test_auto_takes_what_is_loaded_in_a_near_tie(client, api):
    near = api.add("gloss", "Q6_K", content=b"6" * 350, source=api.catalog.resolve("gloss:F16"))
    assert await named(client) == near.name
    api.pool.loaded = {v.digest: v for v in (api.catalog.resolve("gloss:Q8_0"), api.catalog.resolve("gloss:Q2_K"))}
    assert await named(client) == "gloss:Q8_0"


async def test_auto_fits_beside_what_is_at_work(client, api, monkeypatch):
    def takes(variant, context=None):
        return MemoryNeed({"F16": 800, "Q8_0": 400, "Q2_K": 200}[variant.quantization], 0, 0, 0)

    monkeypatch.setattr(api.pool, "memory_needed", takes)
    monkeypatch.setattr(automatic, "available_bytes", lambda: 1 << 30)
    api.pool.memory_budget_bytes = 1000
    assert await named(client) == "gloss:Q8_0"
    idle = WorkerStatus("other:F16", "sha256:1", "ready", "full", 1, 512, 4, 700, 0, 0, None, None, None)
    monkeypatch.setattr(api.pool, "status", lambda: (idle,))
    assert await named(client) == "gloss:Q8_0"  # an idle one makes room
    monkeypatch.setattr(api.pool, "status", lambda: (replace(idle, active_requests=1),))
    assert await named(client) == "gloss:Q2_K"
    monkeypatch.setattr(api.pool, "status", lambda: (replace(idle, active_requests=1, memory_bytes=900),))
    assert await named(client) == "gloss:Q2_K"  # nothing fits: the pool says what it would take


async def test_auto_leaves_out_what_is_damaged_and_what_rests(client, api, monkeypatch):
    found = api.catalog.resolve("gloss:Q8_0")
    resting = WorkerStatus(found.name, found.digest, "quarantined", "full", 1, 512, 4, 0, 0, 0, None, None, None)
    monkeypatch.setattr(api.pool, "status", lambda: (resting,))
    assert await named(client) == "gloss:F16"
    monkeypatch.setattr(api.pool, "status", tuple)
    api.catalog.mark_corrupt(found.digest, corrupt=True)
    assert await named(client) == "gloss:F16"
    for label in ("F16", "Q2_K"):
        api.catalog.mark_corrupt(api.catalog.resolve(f"gloss:{label}").digest, corrupt=True)
    refused = await client.post("/v1/generate", json={"model": "gloss:auto", "prompt": "Hello"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "blob_corrupt")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/copy", {"source": "gloss:F16", "destination": "gloss:auto"}),
        ("/v1/models", {"name": "gloss:Auto", "path": "/nowhere.gguf"}),
        ("/api/copy", {"source": "gloss:F16", "destination": "other:auto"}),
        ("/api/create", {"model": "gloss:auto", "from": "gloss:F16", "system": "Be brief."}),
    ],
)
async def test_nothing_can_be_called_auto(client, path, body):
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert "reserved" in answer.text


async def named(client) -> str:
    return (await client.get("/v1/variants/gloss:auto")).json()["name"]
