"""`POST /v1/generate`: shapes, streams, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api.auth import hash_keys
from service.domain.errors import PromptTooLong, QueueFull
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Timings,
    Token,
    TokenChance,
    TokenLogprob,
    Usage,
)
from tests.unit.api.conftest import KEY


def events_of(text: str) -> list[tuple[str | None, Any]]:
    """(event, data) of every server-sent event; asserts the framing."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


async def test_text_comes_whole_with_usage_and_timings(client, api):
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "Hi", "max_tokens": 8})
    assert answer.status_code == 200
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    body = answer.json()
    assert body.pop("id").startswith("gen-")
    assert body.pop("created_at").endswith("Z")
    assert body == {
        "object": "generation",
        "model": "gloss:Q8_0",
        "text": "Hello",
        "reasoning": None,
        "tool_calls": None,
        "logprobs": None,
        "finish_reason": "stop",
        "stop": None,
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "cached_tokens": 0,
            "draft_tokens": 0,
            "accepted_tokens": 0,
            "reasoning_tokens": 0,
        },
        "timings": {
            "queue_seconds": 0.01,
            "load_seconds": 0.0,
            "prompt_seconds": 0.5,
            "generation_seconds": 0.25,
            "prompt_tokens_per_second": 10.0,
            "generation_tokens_per_second": 4.0,
        },
    }
    _, request = api.pool.submitted[0]
    assert (request.prompt, request.max_tokens, request.messages) == ("Hi", 8, ())


async def test_a_stream_is_tokens_and_one_done(client):
    answer = await client.post("/v1/generate", json={"model": "gloss:q8_0", "prompt": "Hi", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert "".join(data["text"] for event, data in events if event == "token") == "Hello"
    assert [event for event, _ in events if event != "token"] == ["done"]
    assert events[-1][1]["finish_reason"] == "stop"
    assert events[-1][1]["usage"]["total_tokens"] == 7


async def test_every_field_reaches_the_pool(client, api):
    await client.post(
        "/v1/generate",
        json={
            "model": "gloss", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "temperature": 0,
            "top_k": 1, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": -1,
            "presence_penalty": -1, "frequency_penalty": 2, "seed": 7, "stop": "END", "ignore_eos": True,
            "logit_bias": {"12": -100}, "dry_multiplier": 0.8, "dry_base": 2, "dry_allowed_length": 3,
            "dry_penalty_last_n": 100, "dry_sequence_breakers": ["x"], "xtc_probability": 0.5, "xtc_threshold": 0.2,
            "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2, "n": 1, "logprobs": 5, "speculate": False,
            "draft": "gloss:q8_0", "context_length": 128, "cache_prompt": False,
        },
    )  # fmt: skip
    _, request = api.pool.submitted[0]
    sampling = request.sampling
    assert (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length) == (0.8, 2, 3)
    assert (sampling.dry_penalty_last_n, sampling.dry_sequence_breakers) == (100, ("x",))
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert (sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta) == (2, 4, 0.2)
    assert (request.choices, request.logprobs, request.speculate, request.draft) == (1, 5, False, "gloss:Q8_0")
    assert (request.context_length, request.cache_prompt) == (128, False)
    assert request.messages[0].content == "x"
    assert request.stop == ("END",)
    assert request.ignore_eos
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 1, 0.5, 0.1)
    assert (sampling.typical_p, sampling.repeat_penalty, sampling.repeat_last_n) == (0.9, 1.1, -1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.seed) == (-1, 2, 7)
    assert sampling.logit_bias == ((12, -100),)


async def test_what_is_left_out_is_the_domains_default(client, api):
    await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"})
    assert api.pool.submitted[0][1] == GenerationRequest(prompt="x", client="127.0.0.1")


async def test_a_seed_of_minus_one_is_a_fresh_one(client, api):
    await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "seed": -1})
    assert api.pool.submitted[0][1].sampling.seed is None


