"""A model whose chat template never ends is imported all the same: it completes prompts and refuses messages."""

from __future__ import annotations

import time
from pathlib import Path

from service.domain.jobs import JobStatus
from tests.chaos.gguf_mutants import put_together, take_apart
from tests.server import Server

LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"


def with_template(source: Path, target: Path, template: str) -> Path:
    """The same model with another chat template."""
    tree = take_apart(source)
    for pair in tree.pairs:
        if pair.key == b"tokenizer.chat_template":
            pair.raw = template.encode()
    header, _ = put_together(tree)
    target.write_bytes(header + tree.data)
    return target


async def test_what_the_trial_of_a_template_has_shown_is_kept_with_the_variant_and_its_levels(empty, gloss) -> None:
    source = await empty.imported(gloss)
    assert source.facts.template_verdict == "ok"
    job = await empty.ended(await empty.runner.submit_quantize(empty.levels(source, "Q8_0")))
    assert job.status is JobStatus.SUCCEEDED
    assert empty.catalog.resolve("gloss:Q8_0").facts.template_verdict == "ok"


def test_a_template_without_end_costs_an_import_seconds_and_messages_only(
    clean_server: Server, tiny: dict[str, Path], tmp_path: Path
) -> None:
    path = with_template(tiny["llama"], tmp_path / "endless.gguf", LOOP * 3 + END * 3)
    server = clean_server
    started = time.monotonic()
    server.json("POST", "/v1/models", 201, {"name": "endless", "path": str(path)})
    assert time.monotonic() - started < 60
    shown = server.json("GET", "/v1/variants/endless", 200)
    assert shown["chat_template"] == "broken: The chat template ran for more than 1 s."
    body = {"model": "endless", "max_tokens": 2}
    assert server.json("POST", "/v1/generate", 200, {**body, "prompt": "hello"})["text"]
    messages = {**body, "messages": [{"role": "user", "content": "hello"}]}
    refused = server.json("POST", "/v1/generate", 400, messages)
    assert refused["error"]["code"] == "template_error"
    assert "more than 1 s" in refused["error"]["message"]
