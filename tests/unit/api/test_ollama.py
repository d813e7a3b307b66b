"""Ollama's dialect, byte for byte where clients look; the real client is in tests/dialects."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from typing import Any

import pytest

from service.api.ollama_cards import capabilities, modelfile, parameter_lines
from service.api.ollama_names import parameter_size
from service.api.ollama_requests import DEFAULTS, domain_messages, droppable, sampling, without_oldest
from service.api.ollama_shapes import OllamaMessage, OllamaOptions, duration_seconds
from service.api.ollama_templates import jinja
from service.domain.errors import NotSupported, PromptTooLong, QueueFull
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    Message,
    Reasoning,
    Thought,
    Timings,
    Token,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from service.domain.jobs import JobStatus, QuantizeSpec
from service.domain.names import parse_ref
from service.domain.presets import Preset

HELLO = [{"role": "user", "content": "Hi"}]
FIGURES = {
    "total_duration": 760_000_000,
    "load_duration": 0,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 2,
    "eval_duration": 250_000_000,
}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def lines_of(answer: Any) -> list[Any]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text[:-1].split("\n")]


async def chat(client, **fields):
    return await client.post("/api/chat", json={"model": "gloss", "messages": HELLO, **fields})


async def generate(client, **fields):
    return await client.post("/api/generate", json={"model": "gloss:F16", "prompt": "Hi", "raw": True, **fields})


# --- answers -----------------------------------------------------------------------------------------------------


async def test_a_whole_chat_is_ollamas(client):
    answer = await chat(client, stream=False)
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    body = answer.json()
    assert body.pop("created_at").endswith("Z")
    assert body == {
        "model": "gloss",
        "message": {"role": "assistant", "content": "Hello"},
        "done": True,
        "done_reason": "stop",
        **FIGURES,
    }


async def test_a_chat_streams_lines_unless_told_otherwise(client):
    lines = lines_of(await chat(client))
    assert [line.pop("created_at")[-1] for line in lines] == ["Z", "Z", "Z"]
    assert lines == [
        {"model": "gloss", "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"model": "gloss", "message": {"role": "assistant", "content": "lo"}, "done": False},
        {
            "model": "gloss",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            **FIGURES,
        },
    ]


async def test_generate_has_its_text_in_response(client):
    whole = (await generate(client, stream=False)).json()
    assert (whole["response"], whole["done"], "message" in whole) == ("Hello", True, False)
    lines = lines_of(await generate(client))
    assert [line["response"] for line in lines] == ["Hel", "lo", ""]


async def test_thinking_and_calls_have_places_of_their_own(api, client):
    end = Finished(FinishReason.TOOL_CALLS, Usage(5, 2), Timings())
    api.pool.script = (
        Thought("Well"),
        Token("Ok "),
        ToolCallDelta(0, '{"a":', "c1", "add"),
        ToolCallDelta(0, "1}"),
        ToolCallDelta(1, "{}", "c2", "add"),
        end,
    )
    calls = [
        {"id": "c1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "c2", "function": {"index": 1, "name": "add", "arguments": {}}},
    ]
    whole = (await chat(client, tools=[TOOL], stream=False)).json()
    assert whole["message"] == {"role": "assistant", "content": "Ok ", "thinking": "Well", "tool_calls": calls}
    assert whole["done_reason"] == "stop"
    messages = [line["message"] for line in lines_of(await chat(client, tools=[TOOL]))]
    assert messages == [
        {"role": "assistant", "content": "", "thinking": "Well"},
        {"role": "assistant", "content": "Ok "},
        {"role": "assistant", "content": "", "tool_calls": calls[:1]},
        {"role": "assistant", "content": "", "tool_calls": calls[1:]},
        {"role": "assistant", "content": ""},
    ]


async def test_a_call_that_was_cut_off_is_not_sent(api, client):
    end = Finished(FinishReason.LENGTH, Usage(5, 2), Timings())
    api.pool.script = (ToolCallDelta(0, '{"a":', "c1", "add"), end)
    whole = (await chat(client, tools=[TOOL], stream=False)).json()
    assert (whole["message"], whole["done_reason"]) == ({"role": "assistant", "content": ""}, "length")


async def test_log_probabilities_are_beside_the_text(api, client):
    drawn = TokenLogprob(b"Hi", -0.5)
    api.pool.script = (Token("Hi", 0, (drawn,)), Finished(FinishReason.STOP, Usage(5, 1), Timings()))
    shown = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}]
    assert (await chat(client, stream=False, logprobs=True)).json()["logprobs"] == shown
    assert lines_of(await chat(client, logprobs=True))[0]["logprobs"] == shown
    assert api.pool.submitted[-1][1].logprobs == 0


# --- errors ------------------------------------------------------------------------------------------------------


async def test_an_error_is_one_string_and_says_not_found(client):
    answer = await client.post("/api/chat", json={"model": "glos", "messages": HELLO})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("model 'glos' not found; ")
    assert answer.json()["code"] == "model_not_found"


async def test_a_full_queue_is_ollamas_503(api, client):
    api.pool.error = QueueFull("Too many.", retry_after_seconds=1)
    answer = await chat(client)
    assert answer.status_code == 503
    assert answer.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"
    assert answer.headers["retry-after"] == "1"


async def test_an_error_within_a_stream_is_its_last_line(client, play):
    play(Token("Hel"), Failed(PromptTooLong.code, "Too long; shorten it."))
    lines = lines_of(await chat(client))
    assert lines[-1] == {"error": "Too long; shorten it.", "code": "context_length_exceeded"}


async def test_impossible_values_are_refused_by_name(client):
    for fields, said in (
        ({"images": ["aGk="]}, "Images"),
        ({"system": "Be brief."}, "raw mode"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"format": "xml"}, "format"),
        ({"think": "hardly"}, "think"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ):
        answer = await generate(client, **fields)
        assert (answer.status_code, fields) == (400, fields)
        assert said in answer.json()["error"]


async def test_unknown_fields_and_options_are_ignored(client):
    fields = {"surprise": 1, "options": {"num_gpu": 99, "num_thread": 4, "surprise": "x", "low_vram": True}}
    assert (await generate(client, stream=False, **fields)).status_code == 200


# --- requests ----------------------------------------------------------------------------------------------------


async def test_options_become_a_request_with_ollamas_defaults(api, client):
    await generate(client, options={"num_predict": -1, "top_k": -1, "seed": -1, "num_ctx": 1 << 17, "stop": "x"})
    asked = api.pool.submitted[-1][1]
    assert (asked.max_tokens, asked.context_length, asked.stop) == (None, 512, ("x",))
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.min_p) == (0.8, 0.9, 0.0)
    assert (asked.sampling.top_k, asked.sampling.seed) == (0, None)
    assert (asked.prompt, asked.parse_special, asked.template) == ("Hi", True, None)
    assert sampling(OllamaOptions()) == DEFAULTS


async def test_a_think_level_is_an_effort(api, client):
    await chat(client, think=False)
    assert api.pool.submitted[-1][1].reasoning == Reasoning(enabled=False)


async def test_an_answer_that_was_begun_goes_on(api, client):
    await chat(client, messages=[*HELLO, {"role": "assistant", "content": "He"}])
    assert api.pool.submitted[-1][1].continues


async def test_tools_reach_the_engine(api, client):
    await chat(client, tools=[TOOL])
    assert api.pool.submitted[-1][1].tools == (Tool("add", "Adds.", '{"type": "object"}'),)


def test_results_without_an_id_belong_to_the_first_open_call_of_their_tool():
    def call(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}}

    sent = [
        {"role": "assistant", "tool_calls": [call("a"), call("b"), call("a")]},
        {"role": "tool", "content": "1", "tool_name": "b"},
        {"role": "tool", "content": "2", "tool_name": "a"},
        {"role": "tool", "content": "3"},
    ]
    turns = domain_messages([OllamaMessage.model_validate(turn) for turn in sent])
    assert turns[0].tool_calls == tuple(ToolCall(f"call_0_{i}", name, "{}") for i, name in enumerate("aba"))
    assert [(turn.tool_call_id, turn.name) for turn in turns[1:]] == [
        ("call_0_1", "b"),
        ("call_0_0", "a"),
        ("call_0_2", "a"),
    ]


def test_a_conversation_is_shortened_from_its_oldest_words_and_keeps_system_and_end():
    turns = [Message("system", "s"), Message("user", "1"), Message("assistant", "2"), Message("user", "3")]
    assert droppable(turns) == 2
    assert [turn.content for turn in without_oldest(turns, 2)] == ["s", "3"]
    assert without_oldest(turns, 0) == tuple(turns)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(5, 5), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("1.5s", 1.5), (0, 0), ("0", 0), ("60", 60)],
)
def test_durations_are_seconds_or_gos(written, seconds):
    assert duration_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", [-1, "-1", "-1m", "1000000h"])
def test_below_nothing_is_for_ever(written):
    assert duration_seconds(written) == math.inf


@pytest.mark.parametrize("written", ["", "m", "5 m", "5x", "soon"])
def test_what_is_no_duration_is_refused(written):
    with pytest.raises(ValueError, match="no duration"):
        duration_seconds(written)


@pytest.mark.parametrize(
    "template", ["{{ if .System }}x{{ end }}", "{{- range .Messages }}{{ end }}", "{{ .Prompt }}!", "{{ $x }}"]
)
def test_gos_templates_are_refused(template):
    with pytest.raises(NotSupported, match="Jinja"):
        jinja(template)


def test_jinja_is_taken_and_the_prompt_alone_is_words_alone():
    text = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert jinja(text) == text
    assert "messages" in jinja("{{ .Prompt }}")


# --- loading -----------------------------------------------------------------------------------------------------


async def test_an_empty_request_loads_and_with_keep_alive_0_unloads(api, client):
    for path, field in (("/api/generate", "response"), ("/api/chat", "message")):
        loaded = (await client.post(path, json={"model": "gloss:F16", "stream": False, "keep_alive": "1m"})).json()
        assert (loaded["done"], loaded["done_reason"], field in loaded) == (True, "load", True)
        assert api.pool.is_loaded(api.catalog.resolve("gloss:F16").digest)
        assert list(api.pool.kept.values()) == [60]
        (entry,) = (await client.get("/api/ps")).json()["models"]
        assert (entry["name"], entry["size"], entry["context_length"]) == ("gloss:F16", 1000, 512)
        gone = lines_of(await client.post(path, json={"model": "gloss:F16", "keep_alive": 0}))
        assert [line["done_reason"] for line in gone] == ["unload"]
        assert not api.pool.loaded
    assert api.pool.submitted == []


# --- what is there -----------------------------------------------------------------------------------------------


async def test_tags_lists_each_variant_and_each_tag(client):
    assert (await client.post("/api/copy", json={"source": "gloss:F16", "destination": "gloss:mine"})).content == b""
    models = (await client.get("/api/tags")).json()["models"]
    assert {model["name"] for model in models} == {"gloss:F16", "gloss:mine", "gloss:Q8_0"}
    model = next(model for model in models if model["name"] == "gloss:Q8_0")
    assert set(model) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert (len(model["digest"]), model["details"]["family"]) == (64, "llama")


async def test_a_copy_is_latest_and_goes_with_its_name_without_touching_its_source(client):
    assert (await client.post("/api/copy", json={"source": "gloss:F16", "destination": "words"})).status_code == 200
    names = {model["name"] for model in (await client.get("/api/tags")).json()["models"]}
    assert names == {"gloss:F16", "gloss:Q8_0", "words:F16", "words:latest"}
    assert (await client.request("DELETE", "/api/delete", json={"model": "words"})).status_code == 200
    names = {model["name"] for model in (await client.get("/api/tags")).json()["models"]}
    assert names == {"gloss:F16", "gloss:Q8_0"}
    again = await client.request("DELETE", "/api/delete", json={"name": "words"})
    assert (again.status_code, again.json()["code"]) == (404, "model_not_found")


async def test_a_tag_in_the_same_model_goes_without_its_variant(client):
    await client.post("/api/copy", json={"source": "gloss:F16", "destination": "gloss"})
    assert (await client.request("DELETE", "/api/delete", json={"model": "gloss"})).status_code == 200
    assert {model["name"] for model in (await client.get("/api/tags")).json()["models"]} == {"gloss:F16", "gloss:Q8_0"}
    # Sent twice it must not cost a file.
    assert (await client.request("DELETE", "/api/delete", json={"model": "gloss"})).status_code == 409


async def test_create_adds_a_preset_that_a_request_overrides(api, client):
    made = await client.post(
        "/api/create",
        json={
            "model": "pirate",
            "from": "gloss:F16",
            "system": "Arr.",
            "parameters": {"temperature": 0.1, "top_k": 3, "num_gpu": 1},
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "stream": False,
        },
    )
    assert made.json() == {"status": "success"}
    await chat(client, model="pirate", options={"top_k": 5})
    variant, asked = api.pool.submitted[-1]
    assert variant.name == "pirate:F16"
    assert asked.messages == (
        Message("system", "Arr."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "Hi"),
    )
    assert (asked.sampling.temperature, asked.sampling.top_k) == (0.1, 5)
    # The variant's own name says nothing of it.
    await chat(client, model="pirate:F16")
    assert api.pool.submitted[-1][1].messages == (Message("user", "Hi"),)
    # Made once more, from another file: the first one makes room.
    assert api.services.presets.find(parse_ref("pirate")).parent == "gloss:F16"
    source = api.add("other", "F16")
    lines = lines_of(await client.post("/api/create", json={"model": "pirate", "from": "other"}))
    assert lines == [
        {"status": f"using existing layer {source.digest}"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    assert api.catalog.resolve("pirate").digest == source.digest
    assert api.services.presets.find(parse_ref("pirate")).system is None


async def test_what_cannot_be_created_is_refused_before_the_first_line(client):
    for fields, said in (
        ({}, "neither 'from' or 'files' was specified"),
        ({"from": "gloss", "files": {"a": "sha256:" + "0" * 64}}, "two sources"),
        ({"from": "glos"}, "not found"),
        ({"files": {"a": "sha256:" + "0" * 64}}, "No blob"),
        ({"files": {"a": "x"}}, "digest"),
        ({"files": {"a": "sha256:" + "0" * 64, "b": "y"}}, "No blob"),
        ({"from": "gloss", "adapters": {"a": "x"}}, "digest"),
        ({"from": "gloss", "adapters": {"a": "sha256:" + "0" * 64}}, "No blob"),
        ({"from": "gloss", "template": "{{ .Prompt }}!"}, "Jinja"),
        ({"from": "gloss:F16", "quantize": "Q9"}, "Q9"),
    ):
        answer = await client.post("/api/create", json={"model": "made", **fields})
        assert answer.status_code in (400, 404)
        assert said in answer.json()["error"]


@pytest.mark.parametrize("joined", [False, True])
async def test_a_client_that_leaves_cancels_the_job_that_was_begun_for_it(api, raw, joined):
    if joined:
        variant = api.catalog.resolve("gloss:F16")
        await api.services.jobs.submit_quantize(QuantizeSpec(variant.name, variant.digest, ("Q4_K_M",)))
    body = {"model": "small", "from": "gloss:F16", "quantize": "q4_k_m"}
    request = raw("POST", "/api/create", json.dumps(body).encode())
    running = asyncio.create_task(request.run())
    async with asyncio.timeout(5):
        while "quantizing F16 model to Q4_K_M" not in request.text:
            await asyncio.sleep(0.01)
        request.hang_up.set()
        await running
        (job,) = api.queue.list()
        while not joined and api.queue.get(job.id).status is JobStatus.QUEUED:
            await asyncio.sleep(0.01)
    assert api.queue.get(job.id).status is (JobStatus.QUEUED if joined else JobStatus.CANCELLED)
    assert "small" not in {variant.model.display for variant in api.catalog.variants()}


async def test_a_blob_comes_in_and_is_asked_for(api, client):
    digest = f"sha256:{hashlib.sha256(b'bytes').hexdigest()}"
    assert (await client.head(f"/api/blobs/{digest}")).status_code == 404
    assert (await client.post(f"/api/blobs/{digest}", content=b"other")).status_code == 400
    assert (await client.post(f"/api/blobs/{digest}", content=b"bytes")).status_code == 201
    assert (await client.post(f"/api/blobs/{digest}", content=b"bytes")).status_code == 200
    assert (await client.head(f"/api/blobs/{digest}")).status_code == 200


async def test_pull_succeeds_for_what_is_here_and_else_says_what_to_do(client):
    lines = lines_of(await client.post("/api/pull", json={"name": "gloss:F16"}))
    assert [line["status"] for line in lines][-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert lines[1]["completed"] == lines[1]["total"]
    assert (await client.post("/api/pull", json={"model": "nobody/nothing"})).status_code == 403
    assert (await client.post("/api/push", json={"model": "gloss"})).status_code == 400
    assert (await client.post("/api/show", json={})).json()["error"].startswith("model is required")


async def test_a_body_needs_no_content_type_here_and_elsewhere_it_does(client):
    content = b'{"model": "gloss:F16", "prompt": "Hi", "raw": true, "stream": false}'
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await client.post("/api/generate", content=content, headers=form)).json()["response"] == "Hello"
    assert (await client.post("/v1/generate", content=content, headers=form)).status_code == 415


async def test_every_route_of_the_dialect_asks_for_a_key(make_api):
    api = make_api(api_key_hashes=(b"0" * 32,))
    async with api.client() as client:
        for path in ("/", "/api/tags", "/api/ps", "/api/version"):
            answer = await client.get(path)
            assert answer.status_code == 401
        assert "error" in (await client.get("/api/tags")).json()
        assert isinstance((await client.get("/api/tags")).json()["error"], str)


# --- cards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [(134_515_008, "134.52M"), (7_000_000_000, "7B"), (1_543_714_304, "1.5B"), (5_770_496, "5.77M"), (900, "900")],
)
def test_sizes_are_printed_as_ollama_prints_them(parameters, shown):
    assert parameter_size(parameters) == shown


def test_capabilities_come_from_the_template_and_the_metadata():
    assert capabilities("", {"general.architecture": "llama"}) == ["completion"]
    assert capabilities("", {"general.architecture": "bert", "bert.pooling_type": 1}) == ["embedding"]
    template = "{% if tools %}{% endif %}<think>{{ messages }}</think>"
    metadata = {"general.architecture": "qwen2", "tokenizer.ggml.fim_pre_token_id": 3}
    assert {"completion", "tools", "insert"} <= set(capabilities(template, metadata))


def test_a_modelfile_makes_the_name_again(api):
    variant = api.catalog.resolve("gloss:F16")
    preset = Preset(system="Be brief.", parameters={"top_k": 3, "stop": ["a", "b"]}, licenses=("free",))
    text = modelfile("brief", variant, preset)
    assert 'FROM gloss:F16\nSYSTEM """Be brief."""\nPARAMETER top_k 3\nPARAMETER stop "a"\n' in text
    assert parameter_lines(preset.parameters).splitlines()[0].split() == ["top_k", "3"]
