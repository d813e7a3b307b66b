"""The official `openai` client against a running server with a real model: what works elsewhere works here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server import Server

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
QUESTION = {"role": "user", "content": 'What does "horse" mean?'}


@pytest.fixture
def client(gloss_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gloss_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_chat_answers_with_text_finish_reason_and_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gloss:q4_K", messages=[QUESTION], temperature=0)  # type: ignore[list-item]
    assert answer.model == "gloss:Q4_K_M"
    assert answer.choices[0].message.content == HORSE
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20


def test_a_streamed_chat_gives_the_same_text_and_usage_at_the_end(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="gloss:F16",
        messages=[QUESTION],  # type: ignore[list-item]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == HORSE
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 10


def test_completions_stop_at_a_string_that_is_not_part_of_the_text(client: OpenAI) -> None:
    answer = client.completions.create(
        model="gloss:F16", prompt="It was a truth", max_tokens=40, temperature=0, stop=[" of"]
    )
    assert answer.choices[0].text
    assert " of" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    limited = client.completions.create(model="gloss:F16", prompt="It was a truth", max_tokens=3, temperature=0)
    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None
    assert limited.usage.completion_tokens == 3


def test_a_prompt_of_tokens_is_the_text_that_they_spell(client: OpenAI, gloss_server: Server) -> None:
    text = "It was a truth"
    tokens = gloss_server.json("POST", "/tokenize", 200, {"model": "gloss:F16", "content": text, "add_special": True})
    asked: dict[str, Any] = {"model": "gloss:F16", "max_tokens": 8, "temperature": 0}
    by_text = client.completions.create(prompt=text, **asked)
    by_tokens = client.completions.create(prompt=tokens["tokens"], **asked)
    assert by_tokens.choices[0].text == by_text.choices[0].text
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(prompt=[4096], **asked)
    assert unknown.value.param == "prompt"


def test_models_are_listed_and_found_by_every_name(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"gloss:F16", "gloss:Q4_K_M", "gloss:Q2_K", "gloss:Q8_0"} <= names
    assert client.models.retrieve("gloss:q4_k").id == "gloss:Q4_K_M"
    assert client.models.retrieve("gloss").id == "gloss:Q4_K_M"


def test_errors_arrive_as_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="glos", messages=[QUESTION])  # type: ignore[list-item]
    assert missing.value.code == "model_not_found"
    assert "gloss" in missing.value.message
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="gloss", messages=[QUESTION], temperature=-1)  # type: ignore[list-item]
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="gloss", prompt="horse " * 700)
    assert long.value.code == "context_length_exceeded"


def test_an_unknown_key_is_told_in_openais_code(keyed_server: Server) -> None:
    with (
        OpenAI(base_url=f"{keyed_server.url}/v1", api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        client.responses.create(model="gloss", input="Hi")
    assert unknown.value.code == "invalid_api_key"


def test_unknown_fields_are_ignored_as_openai_does(client: OpenAI) -> None:
    answer = client.completions.create(model="gloss", prompt="It was", max_tokens=2, extra_body={"shoe_size": 43})
    assert answer.choices[0].finish_reason == "length"


def test_the_variant_that_answered_is_named_in_a_header(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="gloss:q2_K", prompt="It was", max_tokens=2)
    assert raw.headers["x-quantry-variant"] == "gloss:Q2_K"


# --- choices, log-probabilities, grammars, figures ---------------------------------------------------------------

WORD = {
    "type": "object",
    "properties": {"length": {"type": "integer", "minimum": 0, "maximum": 99}, "noun": {"type": "boolean"}},
    "required": ["length", "noun"],
    "additionalProperties": False,
}


def create(client: OpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "gloss:F16", "messages": [QUESTION], "temperature": 0, **fields}
    return client.chat.completions.create(**asked)


def test_several_choices_come_in_order_and_count_their_prompt_once(client: OpenAI) -> None:
    drawn: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 2, "max_tokens": 12}
    answer = create(client, **drawn)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    one = create(client, **(drawn | {"n": 1}))
    assert answer.choices[0].message.content == one.choices[0].message.content
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    texts = dict.fromkeys(range(3), "")
    roles, ends = [], []
    for chunk in create(client, stream=True, **drawn):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            ends += [choice.index] if choice.finish_reason else []
    assert [texts[choice.index] for choice in answer.choices] == [choice.message.content for choice in answer.choices]
    assert (sorted(roles), sorted(ends)) == ([0, 1, 2], [0, 1, 2])


def test_log_probabilities_are_those_of_the_text(client: OpenAI) -> None:
    answer = create(client, logprobs=True, top_logprobs=4)
    drawn = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in drawn).decode().startswith(HORSE)
    assert all(len(token.top_logprobs) == 4 for token in drawn)
    assert all(token.logprob <= 0 for token in drawn)
    chunks = create(client, logprobs=True, top_logprobs=4, stream=True)
    reports = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    streamed = [token for report in reports if report for token in report.content]
    assert [token.token for token in streamed] == [token.token for token in drawn]


def test_completions_report_them_in_columns(client: OpenAI) -> None:
    prompt = "It was a truth"
    answer = client.completions.create(model="gloss:F16", prompt=prompt, max_tokens=6, temperature=0, logprobs=3)
    report = answer.choices[0].logprobs
    assert report is not None
    assert report.tokens is not None
    assert "".join(report.tokens) == answer.choices[0].text
    assert report.text_offset is not None
    assert report.text_offset[0] == len(prompt)
    assert report.top_logprobs is not None
    assert all(3 <= len(found) <= 4 for found in report.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_format_is_kept_to(client: OpenAI, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "word", "schema": WORD, "strict": True}}
    answer = create(client, response_format=wanted, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    else:
        text = answer.choices[0].message.content
    assert list(json.loads(text)) == ["length", "noun"]


def test_llama_servers_own_fields_work_as_there(client: OpenAI) -> None:
    answer = create(client, extra_body={"grammar": 'root ::= "yes" | "no"'})
    assert answer.choices[0].message.content in ("yes", "no")
    answer = create(client, extra_body={"json_schema": WORD})
    assert list(json.loads(answer.choices[0].message.content)) == ["length", "noun"]
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, extra_body={"grammar": "root ::= ("})
    assert (refused.value.code, refused.value.param) == ("invalid_grammar", "grammar")


def test_json_mode_gives_an_object(client: OpenAI) -> None:
    answer = create(client, response_format={"type": "json_object"}, max_tokens=8)
    assert answer.choices[0].message.content.lstrip().startswith("{")


def test_cached_tokens_and_timings_are_told(client: OpenAI) -> None:
    question = [{"role": "user", "content": 'What does "dictionary" mean, and who would want one?'}]
    first = create(client, messages=question, max_tokens=4)
    again = create(client, messages=question, max_tokens=4)
    assert again.choices[0].message.content == first.choices[0].message.content
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= again.usage.prompt_tokens - 1
    timings = again.model_extra["timings"]
    assert (timings["cache_n"], timings["prompt_n"]) == (cached, again.usage.prompt_tokens - cached)
    assert timings["predicted_n"] == 4
    assert timings["predicted_per_second"] > 0
    *_, last = create(client, messages=question, max_tokens=4, stream=True)
    assert last.model_extra["timings"]["predicted_n"] == 4
