"""`POST /v1/generate` against a running server with a real model: what its fields promise is what comes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from service.cli.events import events
from tests.server import MakeServer, Server, until

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
QUESTION = [{"role": "user", "content": 'What does "horse" mean?'}]
POINT = {
    "type": "object",
    "properties": {"y": {"type": "integer", "minimum": 0, "maximum": 9}, "name": {"enum": ["a", "b"]}},
    "required": ["y", "name"],
    "additionalProperties": False,
}


def ask(server: Server, status: int = 200, **fields: Any) -> Any:
    body = {"model": "gloss:F16", "messages": QUESTION, "temperature": 0, "max_tokens": 40, **fields}
    if "prompt" in fields:
        del body["messages"]
    return server.json("POST", "/v1/generate", status, body)


def stream(server: Server, **fields: Any) -> list[tuple[str, Any]]:
    body = {"model": "gloss:F16", "messages": QUESTION, "temperature": 0, "max_tokens": 40, "stream": True, **fields}
    with server.client.stream("POST", "/v1/generate", json=body) as answer:
        assert answer.status_code == 200
        return [(event.kind, json.loads(event.data)) for event in events(answer.iter_bytes())]


def test_greedy_text_is_the_same_whatever_makes_it_faster(gloss_server: Server) -> None:
    assert ask(gloss_server)["text"] == HORSE
    for fields in ({"speculate": False}, {"cache_prompt": False}, {"logprobs": 3}, {"draft": "gloss:Q4_K_M"}):
        assert ask(gloss_server, **fields)["text"] == HORSE, fields


def test_a_prompt_that_was_read_before_is_taken_from_the_cache(gloss_server: Server) -> None:
    prompt = "In the beginning was the word, and the word was in the dictionary, and"
    first = ask(gloss_server, prompt=prompt, max_tokens=4)
    again = ask(gloss_server, prompt=prompt, max_tokens=4)
    assert again["text"] == first["text"]
    assert again["usage"]["cached_tokens"] >= again["usage"]["prompt_tokens"] - 1 > 0
    apart = ask(gloss_server, prompt=prompt, max_tokens=4, cache_prompt=False)
    assert apart["usage"]["cached_tokens"] == 0


def test_choices_with_a_seed_are_those_of_the_seeds_that_follow(gloss_server: Server) -> None:
    seed = 7
    drawn: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "prompt": "It was"}
    body = ask(gloss_server, n=3, seed=seed, **drawn)
    texts = [choice["text"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [ask(gloss_server, seed=seed + index, **drawn)["text"] for index in range(3)]
    assert body["usage"]["prompt_tokens"] == body["choices"][0]["usage"]["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == sum(c["usage"]["completion_tokens"] for c in body["choices"])


def test_a_stream_of_choices_gives_the_texts_of_the_answer(gloss_server: Server) -> None:
    drawn: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "seed": 3, "n": 2}
    whole = ask(gloss_server, **drawn)
    came = stream(gloss_server, **drawn)
    for choice in whole["choices"]:
        own = [(kind, data) for kind, data in came if data["index"] == choice["index"]]
        assert "".join(data["text"] for kind, data in own if kind == "token") == choice["text"]
        assert [data["finish_reason"] for kind, data in own if kind == "done"] == [choice["finish_reason"]]
        assert own[-1][0] == "done"


def test_log_probabilities_are_those_of_the_text(gloss_server: Server) -> None:
    body = ask(gloss_server, logprobs=5)
    drawn = body["logprobs"]
    text = b"".join(bytes(token["bytes"]) for token in drawn).decode()
    assert text.startswith(body["text"])  # an end token may follow
    for token in drawn:
        likeliest = [chance["logprob"] for chance in token["top_logprobs"]]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 5
        assert math.isclose(token["logprob"], likeliest[0], abs_tol=1e-6)  # greedy
        assert sum(math.exp(logprob) for logprob in likeliest) <= 1.0001
    streamed = [
        entry for kind, data in stream(gloss_server, logprobs=5) if kind == "token" for entry in data["logprobs"]
    ]
    assert [token["bytes"] for token in streamed] == [token["bytes"] for token in drawn]


def test_a_text_is_json_or_fits_the_schema(gloss_server: Server) -> None:
    point = ask(gloss_server, format=POINT, temperature=1.0, seed=5)
    assert point["finish_reason"] == "stop"
    found = json.loads(point["text"])
    assert list(found) == ["y", "name"]
    assert found["y"] in range(10)
    assert found["name"] in ("a", "b")
    assert ask(gloss_server, format="json", max_tokens=8)["text"].lstrip().startswith("{")
    same = ask(gloss_server, grammar={"kind": "json_schema", "source": json.dumps(POINT)}, temperature=1.0, seed=5)
    assert same["text"] == point["text"]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", r"(cat|dog)-[0-9]{3}"),
        ("gbnf", 'root ::= ("cat" | "dog") "-" [0-9] [0-9] [0-9]'),
        ("lark", 'start: ("cat" | "dog") "-" /[0-9]{3}/'),
    ],
)
def test_a_text_is_what_its_grammar_says(gloss_server: Server, kind: str, source: str) -> None:
    for n in (1, 2):
        body = ask(gloss_server, grammar={"kind": kind, "source": source}, temperature=1.0, seed=1, n=n)
        for choice in body.get("choices", [body]):
            assert re.fullmatch(r"(cat|dog)-\d{3}", choice["text"]), choice["text"]
            assert choice["finish_reason"] == "stop"


def test_a_grammar_that_cannot_be_read_is_refused_by_its_field(gloss_server: Server) -> None:
    for fields, param in (
        ({"grammar": {"kind": "regex", "source": "(("}}, "grammar"),
        ({"grammar": {"kind": "gbnf", "source": "root ::= " + "(" * 8000}}, "grammar"),
        ({"format": {"type": "nothing"}}, "format"),
    ):
        error = ask(gloss_server, 400, **fields)["error"]
        assert (error["code"], error["param"]) == ("invalid_grammar", param)


def test_every_way_to_sample_gives_text(gloss_server: Server) -> None:
    ways: list[dict[str, Any]] = [
        {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["\n"]},
        {"dry_multiplier": 100.0, "dry_base": 10.0, "dry_allowed_length": 1, "dry_sequence_breakers": []},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0},
        {"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 1.0},
        {"mirostat": 2, "mirostat_tau": 100.0, "mirostat_eta": 0.1},
        {"temperature": 5.0, "min_p": 0.0, "top_p": 1.0, "top_k": 0},
        {"top_p": 0.0, "typical_p": 0.0, "min_p": 1.0},
        {"repeat_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": -2.0},
    ]
    for way in ways:
        drawn: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 16, "ignore_eos": True, **way}
        body = ask(gloss_server, **drawn)
        assert body["usage"]["completion_tokens"] == 16, way
        assert ask(gloss_server, **drawn)["text"] == body["text"], way


def test_dry_does_not_say_the_same_again(gloss_server: Server) -> None:
    drawn: dict[str, Any] = {
        "prompt": "one two three four one two three four one two three four one two",
        "max_tokens": 24,
    }
    plain = ask(gloss_server, **drawn)
    dry = ask(gloss_server, dry_multiplier=10.0, **drawn)
    assert dry["text"] != plain["text"]


def test_drafts_are_counted_and_right_ones_are_no_more_than_all(gloss_server: Server) -> None:
    prompt = "the cat sat on the mat. the cat sat on the mat. the cat sat on the mat. the cat"
    usage = ask(gloss_server, prompt=prompt, max_tokens=32, ignore_eos=True)["usage"]
    assert 0 <= usage["accepted_tokens"] <= usage["draft_tokens"]
    none = ask(gloss_server, prompt=prompt, max_tokens=32, ignore_eos=True, speculate=False)["usage"]
    assert (none["draft_tokens"], none["accepted_tokens"]) == (0, 0)


def test_a_draft_that_is_not_there_is_not_found(gloss_server: Server) -> None:
    error = ask(gloss_server, 404, draft="gloss:Q6_K")["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "draft")


def test_more_context_than_the_model_has_is_refused_and_less_is_served(gloss_server: Server) -> None:
    assert ask(gloss_server, context_length=64)["text"] == HORSE
    error = ask(gloss_server, 400, context_length=1 << 20)["error"]
    assert (error["code"], error["param"]) == ("invalid_parameter", "context_length")


def test_one_keys_prompts_are_not_in_another_keys_cache(make_gloss_server: MakeServer) -> None:
    keys = ["the-first-key-of-two-keys", "the-second-key-of-two-keys"]
    server = make_gloss_server(QUANTRY_API_KEYS=",".join(keys))

    def cached(key: str) -> int:
        server.client.headers["X-API-Key"] = key
        usage: dict[str, int] = ask(server, prompt="It is a truth that is known to all who own a dictionary")["usage"]
        return usage["cached_tokens"]

    assert cached(keys[0]) == 0
    assert cached(keys[0]) > 0
    assert cached(keys[1]) == 0
    assert cached(keys[1]) > 0


def test_hanging_up_on_several_choices_frees_them_all(gloss_server: Server) -> None:
    body = {"model": "gloss:F16", "prompt": "And", "max_tokens": 400, "ignore_eos": True, "n": 4, "stream": True}
    with gloss_server.client.stream("POST", "/v1/generate", json=body) as answer:
        next(answer.iter_bytes())
    until(lambda: not gloss_server.active())


# --- tools and thinking ------------------------------------------------------------------------------------------

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
    },
}


@pytest.mark.parametrize("model", ["gloss", "thinker"])
def test_a_tool_is_called_after_some_thinking(tools_server: Server, model: str) -> None:
    fields: dict[str, Any] = {
        "model": model, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False,
        "max_tokens": 120, "reasoning": {"max_tokens": 8}, "cache_prompt": False,
    }  # fmt: skip
    whole = ask(tools_server, **fields)
    assert (whole["finish_reason"], whole["text"]) == ("tool_calls", "")
    assert bool(whole["reasoning"]) == (model == "thinker") == (whole["usage"]["reasoning_tokens"] > 0)
    (call,) = whole["tool_calls"]
    assert set(json.loads(call["arguments"])) == {"city", "unit"}
    came = stream(tools_server, **fields)
    assert "".join(data["text"] for kind, data in came if kind == "thought") == (whole["reasoning"] or "")
    pieces = [data for kind, data in came if kind == "tool_call"]
    assert [piece["name"] for piece in pieces if "name" in piece] == ["get_weather"]
    assert "".join(piece["arguments"] for piece in pieces) == call["arguments"]
    turns = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": call["id"]},
    ]
    answer = ask(tools_server, model=model, messages=turns, tools=[WEATHER], max_tokens=4)
    assert answer["usage"]["prompt_tokens"] > whole["usage"]["prompt_tokens"]