RANGES: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 2**20 + 1, 2**31, 2**63, 10**30, "1", True, 1.5],
    "temperature": [-0.1, 5.1, "1", True, 10**30],
    "top_k": [-1, 1_000_001, 2**63, True, "40", 1.5],
    "top_p": [-0.1, 1.1, True],
    "min_p": [-0.1, 1.1, True],
    "typical_p": [-0.1, 1.1, True],
    "repeat_penalty": [0, -1, 10.5, True],
    "repeat_last_n": [-2, 2**20 + 1, 2**63, True, 0.5],
    "presence_penalty": [-2.1, 2.1, True],
    "frequency_penalty": [-2.1, 2.1, True],
    "seed": [-2, 2**32, 2**63, True, 1.5, "7"],
    "stop": ["", ["x"] * 17, ["x" * 257], [""], [1], 1],
    "logit_bias": [{"a": 1}, {"-1": 1}, {"1": 101}, {"1": True}, {"123456789": 1}, [1]],
    "dry_multiplier": [-0.1, 101, True],
    "dry_base": [0.99, 11, True],
    "dry_allowed_length": [0, 2**20 + 1, 1.5, True],
    "dry_penalty_last_n": [-2, 2**20 + 1, True],
    "dry_sequence_breakers": ["x", [""], ["x" * 41], ["x"] * 9, [1]],
    "xtc_probability": [-0.1, 1.1, True],
    "xtc_threshold": [-0.1, 1.1, True],
    "mirostat": [-1, 3, True, 0.5],
    "mirostat_tau": [-1, 101, True],
    "mirostat_eta": [-0.1, 1.1, True],
    "n": [0, 17, 2**63, True, 1.5],
    "logprobs": [-1, 21, True, 0.5],
    "format": ["", "xml", [], 1, True, {"enum": ["x" * 65536]}],
    "grammar": [
        "root ::= x",
        {"kind": "regex"},
        {"kind": "yacc", "source": "x"},
        {"kind": "regex", "source": ""},
        {"kind": "regex", "source": "x" * 16385},
        {"kind": "gbnf", "source": "ä" * 8193},
        {"kind": "lark", "source": 1},
        {"kind": "json_schema", "source": "x" * 65537},
        {"kind": "json_schema", "source": {}},
        {"kind": "regex", "source": "x", "flags": "i"},
    ],
    "speculate": [1, "yes"],
    "draft": ["", 1, "x" * 601],
    "context_length": [0, 2**20 + 1, True, "x"],
    "cache_prompt": [1, "yes"],
    "stream": [1, "true"],
    "ignore_eos": [1, "yes"],
    "prompt": [1, ["x"], True],
    "messages": [[], [{"role": "robot", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 1}]],
    "model": ["", 1, None, "x" * 601],
}


@pytest.mark.parametrize("field", RANGES)
async def test_an_impossible_value_is_refused_by_name(client, api, field):
    for value in RANGES[field]:
        body: dict[str, Any] = {"model": "gloss", "prompt": "x", field: value}
        if field == "messages":
            del body["prompt"]
        answer = await client.post("/v1/generate", json=body)
        assert answer.status_code == 400, value
        error = answer.json()["error"]
        assert error["code"] == "invalid_parameter", value
        assert error["param"].startswith(field), value
    assert api.pool.submitted == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
