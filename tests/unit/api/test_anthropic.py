"""Anthropic's words to requests and back: blocks, turns, thinking, calls, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.api.anthropic_events import SIGNATURE, Blocks, content, stop, usage
from service.api.anthropic_request import generation_request, prompt_request
from service.api.anthropic_shapes import CountBody, MessagesBody
from service.api.generation import Choice
from service.domain.errors import InvalidParameter, NotSupported, QuantryError
from service.domain.generation import (
    Finished,
    FinishReason,
    Message,
    Reasoning,
    Thought,
    Timings,
    Token,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
    Usage,
)

TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
USED = Usage(10, 5, cached_tokens=4, reasoning_tokens=2)


def body(**fields: Any) -> MessagesBody:
    return MessagesBody.model_validate(
        {"model": "gloss", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **fields}
    )


def messages(*turns: Any, **fields: Any) -> tuple[Message, ...]:
    return generation_request(body(messages=list(turns), **fields)).messages


def user(*blocks: Any) -> Any:
    return {"role": "user", "content": list(blocks)}


def text(words: str) -> Any:
    return {"type": "text", "text": words}


# --- in ----------------------------------------------------------------------------------------------------------


def test_the_system_prompt_comes_first_without_the_stamp_that_changes_with_every_request() -> None:
    stamp = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=a5145;"
    system = [text(stamp), text("Be brief."), text("Be kind.")]
    assert messages(user(text("Hi")), system=system)[0] == Message("system", "Be brief.\nBe kind.")
    assert messages(user(text("Hi")), system=f"{stamp}Be brief.")[0] == Message("system", "Be brief.")
    assert messages(user(text("Hi")), system=[text(stamp)]) == (Message("user", "Hi"),)


def test_a_round_with_tools_becomes_calls_and_results_in_their_order() -> None:
    calls = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "redacted_thinking", "data": "x"},
            text("I add."),
            {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": "ä"}},
            {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
        ],
    }
    results = user(
        {"type": "tool_result", "tool_use_id": "t1", "content": [text("3")]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
        text("Go on."),
    )
    assert messages(user(text("One"), text("two")), calls, results) == (
        Message("user", "One\ntwo"),
        Message("assistant", "I add.", "Hm.", (ToolCall("t1", "add", '{"a": "ä"}'), ToolCall("t2", "add", "{}"))),
        Message("tool", "3", tool_call_id="t1"),
        Message("tool", "Error: no", tool_call_id="t2"),
        Message("user", "Go on."),
    )


def test_turns_of_one_role_are_joined_and_a_last_one_of_the_assistant_is_gone_on_with() -> None:
    asked = generation_request(
        body(messages=[user(text("a")), {"role": "user", "content": "b"}, {"role": "assistant", "content": "So"}])
    )
    assert asked.messages == (Message("user", "a\nb"), Message("assistant", "So"))
    assert asked.continues
    assert not generation_request(body()).continues
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {}}]}
    assert not generation_request(body(messages=[user(text("a")), call])).continues


def test_plain_text_documents_are_read_as_text() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    assert messages(user(document, text("Sum up."))) == (Message("user", "T\nD\nSum up."),)


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, Reasoning()),
        ({"type": "adaptive"}, Reasoning()),
        ({"type": "disabled"}, Reasoning(enabled=False)),
        ({"type": "enabled", "budget_tokens": 40}, Reasoning(enabled=True, max_tokens=40)),
    ],
)
def test_thinking_is_asked_for_as_it_was_sent(thinking: Any, expected: Reasoning) -> None:
    assert generation_request(body(thinking=thinking)).reasoning == expected
    effort = generation_request(body(output_config={"effort": "max"})).reasoning.effort
    assert effort == "high"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice(ToolMode.NONE)),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice(ToolMode.REQUIRED, None, False)),
        ({"type": "tool", "name": "add"}, ToolChoice(ToolMode.NAMED, "add")),
    ],
)
def test_a_choice_of_tools_keeps_its_meaning(choice: Any, expected: ToolChoice) -> None:
    asked = generation_request(body(tools=[TOOL], tool_choice=choice))
    assert asked.tool_choice == expected
    assert [tool.name for tool in asked.tools] == ["add"]


def test_a_format_holds_the_text_and_not_a_call() -> None:
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert generation_request(body(output_config=form)).grammar is not None
    forced = body(output_config=form, tools=[TOOL], tool_choice={"type": "any"})
    assert generation_request(forced).grammar is None


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"messages": [user({"type": "image", "source": {}})]}, NotSupported, "messages[0].content[0]"),
        ({"messages": [user({"type": "tool_use", "id": "t", "name": "n"})]}, NotSupported, "messages[0].content[0]"),
        ({"messages": [user({"type": "text"})]}, InvalidParameter, "messages[0].content[0].text"),
        ({"messages": [user({"type": "tool_result"})]}, InvalidParameter, "messages[0].content[0].tool_use_id"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, NotSupported, "tools[0].type"),
        ({"tools": [{"name": "bash"}]}, InvalidParameter, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, InvalidParameter, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, InvalidParameter, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, InvalidParameter, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, InvalidParameter, "thinking.budget_tokens"),
    ],
)
def test_what_is_not_carried_out_is_refused_with_its_field(
    fields: dict[str, Any], kind: type[QuantryError], param: str
) -> None:
    with pytest.raises(kind) as refused:
        generation_request(body(**fields))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields", [{"max_tokens": None}, {"max_tokens": 0}, {"temperature": 1.5}, {"messages": []}, {"messages": [user()]}]
)
def test_impossible_values_never_become_a_request(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body(**fields)


def test_counting_needs_no_limit() -> None:
    counted = CountBody.model_validate({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "x": 1})
    assert prompt_request(counted).messages == (Message("user", "Hi"),)


# --- out ---------------------------------------------------------------------------------------------------------

EVENTS = [
    Thought("Let me "),
    Thought("see."),
    Token("I "),
    Token(""),
    Token("add."),
    ToolCallDelta(0, "", "t1", "add"),
    ToolCallDelta(0, '{"a":'),
    ToolCallDelta(0, "1}"),
    ToolCallDelta(1, "{}", "t2", "add"),
]


def streamed(*, shows_thinking: bool = True) -> list[dict[str, Any]]:
    blocks = Blocks(shows_thinking=shows_thinking)
    found = [sent for event in EVENTS for sent in blocks.push(event)]
    return [*found, *blocks.close()]


def test_blocks_open_and_close_in_turn_and_thinking_is_signed() -> None:
    events = streamed()
    frame = [(event["type"], event["index"]) for event in events if event["type"] != "content_block_delta"]
    assert frame == [(f"content_block_{edge}", index) for index in range(4) for edge in ("start", "stop")]
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == (["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 2 + ["input_json_delta"] * 4)
    heads = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert heads[2] == {"type": "tool_use", "id": "t1", "name": "add", "input": {}}


def test_a_stream_adds_up_to_the_whole_message() -> None:
    choice = Choice()
    for event in EVENTS:
        if isinstance(event, Token):
            choice.parts.append(event.text)
        elif isinstance(event, Thought):
            choice.thoughts.append(event.text)
        else:
            choice.deltas.append(event)
    built: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in streamed():
        if event["type"] == "content_block_start":
            built.append(dict(event["content_block"]))
            continue
        delta = event.get("delta", {})
        for field in ("text", "thinking"):
            if field in delta:
                built[-1][field] += delta[field]
        inputs[event["index"]] = inputs.get(event["index"], "") + delta.get("partial_json", "")
    for index, block in enumerate(built):
        if block["type"] == "tool_use":
            block["input"] = json.loads(inputs[index])
    assert built == content(choice, shows_thinking=True)


def test_omitted_thinking_keeps_its_block_and_loses_its_words() -> None:
    deltas = [event["delta"] for event in streamed(shows_thinking=False) if event["type"] == "content_block_delta"]
    assert deltas[0] == {"type": "signature_delta", "signature": SIGNATURE}
    choice = Choice(thoughts=["Hm."])
    assert content(choice, shows_thinking=False) == [{"type": "thinking", "thinking": "", "signature": SIGNATURE}]


def test_a_call_that_was_cut_off_has_no_input() -> None:
    choice = Choice(deltas=[ToolCallDelta(0, '{"a": ', "t1", "add")])
    assert content(choice, shows_thinking=True)[0]["input"] == {}


@pytest.mark.parametrize(
    ("reason", "word", "most", "expected"),
    [
        (FinishReason.STOP, None, 100, "end_turn"),
        (FinishReason.STOP, "END", 100, "stop_sequence"),
        (FinishReason.TOOL_CALLS, None, 100, "tool_use"),
        (FinishReason.LENGTH, None, 5, "max_tokens"),
        (FinishReason.LENGTH, None, 100, "model_context_window_exceeded"),
    ],
)
def test_every_end_has_anthropics_word(reason: FinishReason, word: str | None, most: int, expected: str) -> None:
    ended = stop(Finished(reason, USED, Timings(), word), most)
    assert ended == {"stop_reason": expected, "stop_sequence": word}


def test_tokens_from_the_cache_are_counted_apart() -> None:
    assert usage(USED) == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
    }
