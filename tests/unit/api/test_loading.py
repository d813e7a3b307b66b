"""Promises of loading by hand: what the body asks reaches the pool, and a refusal knows what else there is."""

from __future__ import annotations

import pytest

from service.api.catalogue import smaller_levels
from service.domain.memory import CacheChoice
from service.workers.placing import LoadOptions
from tests.unit.api.conftest import MakeApi


async def test_what_the_body_asks_reaches_the_pool(make_api: MakeApi) -> None:
    api = make_api()
    api.add("gloss", "F16")
    async with api.client() as client:
        body = {"context_length": 256, "parallel": 2, "cache_type_k": "auto", "cache_type_v": "q8_0"}
        for sent in ({}, {"json": {}}, {"json": body}):
            answer = await client.post("/v1/workers/gloss/load", **sent)
            assert answer.status_code == 200, answer.text
            assert answer.json()["cache_type_v"] == "f16"
    assert api.pool.asked == [
        None,
        LoadOptions(),
        LoadOptions(256, 2, CacheChoice.AUTO, CacheChoice.Q8_0),
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("context_length", 63), ("parallel", 0), ("cache_type_k", "q5_0"), ("threads", 2)]
)
async def test_a_body_out_of_its_limits_is_refused(make_api: MakeApi, field: str, value: object) -> None:
    api = make_api()
    api.add("gloss", "F16")
    async with api.client() as client:
        answer = await client.post("/v1/workers/gloss/load", json={field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_what_is_smaller_is_stored_or_planned_from_the_best_source(make_api: MakeApi) -> None:
    api = make_api()
    full = api.add("gloss", "F16", content=b"F" * 2500)
    assert [(at.name, at.stored, at.recommended) for at in smaller_levels(api.catalog, full)] == [
        ("gloss:Q4_K_M", False, True)  # IQ1_S needs an importance matrix
    ]
    api.add("gloss", "Q4_K_M", source=full)
    assert [at for at in smaller_levels(api.catalog, full) if not at.stored] == []
    api.add("other", "F16")
    assert all(at.name.startswith("gloss:") for at in smaller_levels(api.catalog, full))
