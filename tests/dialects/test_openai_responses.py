"""`/v1/responses` with the official `openai` client, on real models: whole, streamed, going on, with tools, forms."""

from __future__ import annotations

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


TOOL: Any = {"type": "function", **openai.pydantic_function_tool(Weather, name="get_weather")["function"]}
QUESTION = "What is the weather in Paris?"
# Texts are compared on small models: those of a larger one may differ by how their prompts were cut into batches.
SMALL = ["gloss", "thinker"]


@pytest.fixture
def client(tools_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tools_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def create(client: OpenAI, **fields: Any) -> Any:
    asked = {
        "model": "gloss", "input": QUESTION, "temperature": 0, "max_output_tokens": 24,
        "extra_body": {"cache_prompt": False}, **fields,
    }  # fmt: skip
    return client.responses.create(**asked)


@pytest.mark.parametrize("model", SMALL)
def test_a_stream_ends_with_the_response_that_comes_whole(client: OpenAI, model: str) -> None:
    body = {"cache_prompt": False, "reasoning_budget_tokens": 8}
    whole = create(client, model=model, extra_body=body)
    events = list(create(client, model=model, extra_body=body, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1].response
    assert events[-1].type == f"response.{final.status}" == f"response.{whole.status}"
    assert final.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    assert ("reasoning" in [item.type for item in whole.output]) == (model == "thinker")


def test_a_chat_model_streams_its_answer(client: OpenAI) -> None:
    events = list(create(client, model="smollm2", stream=True))
    final = events[-1].response
    assert len(final.output_text.split()) > 5
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
    assert final.usage.output_tokens == 24


def test_the_text_is_that_of_a_chat(client: OpenAI) -> None:
    response = create(client, instructions="You are brief.")
    chat = client.chat.completions.create(
        model="gloss",
        messages=[{"role": "system", "content": "You are brief."}, {"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=24,
        extra_body={"cache_prompt": False},
    )
    assert response.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    counted = client.responses.input_tokens.count(model="gloss", input=QUESTION, instructions="You are brief.")
    assert counted.input_tokens == response.usage.input_tokens


def test_a_conversation_is_kept_and_is_the_one_that_could_be_sent(client: OpenAI) -> None:
    first = create(client)
    second = create(client, input="And in Rome?", previous_response_id=first.id)
    alone = create(
        client,
        input=[{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And in Rome?"}],
    )
    assert second.output_text == alone.output_text
    assert second.usage.input_tokens == alone.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert len(list(client.responses.input_items.list(second.id))) == 3
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as gone:
        create(client, previous_response_id=first.id)
    assert gone.value.code == "previous_response_not_found"
    create(client, previous_response_id=second.id, max_output_tokens=1)


@pytest.mark.parametrize("model", SMALL)
def test_a_tool_is_called_and_its_result_read(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
        "max_output_tokens": 120, "extra_body": {"cache_prompt": False, "reasoning_budget_tokens": 8},
    }  # fmt: skip
    whole = create(client, **asked)
    call = whole.output[-1]
    assert (call.type, call.name, whole.status) == ("function_call", "get_weather", "completed")
    Weather.model_validate_json(call.arguments)
    events = list(create(client, **asked, stream=True))
    assert events[-1].response.output[-1].arguments == call.arguments
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees, rain"}
    again = create(client, model=model, input=[result], previous_response_id=whole.id, tools=[TOOL])
    assert again.usage.input_tokens > whole.usage.input_tokens


def test_the_client_parses_forms_and_streams_them(client: OpenAI) -> None:
    parsed = client.responses.parse(model="smollm2", input=QUESTION, temperature=0, text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)
    with client.responses.stream(model="smollm2", input=QUESTION, temperature=0, text_format=Weather) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Weather)
    assert kinds[-1] == "response.completed"


def test_log_probabilities_are_included_where_asked_for(client: OpenAI) -> None:
    response = create(client, include=["message.output_text.logprobs"], top_logprobs=2)
    report = response.output[0].content[0].logprobs
    assert "".join(token.token for token in report).startswith(response.output_text[:10])
    assert all(len(token.top_logprobs) == 2 for token in report)


def test_errors_arrive_as_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        create(client, model="smol")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        create(client, input="weather " * 2000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, tools=[{"type": "web_search"}])
    assert (refused.value.code, refused.value.param) == ("not_supported", "tools[0].type")
