"""OpenAI's dialect, byte for byte where clients look, and through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from service.domain.errors import PromptTooLong, QueueFull
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    Grammar,
    GrammarKind,
    Timings,
    Token,
    TokenChance,
    TokenLogprob,
    Usage,
)

HELLO = [{"role": "user", "content": "Hi"}]
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
TIMINGS = {
    "cache_n": 0,
    "prompt_n": 5,
    "prompt_ms": 500.0,
    "prompt_per_token_ms": 100.0,
    "prompt_per_second": 10.0,
    "predicted_n": 2,
    "predicted_ms": 250.0,
    "predicted_per_token_ms": 250.0,
    "predicted_per_second": 4.0,
}


def chunks_of(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    blocks = [block.removeprefix("data: ") for block in text[:-2].split("\n\n")]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


async def chat(client, **fields):
    return await client.post("/v1/chat/completions", json={"model": "gloss", "messages": HELLO, **fields})


async def test_a_chat_completion_is_openais(client):
    answer = await chat(client)
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    body = answer.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "chat.completion",
        "model": "gloss:Q8_0",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "timings": TIMINGS,
    }


@pytest.mark.parametrize("include_usage", [None, False, True])
async def test_a_chat_stream_is_role_deltas_end_usage_done(client, api, include_usage):
    api.pool.script = [Token("Hel"), Token("lo"), Finished(FinishReason.LENGTH, Usage(5, 2), Timings())]
    options = {} if include_usage is None else {"stream_options": {"include_usage": include_usage}}
    answer = await chat(client, stream=True, **options)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = chunks_of(answer.text)
    assert done == "[DONE]"
    usage = chunks.pop() if include_usage else None
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1]) == "Hello"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    if include_usage:
        assert all(chunk["usage"] is None for chunk in chunks)
        assert usage["choices"] == []
        assert usage["usage"] == USAGE
    else:
        assert all("usage" not in chunk for chunk in chunks)


async def test_a_text_completion_and_its_stream(client, api):
    whole = await client.post("/v1/completions", json={"model": "gloss", "prompt": ["Hi"]})
    assert whole.json()["object"] == "text_completion"
    assert whole.json()["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert api.pool.submitted[0][1].prompt == "Hi"
    assert api.pool.submitted[0][1].max_tokens == 16
    streamed = await client.post("/v1/completions", json={"model": "gloss", "prompt": "Hi", "stream": True})
    *chunks, last, done = chunks_of(streamed.text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


async def test_text_with_our_own_mark_and_line_ends_stays_whole(client, api):
    text = "\x00text\x00\r\n\ndata: [DONE]\n\n\u2028\x85"
    api.pool.script = [Token(text), Finished(FinishReason.STOP, Usage(1, 1), Timings())]
    answer = await chat(client, stream=True)
    assert chunks_of(answer.text)[1]["choices"][0]["delta"]["content"] == text


async def test_fields_become_what_they_mean(client, api):
    await chat(
        client, max_completion_tokens=9, temperature=0.2, top_p=0.7, seed=-1, stop=["a", "b"], presence_penalty=1,
        frequency_penalty=-1, logit_bias={"5": -100}, top_k=3, min_p=0.2, user="me", metadata={"a": "b"}, unknown=[1],
        dry_multiplier=0.8, dry_base=2, dry_allowed_length=3, dry_penalty_last_n=100, dry_sequence_breakers=[],
        xtc_probability=0.5, xtc_threshold=0.2, mirostat=1, mirostat_tau=4, mirostat_eta=0.2, speculate=False,
        draft="gloss:q8_0", context_length=128, cache_prompt=False, prediction={"type": "content", "content": "x"},
        store=True, parallel_tool_calls=False, tools=[], tool_choice="auto", response_format={"type": "text"}, n=1,
        logprobs=False,
    )  # fmt: skip
    _, request = api.pool.submitted[0]
    sampling = request.sampling
    assert (request.max_tokens, request.stop) == (9, ("a", "b"))
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.2, 0.7, 2**32 - 1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.top_k, sampling.min_p, sampling.logit_bias) == (3, 0.2, ((5, -100),))
    assert (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length) == (0.8, 2, 3)
    assert (sampling.dry_penalty_last_n, sampling.dry_sequence_breakers) == (100, ())
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert (sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta) == (1, 4, 0.2)
    assert (request.speculate, request.draft, request.context_length) == (False, "gloss:Q8_0", 128)
    assert (request.cache_prompt, request.grammar, request.logprobs, request.choices) == (False, None, None, 1)


async def test_what_is_left_out_or_null_is_openais_default(client, api):
    await chat(client)
    await chat(client, temperature=None, top_p=None, max_tokens=None, stop=None, seed=None, stream=None, n=None)
    for _, request in api.pool.submitted:
        assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)
        assert (request.max_tokens, request.stop, request.sampling.seed) == (None, (), None)
        assert (request.speculate, request.cache_prompt, request.choices, request.logprobs) == (True, True, 1, None)


async def test_messages_become_plain_turns(client, api):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "ok", "refusal": None},
        {"role": "user", "content": ""},
    ]
    assert (await chat(client, messages=messages)).status_code == 200
    turns = api.pool.submitted[0][1].messages
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "be brief"),
        ("user", "one\ntwo"),
        ("assistant", "ok"),
        ("user", ""),
    ]


IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]},
            "messages[0].tool_calls[0]",
        ),
    ],
)
async def test_what_is_not_carried_out_is_refused_and_not_ignored(client, api, fields, param):
    answer = await chat(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "not_supported"
    assert answer.json()["error"]["param"] == param
    assert api.pool.submitted == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema.schema",
        ),
        ({"json_schema": {"enum": ["x" * 65536]}}, "json_schema"),
        ({"grammar": "ä" * 8193}, "grammar"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"),
        ({"json_schema": {}, "response_format": {"type": "json_object"}}, "json_schema"),
        ({"mirostat": 3}, "mirostat"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
        ({"draft": "a/b/c/d"}, "draft"),
        ({"context_length": 0}, "context_length"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ],
)
async def test_an_impossible_value_is_refused_by_name(client, api, fields, param):
    answer = await chat(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == ("invalid_name" if param == "draft" else "invalid_parameter")
    assert answer.json()["error"]["param"].startswith(param)
    assert api.pool.submitted == []


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [("a", "a", ()), (["a"], "a", ()), ([5], None, (5,)), ([1, 2.0], None, (1, 2)), ([[1, 2]], None, (1, 2))],
)
async def test_a_prompt_is_text_or_tokens(client, api, prompt, text, tokens):
    assert (await client.post("/v1/completions", json={"model": "gloss", "prompt": prompt})).status_code == 200
    assert (api.pool.submitted[0][1].prompt, api.pool.submitted[0][1].prompt_tokens) == (text, tokens)


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], [], [[]]])
async def test_one_prompt_is_asked_for(client, prompt):
    answer = await client.post("/v1/completions", json={"model": "gloss", "prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"echo": True}, {"best_of": 2}, {"n": 2, "best_of": 3}])
async def test_completion_fields_that_are_not_carried_out(client, fields):
    answer = await client.post("/v1/completions", json={"model": "gloss", "prompt": "x", **fields})
    assert answer.json()["error"]["code"] == "not_supported"


async def test_an_error_after_the_first_text_is_in_the_stream_without_done(client, api):
    api.pool.script = [Token("Hel"), Failed("worker_died", "The worker died; send it again.")]
    *_, last = chunks_of((await chat(client, stream=True)).text)
    assert last["error"]["code"] == "worker_died"


# --- grammars, choices, log-probabilities, figures ---------------------------------------------------------------

POINT = {"type": "object", "properties": {"y": {"type": "integer"}, "x": {"type": "integer"}}}
POINT_SOURCE = '{"type":"object","properties":{"y":{"type":"integer"},"x":{"type":"integer"}}}'


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": POINT, "strict": True}}},
            Grammar(GrammarKind.JSON_SCHEMA, POINT_SOURCE),
        ),
        ({"json_schema": POINT, "response_format": {"type": "text"}}, Grammar(GrammarKind.JSON_SCHEMA, POINT_SOURCE)),
        ({"grammar": 'root ::= "a"', "json_schema": None}, Grammar(GrammarKind.GBNF, 'root ::= "a"')),
    ],
)
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
async def test_what_the_text_looks_like_is_said_in_openais_words_or_llama_servers(client, api, route, fields, grammar):
    asked = {"messages": HELLO} if route.startswith("chat") else {"prompt": "Hi"}
    answer = await client.post(f"/v1/{route}", json={"model": "gloss", **asked, **fields})
    assert answer.status_code == 200
    assert api.pool.submitted[0][1].grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"json_schema": {}}, "json_schema"),
        ({"grammar": "root ::= ("}, "grammar"),
    ],
)
async def test_a_grammar_that_the_worker_refuses_is_refused_by_its_field(client, api, fields, param):
    api.pool.script = [Failed("invalid_grammar", "It cannot be read; mend it.", "response_format")]
    answer = await chat(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "alternatives"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
        ({"logprobs": False, "top_logprobs": 3}, None),
    ],
)
async def test_log_probabilities_are_asked_for_in_chats_way(client, api, fields, alternatives):
    assert (await chat(client, **fields)).status_code == 200
    assert api.pool.submitted[0][1].logprobs == alternatives


A, B = TokenLogprob(b"a", -0.5, (TokenChance(b"x", -1.0),)), TokenLogprob(b"\xe2\x82", -2.0)
A_SHOWN = {
    "token": "a",
    "logprob": -0.5,
    "bytes": [97],
    "top_logprobs": [{"token": "x", "logprob": -1.0, "bytes": [120]}],
}
B_SHOWN = {"token": "\\xe2\\x82", "logprob": -2.0, "bytes": [226, 130], "top_logprobs": []}
ENDS = (
    Finished(FinishReason.LENGTH, Usage(5, 3, 5, 8, 6), Timings(0.0, 0.0, 0.5, 1.0), choice=1),
    Finished(FinishReason.STOP, Usage(5, 2, 3, 2, 1), Timings(0.0, 0.0, 0.25, 0.5), choice=0),
)
SUMS = {
    "prompt_tokens": 5,
    "completion_tokens": 5,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 3,
    },
}


async def test_several_choices_and_their_log_probabilities(client, play):
    play(Token("b", 1), Token("a", 0, (A,)), ENDS[0], Token("", 0, (B,)), ENDS[1])
    body = (await chat(client, n=2, logprobs=True, top_logprobs=1)).json()
    assert [(choice["index"], choice["message"]["content"]) for choice in body["choices"]] == [(0, "a"), (1, "b")]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert body["choices"][0]["logprobs"] == {"content": [A_SHOWN, B_SHOWN], "refusal": None}
    assert body["choices"][1]["logprobs"] == {"content": [], "refusal": None}
    assert body["usage"] == SUMS
    assert body["timings"] == {
        "cache_n": 3, "prompt_n": 2, "prompt_ms": 250.0, "prompt_per_token_ms": 125.0, "prompt_per_second": 8.0,
        "predicted_n": 5, "predicted_ms": 1250.0, "predicted_per_token_ms": 312.5, "predicted_per_second": 3.2,
        "draft_n": 10, "draft_n_accepted": 7,
    }  # fmt: skip


@pytest.mark.parametrize("include_usage", [False, True])
async def test_each_choice_of_a_stream_has_its_role_and_its_end(client, play, include_usage):
    play(Token("b", 1), Token("a", 0, (A,)), ENDS[0], Token("", 0, (B,)), ENDS[1])
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    *chunks, done = chunks_of((await chat(client, n=2, logprobs=True, **options)).text)
    assert done == "[DONE]"
    if include_usage:
        assert chunks[-1]["usage"] == SUMS
        assert chunks[-1]["choices"] == []
    assert [chunk["timings"]["predicted_n"] for chunk in chunks if "timings" in chunk] == [5]
    assert "timings" in chunks[-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [(choice["index"], choice["delta"].get("role")) for choice in choices[:2]] == [
        (0, "assistant"),
        (1, "assistant"),
    ]
    assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in choices[2:]] == [
        (1, {"content": "b"}, None),
        (0, {"content": "a"}, None),
        (1, {}, "length"),
        (0, {"content": ""}, None),
        (0, {}, "stop"),
    ]
    reports = [choice["logprobs"] for choice in choices[2:]]
    assert reports[1] == {"content": [A_SHOWN], "refusal": None}
    assert reports[3] == {"content": [B_SHOWN], "refusal": None}
    assert (reports[2], reports[4]) == (None, None)


async def test_completions_report_log_probabilities_in_columns(client, play):
    euro = TokenLogprob(b"\xac", -3.0, (TokenChance(b"\xac", -3.0), TokenChance(b"\xad", -4.0)))
    play(Token("a", 0, (A,)), Token("\u20acb", 0, (B, euro, TokenLogprob(b"b", -0.1))), ENDS[1])
    asked = {"model": "gloss", "prompt": "Hi", "logprobs": 2}
    body = (await client.post("/v1/completions", json=asked)).json()
    columns = {
        "tokens": ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "b"],
        "token_logprobs": [-0.5, -2.0, -3.0, -0.1],
        "top_logprobs": [
            {"x": -1.0, "a": -0.5},
            {"bytes:\\xe2\\x82": -2.0},
            {"bytes:\\xac": -3.0, "bytes:\\xad": -4.0},
            {"b": -0.1},
        ],
        "text_offset": [2, 3, 3, 4],
    }
    assert body["choices"][0]["logprobs"] == columns
    streamed = await client.post("/v1/completions", json={**asked, "stream": True})
    reports = [chunk["choices"][0]["logprobs"] for chunk in chunks_of(streamed.text)[:-2]]
    assert {name: [*reports[0][name], *reports[1][name]] for name in columns} == columns


async def test_models_are_listed_by_canonical_name(client):
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["gloss:F16", "gloss:Q8_0"]
    assert (await client.get("/v1/models/gloss:q8_0")).json() == body["data"][1]
    assert (await client.get("/v1/models/library/gloss")).json()["id"] == "gloss:Q8_0"
    assert isinstance(body["data"][0]["created"], int)
    assert body["data"][0]["owned_by"] == "library"
    assert (await client.get("/v1/models/none")).json()["error"]["code"] == "model_not_found"


# --- OpenAI's own client -----------------------------------------------------------------------------------------


@pytest.fixture
async def sdk(api):
    transport = httpx.ASGITransport(api.app)
    async with openai.AsyncOpenAI(
        api_key="x",
        base_url="http://127.0.0.1:8080/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    ) as sdk:
        yield sdk


async def test_the_sdk_chats(sdk):
    answer = await sdk.chat.completions.create(model="gloss", messages=HELLO)
    assert answer.choices[0].message.content == "Hello"
    assert answer.usage.total_tokens == 7


async def test_the_sdk_streams(sdk):
    stream = await sdk.chat.completions.create(
        model="gloss", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[-1].usage.total_tokens == 7


async def test_the_sdk_completes_and_lists(sdk):
    assert (await sdk.completions.create(model="gloss", prompt="Hi")).choices[0].text == "Hello"
    assert [model.id async for model in sdk.models.list()] == ["gloss:F16", "gloss:Q8_0"]
    assert (await sdk.models.retrieve("gloss")).id == "gloss:Q8_0"


async def test_the_sdk_reads_log_probabilities_and_details(sdk, play):
    play(Token("a", 0, (A,)), ENDS[1])
    answer = await sdk.chat.completions.create(model="gloss", messages=HELLO, logprobs=True, top_logprobs=1)
    (token,) = answer.choices[0].logprobs.content
    assert (token.token, token.bytes, token.top_logprobs[0].logprob) == ("a", [97], -1.0)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 1
    older = await sdk.completions.create(model="gloss", prompt="Hi", logprobs=1)
    assert older.choices[0].logprobs.top_logprobs == [{"x": -1.0, "a": -0.5}]


async def test_the_sdk_raises_its_own_errors(sdk, api):
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="none", messages=HELLO)
    assert missing.value.code == "model_not_found"
    api.pool.error = PromptTooLong("Too long; shorten it.", param="messages")
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.chat.completions.create(model="gloss", messages=HELLO)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    api.pool.error = QueueFull("Full; try again.")
    with pytest.raises(openai.RateLimitError) as full:
        await sdk.chat.completions.create(model="gloss", messages=HELLO)
    assert full.value.code == "rate_limit_exceeded"


async def test_the_sdk_raises_an_error_within_a_stream(sdk, api):
    api.pool.script = [Token("Hel"), Failed("worker_died", "The worker died; send it again.")]
    stream = await sdk.chat.completions.create(model="gloss", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="worker died"):
        async for _ in stream:
            pass
