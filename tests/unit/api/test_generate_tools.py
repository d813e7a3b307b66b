"""Tools and thinking in `POST /v1/generate`: to domain values, and back whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.domain.generation import (
    Finished,
    FinishReason,
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
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "Look out.", "parameters": SCHEMA, "strict": True}
CALLED = Finished(FinishReason.TOOL_CALLS, Usage(5, 9, reasoning_tokens=3), Timings())


async def generate(client, status: int = 200, **fields) -> Any:
    answer = await client.post("/v1/generate", json={"model": "gloss", "messages": HELLO, **fields})
    assert answer.status_code == status, answer.text
    return answer


async def test_tools_turns_and_thinking_become_what_they_mean(client, api):
    call = {"id": "c1", "name": "weather", "arguments": "{}"}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "reasoning": "Hm", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]
    await generate(
        client, messages=messages, tools=[WEATHER, {"name": "time"}], tool_choice={"name": "time"},
        parallel_tool_calls=False, reasoning={"enabled": True, "max_tokens": 9, "effort": "low", "split": False},
        format="json",
    )  # fmt: skip
    _, request = api.pool.submitted[0]
    assert request.messages == (
        Message("user", "Hi"),
        Message("assistant", "", "Hm", (ToolCall("c1", "weather", "{}"),)),
        Message("tool", "rain", tool_call_id="c1", name="weather"),
    )
    source = json.dumps(SCHEMA, separators=(",", ":"))
    assert request.tools == (Tool("weather", "Look out.", source, strict=True), Tool("time"))
    assert request.tool_choice == ToolChoice(ToolMode.NAMED, "time", parallel=False)
    assert request.reasoning == Reasoning(True, 9, "low", split=False)
    assert request.grammar is None
    await generate(client, tools=[WEATHER], format="json")
    assert api.pool.submitted[1][1].grammar is not None
    assert api.pool.submitted[1][1].tool_choice == ToolChoice()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, None),
        ({"tools": [WEATHER], "tool_choice": {"name": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "grammar": {"kind": "regex", "source": "a"}}, None),
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "kind": "function"}]}, "tools[0].kind"),
        ({"reasoning": {"max_tokens": 0}}, "reasoning.max_tokens"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0]"),
        ({"messages": None, "prompt": "x", "tools": [WEATHER]}, None),
        ({"messages": None, "prompt": "x", "reasoning": {}}, None),
    ],
)
async def test_impossible_tools_and_thinking_are_refused(client, api, fields, param):
    error = (await generate(client, 400, **fields)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_parameter", param)
    assert api.pool.submitted == []


async def test_thinking_and_calls_come_beside_the_text(client, play):
    play(Thought("Hm"), Token("Yes"), ToolCallDelta(0, "{", "c1", "weather"), ToolCallDelta(0, "}"), CALLED)
    body = (await generate(client, tools=[WEATHER])).json()
    assert (body["text"], body["reasoning"], body["finish_reason"]) == ("Yes", "Hm", "tool_calls")
    assert body["tool_calls"] == [{"id": "c1", "name": "weather", "arguments": "{}"}]
    assert body["usage"]["reasoning_tokens"] == 3
    answer = await generate(client, tools=[WEATHER], stream=True)
    events = [block.split("\n") for block in answer.text[:-2].split("\n\n")]
    found = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]
    assert found[:-1] == [
        ("thought", {"text": "Hm"}),
        ("token", {"text": "Yes"}),
        ("tool_call", {"call": 0, "id": "c1", "name": "weather", "arguments": "{"}),
        ("tool_call", {"call": 0, "arguments": "}"}),
    ]
    assert found[-1][1]["finish_reason"] == "tool_calls"
