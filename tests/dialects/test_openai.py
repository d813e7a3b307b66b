"""The official `openai` client against a running server with a real model: what works elsewhere works here."""

from __future__ import annotations

from collections.abc import Iterator

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


def test_unknown_fields_are_ignored_as_openai_does(client: OpenAI) -> None:
    answer = client.completions.create(model="gloss", prompt="It was", max_tokens=2, extra_body={"shoe_size": 43})
    assert answer.choices[0].finish_reason == "length"


def test_the_variant_that_answered_is_named_in_a_header(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="gloss:q2_K", prompt="It was", max_tokens=2)
    assert raw.headers["x-quantry-variant"] == "gloss:Q2_K"
