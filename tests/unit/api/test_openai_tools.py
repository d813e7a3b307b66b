"""Tools, thinking and their streams in OpenAI's chat route: to domain values and back, in OpenAI's exact order."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from service.domain.generation import (
    Finished,
    FinishReason,
    Grammar,
    GrammarKind,
    Message,
    Reasoning,
    Thought,
    Timings,
    Token,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
    Usage,
)

HELLO = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Look out.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time", "strict": True}}
TOOLS = (
    Tool("weather", "Look out.", json.dumps(SCHEMA, separators=(",", ":"))),
    Tool("time", strict=True),
)
NAMED = {"type": "function", "function": {"name": "time"}}
CALLED = Finished(FinishReason.TOOL_CALLS, Usage(5, 9, reasoning_tokens=3), Timings())
CALLS = (
    ToolCallDelta(0, '{"ci', "call_1", "weather"),
    ToolCallDelta(0, 'ty":"Rome"}'),
    ToolCallDelta(1, "", "call_2", "time"),
    ToolCallDelta(1, "{}"),
    CALLED,
)


async def chat(client, **fields):
    return await client.post("/v1/chat/completions", json={"model": "gloss", "messages": HELLO, **fields})


def deltas_of(text: str) -> list[Any]:
    blocks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [(choice["delta"], choice["finish_reason"]) for block in blocks for choice in block["choices"]]


@pytest.mark.parametrize(
    ("fields", "tools", "choice"),
    [
        ({}, TOOLS, ToolChoice()),
        ({"tool_choice": "none"}, TOOLS, ToolChoice(ToolMode.NONE)),
        ({"tool_choice": "required"}, TOOLS, ToolChoice(ToolMode.REQUIRED)),
        ({"tool_choice": NAMED, "parallel_tool_calls": False}, TOOLS, ToolChoice(ToolMode.NAMED, "time", False)),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
            TOOLS[1:],
            ToolChoice(ToolMode.REQUIRED),
        ),
    ],
)
async def test_tools_and_their_choice_become_what_they_mean(client, api, fields, tools, choice):
    assert (await chat(client, tools=[WEATHER, TIME], **fields)).status_code == 200
    _, request = api.pool.submitted[0]
    assert (request.tools, request.tool_choice) == (tools, choice)


async def test_the_older_functions_become_tools(client, api):
    functions = [WEATHER["function"], TIME["function"]]
    await chat(client, functions=functions, function_call={"name": "time"})
    await chat(client, functions=functions)
    assert api.pool.submitted[0][1].tools == TOOLS
    assert api.pool.submitted[0][1].tool_choice == ToolChoice(ToolMode.NAMED, "time", False)
    assert api.pool.submitted[1][1].tool_choice == ToolChoice(ToolMode.AUTO, None, False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}, "tools[0].function.parameters"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [WEATHER], "functions": [WEATHER["function"]]}, "functions"),
        ({"tools": [WEATHER], "function_call": "auto"}, "function_call"),
        ({"functions": [WEATHER["function"]], "tool_choice": "auto"}, "tool_choice"),
        ({"function_call": {"name": "x"}}, "function_call"),
        ({"tools": [WEATHER], "grammar": 'root ::= "a"'}, "grammar"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"reasoning_budget_tokens": -2}, "reasoning_budget_tokens"),
        ({"reasoning_format": "prose"}, "reasoning_format"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]}, "messages[0].tool_calls[0].id"),
    ],
)
async def test_impossible_tools_and_thinking_are_refused_by_name(client, api, fields, param):
    answer = await chat(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_parameter"
    assert answer.json()["error"]["param"] == param
    assert api.pool.submitted == []


async def test_calls_and_results_in_the_conversation_are_told_to_the_model(client, api):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "content": "", "function_call": {"name": "time", "arguments": "{}"}},
        {"role": "function", "name": "time", "content": "noon"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    assert (await chat(client, messages=messages)).status_code == 200
    assert api.pool.submitted[0][1].messages == (
        Message("user", "Hi"),
        Message("assistant", "", "Hm.", (ToolCall("c1", "weather", '{"city":"Rome"}'),)),
        Message("tool", "rain", tool_call_id="c1"),
        Message("assistant", "", tool_calls=(ToolCall("function-3", "time", "{}"),)),
        Message("tool", "noon", tool_call_id="function-3", name="time"),
        Message("assistant", "No."),
    )


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({}, Reasoning()),
        ({"reasoning_effort": "none"}, Reasoning(enabled=False)),
        ({"reasoning_effort": "minimal"}, Reasoning(enabled=True, effort="low")),
        ({"reasoning_effort": "xhigh", "reasoning_budget_tokens": 9}, Reasoning(True, 9, "high")),
        ({"thinking_budget_tokens": 0}, Reasoning(enabled=False)),
        ({"thinking_token_budget": 7}, Reasoning(max_tokens=7)),
        ({"reasoning_budget_tokens": -1}, Reasoning()),
        ({"reasoning_format": "none"}, Reasoning(split=False)),
        ({"chat_template_kwargs": {"enable_thinking": False, "shoes": 2}}, Reasoning(enabled=False)),
        ({"chat_template_kwargs": {"thinking": True}}, Reasoning(enabled=True)),
    ],
)
async def test_thinking_is_asked_for_in_the_words_of_several_servers(client, api, fields, reasoning):
    assert (await chat(client, **fields)).status_code == 200
    assert api.pool.submitted[0][1].reasoning == reasoning


async def test_a_form_of_the_text_is_for_texts_and_not_for_calls_that_must_come(client, api):
    form = {"type": "json_object"}
    for choice in ("auto", "none", "required", NAMED):
        answer = await chat(client, tools=[WEATHER, TIME], tool_choice=choice, response_format=form)
        assert answer.status_code == 200
    wanted = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')
    assert [request.grammar for _, request in api.pool.submitted] == [wanted, wanted, None, None]


async def test_calls_are_in_the_message(client, play):
    play(Thought("Rome? "), Thought("Yes."), *CALLS)
    body = (await chat(client, tools=[WEATHER, TIME])).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "Rome? Yes.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3


async def test_a_call_streams_its_head_then_its_arguments_then_its_end(client, play):
    play(*CALLS)
    answer = await chat(client, tools=[WEATHER, TIME], stream=True)
    function = {"name": "weather", "arguments": ""}
    second = {"name": "time", "arguments": ""}
    assert deltas_of(answer.text) == [
        ({"role": "assistant", "content": None, "refusal": None}, None),
        ({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": 'ty":"Rome"}'}}]}, None),
        ({"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": second}]}, None),
        ({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}, None),
        ({}, "tool_calls"),
    ]
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_thinking_streams_before_the_text(client, play):
    play(Thought("Hm"), Thought("."), Token("Yes"), Finished(FinishReason.STOP, Usage(5, 3), Timings()))
    assert deltas_of((await chat(client, stream=True)).text) == [
        ({"role": "assistant", "content": "", "refusal": None}, None),
        ({"reasoning_content": "Hm"}, None),
        ({"reasoning_content": "."}, None),
        ({"content": "Yes"}, None),
        ({}, "stop"),
    ]


async def test_a_text_with_tools_at_hand_begins_as_ever(client, play):
    play(Token("Yes"), *CALLS)
    first, text, *_ = deltas_of((await chat(client, tools=[WEATHER, TIME], stream=True)).text)
    assert first == ({"role": "assistant", "content": "", "refusal": None}, None)
    assert text == ({"content": "Yes"}, None)


async def test_older_clients_get_a_function_call(client, play):
    play(*CALLS[:2], CALLED)
    functions = [WEATHER["function"]]
    (choice,) = (await chat(client, functions=functions)).json()["choices"]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"city":"Rome"}'}
    assert choice["finish_reason"] == "function_call"
    assert deltas_of((await chat(client, functions=functions, stream=True)).text)[1:] == [
        ({"function_call": {"name": "weather", "arguments": ""}}, None),
        ({"function_call": {"arguments": '{"ci'}}, None),
        ({"function_call": {"arguments": 'ty":"Rome"}'}}, None),
        ({}, "function_call"),
    ]


# --- OpenAI's own client -----------------------------------------------------------------------------------------


class Weather(BaseModel):
    """Look out."""

    city: str


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


async def test_the_sdk_parses_calls_and_streams_them(sdk, play):
    play(*CALLS[:2], CALLED)
    tool = openai.pydantic_function_tool(Weather, name="weather")
    answer = await sdk.chat.completions.parse(model="gloss", messages=HELLO, tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Rome")
    async with sdk.chat.completions.stream(model="gloss", messages=HELLO, tools=[tool]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Rome")
    assert final.choices[0].message.content is None
    assert final.choices[0].finish_reason == "tool_calls"


async def test_the_sdk_shows_the_thinking(sdk, play):
    play(Thought("Hm."), Token("Yes"), Finished(FinishReason.STOP, Usage(5, 3, reasoning_tokens=1), Timings()))
    answer = await sdk.chat.completions.create(model="gloss", messages=HELLO)
    assert answer.choices[0].message.reasoning_content == "Hm."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1