async def test_a_number_that_is_none_is_refused(client, number):
    content = b'{"model": "gloss", "prompt": "x", "temperature": ' + number.encode() + b"}"
    answer = await client.post("/v1/generate", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_parameter"
    assert answer.json()["error"]["param"] == "temperature"


async def test_an_unknown_field_is_refused_by_name(client):
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "max_token": 4})
    assert answer.json()["error"] == {
        "code": "invalid_parameter",
        "message": "There is no field 'max_token'; remove it, or see /openapi.json for the fields of this route.",
        "type": "invalid_request_error",
        "param": "max_token",
    }


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}])
async def test_exactly_one_of_prompt_and_messages(client, body):
    answer = await client.post("/v1/generate", json={"model": "gloss", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Send exactly one of prompt and messages."


async def test_an_unknown_model_is_a_404_that_names_the_field(client):
    answer = await client.post("/v1/generate", json={"model": "glos", "prompt": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.json()["error"]["param"] == "model"
    assert "gloss" in answer.json()["error"]["message"]


async def test_a_corrupt_variant_is_not_served(client, api):
    variant = api.catalog.resolve("gloss:Q8_0")
    api.catalog.mark_corrupt(variant.digest, True)
    answer = await client.post("/v1/generate", json={"model": "gloss:Q8_0", "prompt": "x"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "blob_corrupt"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_any_text_is_a_status(client, api, stream):
    error = PromptTooLong("The prompt has 600 tokens and the context 512; shorten it.", param="prompt")
    api.pool.script = [Failed(error.code, error.message, error.param)]
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": stream})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_429_with_retry_after(client, api, stream):
    api.pool.error = QueueFull("Too many requests wait; try again.", retry_after_seconds=3)
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": stream})
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "3"


async def test_an_error_after_the_first_text_ends_the_stream_with_one_error(client, api):
    api.pool.script = [Token("Hel"), Failed("worker_died", "The worker died; send the request again.", None, 2)]
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    events = events_of(answer.text)
    assert [event for event, _ in events] == ["token", "error"]
    assert events[-1][1]["error"]["code"] == "worker_died"


async def test_an_error_after_the_first_text_is_a_status_without_stream(client, api):
    api.pool.script = [Token("Hel"), Failed("worker_died", "The worker died; send the request again.", None, 2)]
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"


async def test_an_empty_generation_is_a_good_one(client, api):
    api.pool.script = [Finished(FinishReason.LENGTH, Usage(4, 0), Timings(), None)]
    whole = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"})
    assert (whole.json()["text"], whole.json()["finish_reason"]) == ("", "length")
    assert whole.json()["timings"]["generation_tokens_per_second"] is None
    streamed = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    assert [event for event, _ in events_of(streamed.text)] == ["done"]


NASTY = 'a\r\nb\n\ndata: [DONE]\n\nevent: done\u2028\u2029\x85\x1b[31m\x00"\\ \U0001f600'


@pytest.mark.parametrize("splitter", [str.splitlines, lambda text: text.split("\n")])
async def test_no_text_can_break_out_of_its_event(client, api, splitter):
    api.pool.script = [Token(NASTY), Finished(FinishReason.STOP, Usage(1, 1), Timings(), None)]
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    data = [json.loads(line[6:]) for line in splitter(answer.text) if line.startswith("data: ")]
    assert len(data) == 2
    assert data[0] == {"text": NASTY}


# --- grammars, drafts, and who asks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [  # properties keep their order
        ({"format": "json"}, Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')),
        ({"format": {}}, Grammar(GrammarKind.JSON_SCHEMA, "{}")),
        (
            {"format": {"properties": {"z": {"const": "ä"}, "a": {"maximum": 10**30}}}},
            Grammar(GrammarKind.JSON_SCHEMA, f'{{"properties":{{"z":{{"const":"ä"}},"a":{{"maximum":{10**30}}}}}}}'),
        ),
        ({"grammar": {"kind": "regex", "source": "(yes|no)"}}, Grammar(GrammarKind.REGEX, "(yes|no)")),
        ({"grammar": {"kind": "gbnf", "source": 'root ::= "a"'}}, Grammar(GrammarKind.GBNF, 'root ::= "a"')),
        ({"grammar": {"kind": "lark", "source": "start: /a/"}}, Grammar(GrammarKind.LARK, "start: /a/")),
        ({"grammar": {"kind": "json_schema", "source": "{}"}}, Grammar(GrammarKind.JSON_SCHEMA, "{}")),
        ({"format": None, "grammar": None}, None),
    ],
)
async def test_a_format_or_a_grammar_says_what_the_text_looks_like(client, api, fields, grammar):
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", **fields})
    assert answer.status_code == 200
    assert api.pool.submitted[0][1].grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param"), [({"format": {}}, "format"), ({"grammar": {"kind": "json_schema", "source": "{"}}, "grammar")]
)
async def test_a_grammar_that_the_worker_refuses_is_refused_by_its_field(client, api, fields, param):
    api.pool.script = [Failed("invalid_grammar", "It cannot be read; mend it.", "response_format")]
    for stream in (False, True):
        answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": stream, **fields})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert api.pool.cancelled == 0


async def test_a_format_and_a_grammar_are_one_too_many(client, api):
    both = {"format": "json", "grammar": {"kind": "regex", "source": "x"}}
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", **both})
    assert answer.status_code == 400
    assert "send one of them" in answer.json()["error"]["message"]
    assert api.pool.submitted == []


@pytest.mark.parametrize(("draft", "status", "code"), [("nobody", 404, "model_not_found"), ("a/b/c/d", 400, None)])
async def test_a_draft_that_is_not_there_is_refused_by_name(client, api, draft, status, code):
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "draft": draft})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == (code or "invalid_name")
    assert answer.json()["error"]["param"] == "draft"
    assert api.pool.submitted == []


async def test_with_keys_the_cache_and_the_turns_are_the_keys(make_api):
    keys = [KEY, "another-key-of-sixteen-chars"]
    api = make_api(api_key_hashes=hash_keys(keys))
    api.add("gloss", "Q8_0")
    async with api.client() as client:
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": keys[1]}):
            for path in ("/v1/generate", "/v1/completions"):
                await client.post(path, json={"model": "gloss", "prompt": "x"}, headers=headers)
    salts = [request.cache_salt for _, request in api.pool.submitted]
    assert len(set(salts[:4])) == len(set(salts[4:])) == 1
    assert salts[0] != salts[4]
    assert all(salt and salt not in key and key not in salt for salt in salts for key in keys)
    assert [request.client for _, request in api.pool.submitted] == salts


async def test_without_keys_all_share_the_cache_and_take_turns_by_address(client, api, raw):
    await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"}, headers={"X-API-Key": KEY})
    await asyncio.wait_for(raw("POST", "/v1/generate", _body()).run(), 5)
    assert [(request.cache_salt, request.client) for _, request in api.pool.submitted] == [("", "127.0.0.1")] * 2


# --- several choices, log-probabilities, figures -----------------------------------------------------------------

ENDS = (
    Finished(FinishReason.LENGTH, Usage(5, 3, 4, 8, 6), Timings(0.1, 0.2, 0.5, 1.0), choice=1),
    Finished(FinishReason.STOP, Usage(5, 2, 0, 2, 1), Timings(0.2, 0.2, 0.25, 0.5), stop="END", choice=0),
)
SUMS = {
    "prompt_tokens": 5,
    "completion_tokens": 5,
    "total_tokens": 10,
    "cached_tokens": 0,
    "draft_tokens": 10,
    "accepted_tokens": 7,
    "reasoning_tokens": 0,
}


async def test_several_choices_come_in_their_order_with_their_ends(client, api, play):
    play(Token("b", 1), Token("a", 0), Token("B", 1), ENDS[0], Token("A", 0), ENDS[1])
    body = (await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "n": 2})).json()
    assert api.pool.submitted[0][1].choices == 2
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "aA"), (1, "bB")]
    assert [(choice["finish_reason"], choice["stop"]) for choice in body["choices"]] == [
        ("stop", "END"),
        ("length", None),
    ]
    assert body["choices"][1]["usage"]["cached_tokens"] == 4
    assert body["choices"][1]["timings"]["prompt_tokens_per_second"] == 2.0
    assert body["usage"] == SUMS
    together = body["timings"]
    assert [together[f"{stage}_seconds"] for stage in ("queue", "load", "prompt")] == [0.2, 0.2, 0.25]
    assert together["generation_seconds"] == pytest.approx(0.1 + 0.5 + 1.0 - 0.45)
    assert "text" not in body
    figures = api.services.metrics.render().decode()
    assert "quantry_prompt_tokens_total 5.0" in figures
    assert "quantry_generated_tokens_total 5.0" in figures


