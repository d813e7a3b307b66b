"""The official `anthropic` client against a running server with a real model: what works elsewhere works here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from anthropic import Anthropic
from pydantic import BaseModel

from tests.server import KEY, Server

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
QUESTION: Any = [{"role": "user", "content": 'What does "horse" mean?'}]
GREEDY = {"temperature": 0}
SIZES = ["small", "large"]
PAINT: Any = {
    "name": "paint",
    "description": "Paints it.",
    "input_schema": {
        "type": "object",
        "properties": {"size": {"enum": SIZES}, "wet": {"type": "boolean"}},
        "required": ["size", "wet"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(gloss_server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=gloss_server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_message_has_text_stop_reason_and_usage(client: Anthropic) -> None:
    message = client.messages.create(model="gloss:q4_K", max_tokens=60, messages=QUESTION, extra_body=GREEDY)
    assert message.model == "gloss:Q4_K_M"
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": HORSE}]
    assert (message.role, message.type, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "message",
        "end_turn",
        None,
    )
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == 19
    assert usage.output_tokens == 32


def test_a_stream_gives_the_same_message_as_its_whole(client: Anthropic) -> None:
    asked: Any = {"model": "gloss:F16", "max_tokens": 60, "messages": QUESTION, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert [block.text for block in message.content if block.type == "text"] == [HORSE]
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == 19


def test_raw_events_come_in_anthropics_order_with_the_length_of_the_prompt_first(client: Anthropic) -> None:
    asked: Any = {"model": "gloss:F16", "max_tokens": 3, "messages": QUESTION, "extra_body": GREEDY}
    with client.messages.with_streaming_response.create(**asked, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-quantry-variant"] == "gloss:F16"
        lines = [line for line in answer.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events] == names
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert events[0]["message"]["usage"]["input_tokens"] == 19
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    message = client.messages.create(
        model="gloss", max_tokens=60, messages=QUESTION, stop_sequences=[" domesticated"], extra_body=GREEDY
    )
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == " domesticated"
    (block,) = message.content
    assert block.type == "text"
    assert block.text == HORSE.partition(" domesticated")[0]


def test_an_answer_goes_on_from_where_the_assistants_turn_ended(client: Anthropic) -> None:
    begun = "Horse (noun): solid-hoofed"
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    message = client.messages.create(model="gloss:F16", max_tokens=60, messages=messages, extra_body=GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert begun + block.text == HORSE


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}])
def test_a_tool_that_must_be_called_is_called_streamed_or_not(client: Anthropic, choice: Any) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    asked: Any = {"model": "gloss:F16", "max_tokens": 100, "messages": QUESTION, "extra_body": GREEDY}
    asked |= {"tools": [PAINT], "tool_choice": choice}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = "".join(event.partial_json for event in stream if event.type == "input_json")
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        (block,) = message.content
        assert block.type == "tool_use"
        assert block.name == "paint"
        assert block.id
        assert block.input["size"] in SIZES
        assert block.input == json.loads(pieces)
    assert whole.usage.output_tokens == streamed.usage.output_tokens


def test_a_whole_round_with_a_tool_is_read(client: Anthropic) -> None:
    messages: Any = [
        {"role": "user", "content": "Paint."},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "paint", "input": {"wet": True}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}]},
    ]
    asked: Any = {"model": "gloss:F16", "messages": messages, "tools": [PAINT], "tool_choice": {"type": "none"}}
    with_result = client.messages.count_tokens(**asked).input_tokens
    messages[-1]["content"][0]["content"] = [{"type": "text", "text": "done, and it is dry"}]
    assert client.messages.count_tokens(**asked).input_tokens > with_result
    message = client.messages.create(**asked, max_tokens=8, extra_body=GREEDY)
    assert message.usage.output_tokens > 0


def test_tokens_are_counted_as_the_model_reads_them(client: Anthropic) -> None:
    bare = client.messages.count_tokens(model="gloss", messages=QUESTION).input_tokens
    assert bare == 19
    assert client.messages.count_tokens(model="gloss", messages=QUESTION, system="Be brief.").input_tokens > bare
    assert client.messages.count_tokens(model="gloss", messages=QUESTION, tools=[PAINT]).input_tokens > bare


class Verdict(BaseModel):
    """What the schema asks for."""

    good: bool
    size: Literal["small", "large"]


def test_an_answer_is_parsed_into_the_schema_that_it_was_held_to(client: Anthropic) -> None:
    message = client.messages.parse(
        model="gloss", max_tokens=200, messages=QUESTION, output_format=Verdict, extra_body=GREEDY
    )
    assert isinstance(message.parsed_output, Verdict)


def test_errors_arrive_as_the_clients_own_exceptions(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="glos", max_tokens=5, messages=QUESTION, extra_headers={"X-Request-Id": "mine-1"})
    assert missing.value.type == "not_found_error"
    assert missing.value.error_code == "model_not_found"
    assert missing.value.request_id == "mine-1"
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError) as picture:
        client.messages.create(model="gloss", max_tokens=5, messages=[{"role": "user", "content": [image]}])
    assert picture.value.type == "invalid_request_error"
    assert "messages[0].content[0]" in str(picture.value.api_message)
    with pytest.raises(anthropic.BadRequestError) as long:
        client.messages.create(model="gloss", max_tokens=5, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.error_code == "context_length_exceeded"


def test_a_key_is_taken_as_the_client_sends_it(keyed_server: Server) -> None:
    with (
        Anthropic(base_url=keyed_server.url, api_key=KEY, max_retries=0) as known,
        pytest.raises(anthropic.NotFoundError),
    ):
        known.messages.create(model="gloss", max_tokens=5, messages=QUESTION)
    with (
        Anthropic(base_url=keyed_server.url, api_key="other", max_retries=0) as unknown,
        pytest.raises(anthropic.AuthenticationError) as refused,
    ):
        unknown.messages.create(model="gloss", max_tokens=5, messages=QUESTION)
    assert refused.value.type == "authentication_error"


def test_the_asynchronous_client_streams_too(gloss_server: Server) -> None:
    async def run() -> str:
        async with anthropic.AsyncAnthropic(base_url=gloss_server.url, api_key="unused", max_retries=0) as client:
            stream = client.messages.stream(model="gloss:F16", max_tokens=60, messages=QUESTION, extra_body=GREEDY)
            async with stream as running:
                return await running.get_final_text()

    assert asyncio.run(run()) == HORSE
