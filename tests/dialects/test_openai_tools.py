"""Tools, thinking and forms with the official `openai` client, on real models: what must come comes, and fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.server import Server


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


class Light(BaseModel):
    """Switch a light."""

    on: bool


TOOLS: list[Any] = [
    openai.pydantic_function_tool(Weather, name="get_weather"),
    openai.pydantic_function_tool(Light, name="set_light"),
]
FORM = TOOLS[0]["function"]["parameters"]
SHAPES: dict[str, type[BaseModel]] = {"get_weather": Weather, "set_light": Light}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
MODELS = ["gloss", "thinker", "smollm2"]
SMALL = ["gloss", "thinker"]


@pytest.fixture
def client(tools_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tools_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def create(client: OpenAI, **fields: Any) -> Any:
    asked = {
        "model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 120, "tools": TOOLS,
        "reasoning_effort": "none", **fields,
    }  # fmt: skip
    return client.chat.completions.create(**asked)


def check(calls: Any) -> None:
    for call in calls:
        SHAPES[call.function.name].model_validate_json(call.function.arguments)


@pytest.mark.parametrize("model", MODELS)
def test_a_call_that_must_come_comes_and_fits(client: OpenAI, model: str) -> None:
    answer = create(client, model=model, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert len(answer.message.tool_calls) == 1
    check(answer.message.tool_calls)


@pytest.mark.parametrize("model", SMALL)
def test_the_named_function_is_the_one_that_is_called(client: OpenAI, model: str) -> None:
    named = {"type": "function", "function": {"name": "set_light"}}
    (call,) = create(client, model=model, tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == "set_light"
    check([call])
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    calls = create(client, model=model, tool_choice=allowed, parallel_tool_calls=False).choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"set_light"}


def test_none_means_none(client: OpenAI) -> None:
    answer = create(client, model="gloss", tool_choice="none", max_tokens=8).choices[0]
    assert answer.message.tool_calls is None
    without = create(client, model="gloss", tools=openai.omit, max_tokens=8).choices[0]
    assert answer.message.content == without.message.content


@pytest.mark.parametrize("model", SMALL)
def test_a_streamed_call_is_the_whole_one(client: OpenAI, model: str) -> None:
    # A prompt from the cache is computed in other batches, which may tip a near tie between two ways to spell a word.
    asked: dict[str, Any] = {
        "model": model, "tool_choice": "required", "parallel_tool_calls": False, "extra_body": {"cache_prompt": False},
    }  # fmt: skip
    whole = create(client, **asked)
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}, **asked))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert (deltas[0].role, deltas[0].content, deltas[0].tool_calls) == ("assistant", None, None)
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert pieces[0].id
    assert pieces[0].function.arguments == ""
    assert all(piece.id is None and piece.function.name is None for piece in pieces[1:])
    (call,) = whole.choices[0].message.tool_calls
    assert pieces[0].function.name == call.function.name
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_client_parses_arguments_itself(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2", "messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "temperature": 0,
    }  # fmt: skip
    answer = client.chat.completions.parse(**asked, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Weather | Light)
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        kinds = {event.type for event in stream}
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert "tool_calls.function.arguments.done" in kinds
    assert isinstance(streamed.function.parsed_arguments, Weather | Light)


@pytest.mark.parametrize("model", SMALL)
def test_a_conversation_goes_on_after_a_call(client: OpenAI, model: str) -> None:
    message = create(client, model=model, tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees, rain"}
    again = create(client, model=model, messages=[*QUESTION, message, result], max_tokens=8)
    assert again.choices[0].finish_reason in ("length", "stop", "tool_calls")
    assert again.usage.prompt_tokens > 30


def test_older_clients_call_functions(client: OpenAI) -> None:
    functions = [tool["function"] for tool in TOOLS]
    answer = create(client, tools=openai.omit, functions=functions, function_call={"name": "get_weather"}).choices[0]
    assert answer.finish_reason == "function_call"
    Weather.model_validate_json(answer.message.function_call.arguments)
    result = {"role": "function", "name": "get_weather", "content": "rain"}
    create(client, tools=openai.omit, messages=[*QUESTION, answer.message, result], max_tokens=4)


def test_impossible_tools_are_refused_with_the_field(client: OpenAI) -> None:
    for fields, param in (
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": 5}}}],
          "tool_choice": "required"}, "tools"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, **fields)
        assert refused.value.param == param


# --- thinking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget"])
def test_thinking_is_told_apart_and_ends_with_its_budget(client: OpenAI, field: str) -> None:
    asked: dict[str, Any] = {
        "model": "thinker", "tools": openai.omit, "reasoning_effort": openai.omit, "max_tokens": 40,
        "extra_body": {field: 8},
    }  # fmt: skip
    whole = create(client, **asked)
    message = whole.choices[0].message
    assert message.reasoning_content
    assert "</think>" not in (message.content or "")
    assert 0 < whole.usage.completion_tokens_details.reasoning_tokens <= 12
    chunks = list(create(client, stream=True, **asked))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(thoughts) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content


def test_thinking_can_be_left_in_the_text_or_out_of_the_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "thinker", "tools": openai.omit, "max_tokens": 24}
    none = create(client, **asked)
    inside = create(
        client, **{**asked, "reasoning_effort": openai.omit},
        extra_body={"reasoning_format": "none", "reasoning_budget_tokens": 6},
    )  # fmt: skip
    assert "</think>" in inside.choices[0].message.content
    off = create(
        client, **{**asked, "reasoning_effort": openai.omit},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    assert off.choices[0].message == none.choices[0].message
    thinking = create(client, **{**asked, "reasoning_effort": "high"})
    assert off.usage.prompt_tokens > thinking.usage.prompt_tokens  # the thinking is ended in the prompt


def test_a_model_thinks_before_it_calls(client: OpenAI) -> None:
    answer = create(
        client, model="thinker", reasoning_effort="low", tool_choice="required", parallel_tool_calls=False,
        extra_body={"reasoning_budget_tokens": 8},
    ).choices[0]  # fmt: skip
    assert answer.message.reasoning_content
    check(answer.message.tool_calls)


# --- forms -------------------------------------------------------------------------------------------------------


def test_a_form_is_parsed_by_the_client_and_kept_to_in_streams(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "smollm2", "messages": QUESTION, "temperature": 0}
    parsed = client.chat.completions.parse(**asked, response_format=Weather).choices[0].message.parsed
    assert isinstance(parsed, Weather)
    with client.chat.completions.stream(**asked, response_format=Weather) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)


def test_a_model_with_tools_and_a_form_calls_or_keeps_to_the_form(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": FORM, "strict": True}}
    for model in MODELS:
        message = create(client, model=model, response_format=form, parallel_tool_calls=False).choices[0].message
        if message.tool_calls:
            check(message.tool_calls)
        else:
            assert set(json.loads(message.content)) == {"city", "unit"}
    message = create(client, response_format=form, tool_choice="required", parallel_tool_calls=False).choices[0].message
    check(message.tool_calls)