async def test_a_stream_of_several_choices_names_each_in_every_event(client, play):
    play(Token("b", 1), Token("a", 0), ENDS[0], Token(NASTY, 0), ENDS[1])
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "n": 2, "stream": True})
    events = events_of(answer.text)
    assert [event for event, _ in events] == ["token", "token", "done", "token", "done"]
    assert [data["index"] for _, data in events] == [1, 0, 1, 0, 0]
    assert [data["text"] for event, data in events if event == "token"] == ["b", "a", NASTY]
    assert [data["finish_reason"] for event, data in events if event == "done"] == ["length", "stop"]


async def test_choices_that_fail_fail_together(client, api, play):
    play(Token("b", 1), ENDS[0], Failed("worker_died", "The worker died; send it again."))
    whole = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "n": 2})
    assert whole.status_code == 503
    streamed = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "n": 2, "stream": True})
    assert [event for event, _ in events_of(streamed.text)] == ["token", "done", "error"]


async def test_a_choice_without_an_end_is_an_error(client, play):
    play(Token("b", 1), ENDS[0])
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "n": 2})
    assert answer.json()["error"]["code"] == "internal_error"


DRAWN = (
    TokenLogprob(b"O", -0.5, (TokenChance(b"O", -0.5), TokenChance(b"A", -1.5))),
    TokenLogprob(b"\xe2\x82", -4.0, (TokenChance(b" x", -0.25),)),
)
SHOWN = [
    {
        "token": "O",
        "logprob": -0.5,
        "bytes": [79],
        "top_logprobs": [
            {"token": "O", "logprob": -0.5, "bytes": [79]},
            {"token": "A", "logprob": -1.5, "bytes": [65]},
        ],
    },
    {
        "token": "\\xe2\\x82",
        "logprob": -4.0,
        "bytes": [226, 130],
        "top_logprobs": [{"token": " x", "logprob": -0.25, "bytes": [32, 120]}],
    },
]


