"""A chat template that was found to be broken at the import is told of by every route that would use it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.domain.catalog import Lineage
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def broken(api):
    facts = replace(api.catalog.resolve("gloss:F16").facts, template_verdict="broken: It never ends.")
    content = b"broken"
    made = MadeFile("", api.put(content), len(content), facts)
    return api.catalog.add_variant(parse_ref("broken"), made, Lineage("imported"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/apply-template", {"messages": HELLO}),
        ("/v1/chat/completions/input_tokens", {"messages": HELLO}),
        ("/v1/responses/input_tokens", {"input": "Hello"}),
        ("/v1/messages/count_tokens", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/generate", {"messages": HELLO}),
    ],
)
async def test_messages_are_refused_before_a_worker_is_loaded(client, broken, monkeypatch, api, path, body):
    async def unwanted(*_: object) -> None:
        raise AssertionError("a worker was asked")

    monkeypatch.setattr(api.pool, "ask", unwanted, raising=False)
    answer = await client.post(path, json={"model": "broken", **body})
    assert answer.status_code == 400
    assert "It never ends." in answer.text
    assert api.pool.submitted == []