async def test_log_probabilities_come_with_the_text(client, play):
    play(
        Token("O", 0, DRAWN[:1]),
        Token("", 0, DRAWN[1:]),
        Token("\u20ac"),
        Finished(FinishReason.STOP, Usage(1, 3), Timings()),
    )
    body = {"model": "gloss", "prompt": "x", "logprobs": 2}
    whole = (await client.post("/v1/generate", json=body)).json()
    assert (whole["text"], whole["logprobs"]) == ("O\u20ac", SHOWN)
    streamed = await client.post("/v1/generate", json={**body, "stream": True})
    tokens = [data for event, data in events_of(streamed.text) if event == "token"]
    assert tokens == [
        {"text": "O", "logprobs": SHOWN[:1]},
        {"text": "", "logprobs": SHOWN[1:]},
        {"text": "\u20ac", "logprobs": []},
    ]


async def test_the_figures_are_counted_once(client, api):
    await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    figures = api.services.metrics.render().decode()
    assert "quantry_prompt_tokens_total 5.0" in figures
    assert "quantry_generated_tokens_total 2.0" in figures
    assert 'quantry_generations_total{outcome="stop"} 1.0' in figures
    assert "quantry_time_to_first_token_seconds_count 1.0" in figures
    assert 'quantry_requests_total{route="/v1/generate",status="200"} 1.0' in figures


# --- hang-ups and slow readers -----------------------------------------------------------------------------------


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "gloss", "prompt": "x", **fields}).encode()


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_while_queued_gives_the_place_back(api, raw, stream):
    api.pool.hold = asyncio.Event()
    request = raw("POST", "/v1/generate", _body(stream=stream))
    running = asyncio.create_task(request.run())
    await asyncio.wait_for(api.pool.entered.wait(), 5)
    request.hang_up.set()
    await asyncio.wait_for(running, 1)
    assert api.pool.cancelled == 1
    assert request.sent == []


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_while_waiting_for_text_cancels(api, raw, stream):
    api.pool.open_ended, api.pool.script = True, []
    request = raw("POST", "/v1/generate", _body(stream=stream))
    running = asyncio.create_task(request.run())
    await asyncio.wait_for(api.pool.entered.wait(), 5)
    request.hang_up.set()
    await asyncio.wait_for(running, 1)
    assert api.pool.cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_in_the_middle_cancels(api, raw, stream):
    api.pool.open_ended, api.pool.script = True, [Token("Hel")]
    request = raw("POST", "/v1/generate", _body(stream=stream))
    running = asyncio.create_task(request.run())
    await asyncio.wait_for(api.pool.entered.wait(), 5)
    while stream and len(request.sent) < 2:
        await asyncio.sleep(0)
    request.hang_up.set()
    await asyncio.wait_for(running, 1)
    assert api.pool.cancelled == 1
    assert 'outcome="cancelled"} 1.0' in api.services.metrics.render().decode()


async def test_a_reader_that_stops_reading_is_cut_off(make_api, raw):
    api = make_api(stream_stall_seconds=0.05)
    api.add("gloss", "Q8_0")
    api.pool.open_ended, api.pool.script = True, [Token("Hel")]
    request = raw("POST", "/v1/generate", _body(stream=True), app=api.app)
    request.block_sends = asyncio.Event()
    await asyncio.wait_for(request.run(), 2)
    assert api.pool.cancelled == 1
    assert request.status == 200
    assert request.text == ""


async def test_a_crash_behind_the_stream_ends_it_with_one_error(client, api, monkeypatch):
    async def broken(self):
        yield Token("Hel")
        raise RuntimeError("secret /etc/passwd")

    monkeypatch.setattr("service.workers.stream.Stream.__aiter__", broken)
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    events = events_of(answer.text)
    assert [event for event, _ in events] == ["token", "error"]
    assert events[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_a_stream_without_an_end_gets_one(client, monkeypatch):
    async def cut_short(self):
        yield Token("Hel")

    monkeypatch.setattr("service.workers.stream.Stream.__aiter__", cut_short)
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x", "stream": True})
    assert [event for event, _ in events_of(answer.text)] == ["token", "error"]
    whole = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"})
    assert whole.status_code == 500


async def test_a_crash_before_the_first_byte_tells_nothing(client, api):
    api.pool.error = RuntimeError("secret /etc/passwd")
    answer = await client.post("/v1/generate", json={"model": "gloss", "prompt": "x"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
