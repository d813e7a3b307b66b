"""OpenAI's responses route: items in and out, events in OpenAI's order, conversations that are kept, its own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from service.api.openai_items import MessageItemBody
from service.api.openai_store import ResponseStore, StoredResponse
from service.domain.errors import ResponseNotFound
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    Grammar,
    GrammarKind,
    Message,
    Reasoning,
    Thought,
    Timings,
    Token,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
    Usage,
)
from tests.unit.api.conftest import KEY

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
CALLED = Finished(FinishReason.TOOL_CALLS, Usage(5, 9, 2, reasoning_tokens=3), Timings())
CALL = (ToolCallDelta(0, '{"ci', "call_1", "weather"), ToolCallDelta(0, 'ty":"Rome"}'))


async def respond(client, status: int = 200, **fields) -> Any:
    answer = await client.post("/v1/responses", json={"model": "gloss", "input": "Hi", **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


async def stream(client, **fields) -> list[Any]:
    answer = await client.post("/v1/responses", json={"model": "gloss", "input": "Hi", "stream": True, **fields})
    assert answer.status_code == 200
    found = []
    for block in answer.text[:-2].split("\n\n"):
        kind, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


async def test_a_response_is_openais(client, api):
    answer = await client.post("/v1/responses", json={"model": "gloss", "input": "Hi", "instructions": "Be brief."})
    assert answer.headers["X-Quantry-Variant"] == "gloss:Q8_0"
    body = answer.json()
    assert body["id"].startswith("resp_")
    (item,) = body["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    told = ("object", "status", "error", "incomplete_details", "model", "instructions", "store", "metadata", "tools")
    assert [body[field] for field in told] == [
        "response", "completed", None, None, "gloss:Q8_0", "Be brief.", True, {}, [],
    ]  # fmt: skip
    assert body["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }
    assert body["timings"]["predicted_n"] == 2
    assert api.pool.submitted[0][1].messages == (Message("system", "Be brief."), Message("user", "Hi"))


async def test_a_stream_tells_thinking_text_and_calls_in_openais_order(client, play):
    play(Thought("H"), Thought("m"), Token("Yes"), Token("."), *CALL, CALLED)
    events = await stream(client, tools=[WEATHER])
    part = ["content_part.added"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", *part, *["reasoning_text.delta"] * 2, "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", *part, *["output_text.delta"] * 2, "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", *["function_call_arguments.delta"] * 2, "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event["output_index"] for event in events[2:-1]] == [0] * 7 + [1] * 7 + [2] * 5
    final = events[-1]["response"]
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == final["output"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call"]
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["usage"] is None
    reasoning, message, call = final["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"][0]["text"] == "Yes."
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "weather", '{"city":"Rome"}')
    assert {event["item_id"] for event in events[3:8]} == {reasoning["id"]}
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


async def test_a_stream_and_a_whole_answer_are_the_same(client, play):
    play(Thought("Hm"), Token("Yes"), *CALL, ToolCallDelta(1, "{}", "call_2", "time"), Token(" so"), CALLED)
    whole = await respond(client)
    streamed = (await stream(client))[-1]["response"]
    for item in (*whole["output"], *streamed["output"]):
        del item["id"]
    assert whole["output"] == streamed["output"]
    assert len(whole["output"]) == 5
    assert whole["usage"] == streamed["usage"]


async def test_what_is_cut_short_is_incomplete(client, play):
    play(Token("Hel"), Finished(FinishReason.LENGTH, Usage(5, 1), Timings()))
    body = await respond(client, max_output_tokens=1)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    *_, last = await stream(client)
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


async def test_an_answer_of_nothing_is_an_empty_message(client, play):
    play(Finished(FinishReason.STOP, Usage(5, 1), Timings()))
    assert (await respond(client))["output"][0]["content"][0]["text"] == ""


async def test_an_error_within_a_stream_is_a_failed_response(client, play):
    play(Token("Hel"), Failed("worker_died", "The worker died; send it again."))
    *_, last = await stream(client)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "worker_died"
    answer = await client.get(f"/v1/responses/{last['response']['id']}")
    assert answer.status_code == 404


async def test_log_probabilities_come_where_they_are_included(client, play, api):
    drawn = TokenLogprob(b"a", -0.5)
    play(Token("", 0, (drawn,)), Token("aa", 0, (drawn,)), Finished(FinishReason.STOP, Usage(1, 2), Timings()))
    for fields in ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}):
        (item,) = (await respond(client, **fields))["output"]
        assert [token["token"] for token in item["content"][0]["logprobs"]] == ["a", "a"]
        assert api.pool.submitted[-1][1].logprobs == fields.get("top_logprobs", 0)
    assert api.pool.submitted[0][1].logprobs == 0


ITEMS = [
    {"role": "developer", "content": "Speak plainly."},
    {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
    {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "Wait."}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
    {"type": "message", "role": "assistant", "content": "A", "status": "completed"},
    {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "B"}]},
    {"role": "user", "content": "?"},
]
TURNS = (
    Message("system", "Be brief.\n\nSpeak plainly."),
    Message("user", "one\ntwo"),
    Message("assistant", "Wait.", "Hm", (ToolCall("c1", "weather", "{}"), ToolCall("c2", "time", "{}"))),
    Message("tool", "rain", tool_call_id="c1"),
    Message("tool", "noon", tool_call_id="c2"),
    Message("assistant", "A"),
    Message("assistant", "B"),
    Message("user", "?"),
)


async def test_items_become_turns(client, api):
    await respond(client, input=ITEMS, instructions="Be brief.")
    assert api.pool.submitted[0][1].messages == TURNS


async def test_a_response_goes_on_from_another(client, api, play):
    play(Thought("Hm"), *CALL, CALLED)
    first = await respond(client, input=ITEMS, instructions="Be brief.", tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    second = await respond(client, input=[result], previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    call = Message("assistant", "", "Hm", (ToolCall("call_1", "weather", '{"city":"Rome"}'),))
    assert (
        api.pool.submitted[1][1].messages
        == (
            Message("system", "Speak plainly."),  # instructions do not carry over
            *TURNS[1:],
            call,
            Message("tool", "rain", tool_call_id="call_1"),
        )
    )
    third = await respond(client, previous_response_id=second["id"], stream=False)
    assert api.pool.submitted[2][1].messages[-2:] == (call, Message("user", "Hi"))
    listed = (await client.get(f"/v1/responses/{third['id']}/input_items", params={"limit": 100})).json()
    assert len(listed["data"]) == len(ITEMS) + 2 + 1 + 2 + 1


async def test_a_streamed_response_is_kept_before_its_last_event(client, api):
    *_, last = await stream(client)
    await respond(client, previous_response_id=last["response"]["id"])
    assert [turn.content for turn in api.pool.submitted[1][1].messages] == ["Hi", "Hello", "Hi"]
    assert (await client.get(f"/v1/responses/{last['response']['id']}")).json() == last["response"]


async def test_responses_are_shown_listed_and_forgotten(client):
    body = await respond(client, metadata={"a": "b"})
    path = f"/v1/responses/{body['id']}"
    assert (await client.get(path)).json() == body
    assert (await client.get(path, params={"stream": True})).status_code == 400
    (item,) = (await client.get(f"{path}/input_items")).json()["data"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message", "role": "user", "status": "completed", "content": [{"type": "input_text", "text": "Hi"}],
    }  # fmt: skip
    assert (await client.delete(path)).json() == {"id": body["id"], "object": "response", "deleted": True}
    for answer in (await client.get(path), await client.delete(path), await client.get(f"{path}/input_items")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "response_not_found"
    refused = await respond(client, 400, previous_response_id=body["id"])
    assert refused["error"]["code"] == "previous_response_not_found"
    assert refused["error"]["param"] == "previous_response_id"


async def test_input_items_come_in_pages(client):
    items = [{"role": "user", "content": str(number), "id": f"msg_{number}"} for number in range(5)]
    body = await respond(client, input=items)
    path = f"/v1/responses/{body['id']}/input_items"
    page = (await client.get(path, params={"limit": 2, "order": "asc", "after": "msg_1"})).json()
    assert [item["id"] for item in page["data"]] == ["msg_2", "msg_3"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_2", "msg_3", True)
    page = (await client.get(path, params={"after": "msg_2"})).json()
    assert [item["id"] for item in page["data"]] == ["msg_1", "msg_0"]
    assert page["has_more"] is False
    assert (await client.get(path, params={"after": "x"})).status_code == 400


async def test_what_is_not_to_be_stored_is_not(client):
    body = await respond(client, store=False)
    assert (await client.get(f"/v1/responses/{body['id']}")).status_code == 404


async def test_items_are_found_by_reference(client, api):
    body = await respond(client)
    reference = {"type": "item_reference", "id": body["output"][0]["id"]}
    await respond(client, input=[reference, {"role": "user", "content": "?"}])
    assert api.pool.submitted[1][1].messages == (Message("assistant", "Hello"), Message("user", "?"))
    refused = await respond(client, 400, input=[{"type": "item_reference", "id": "msg_x"}])
    assert refused["error"]["param"] == "input[0].id"


async def test_one_key_does_not_see_what_another_has_left(make_api):
    from service.api.auth import hash_keys

    other = "another-key-of-at-least-sixteen-characters"
    api = make_api(api_key_hashes=hash_keys([KEY, other]))
    api.add("gloss", "F16")
    async with (
        api.client(headers={"Authorization": f"Bearer {KEY}"}) as mine,
        api.client(headers={"Authorization": f"Bearer {other}"}) as yours,
        api.client() as nobody,
    ):
        body = await respond(mine)
        assert (await mine.get(f"/v1/responses/{body['id']}")).status_code == 200
        assert (await yours.get(f"/v1/responses/{body['id']}")).status_code == 404
        assert (await yours.delete(f"/v1/responses/{body['id']}")).status_code == 404
        await respond(yours, 400, previous_response_id=body["id"])
        await respond(yours, 400, input=[{"type": "item_reference", "id": body["output"][0]["id"]}])
        for answer in (
            await nobody.get(f"/v1/responses/{body['id']}"),
            await nobody.delete(f"/v1/responses/{body['id']}"),
            await nobody.post("/v1/responses", json={"model": "gloss", "input": "Hi"}),
        ):
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_fields_become_what_they_mean(client, api):
    await respond(
        client, temperature=0.2, top_p=0.7, max_output_tokens=9, seed=3, top_k=4, stop="a", context_length=128,
        tools=[{**WEATHER, "description": "Look."}, {"type": "function", "name": "time", "parameters": None}],
        tool_choice={"type": "function", "name": "time"}, parallel_tool_calls=False, reasoning={"effort": "low"},
        text={"verbosity": "low"}, truncation="disabled", background=False, unknown=[1], user="me",
    )  # fmt: skip
    _, request = api.pool.submitted[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.2, 0.7, 4)
    assert (request.max_tokens, request.sampling.seed, request.stop, request.context_length) == (9, 3, ("a",), 128)
    source = json.dumps(SCHEMA, separators=(",", ":"))
    assert request.tools == (Tool("weather", "Look.", source, strict=True), Tool("time"))
    assert request.tool_choice == ToolChoice(ToolMode.NAMED, "time", parallel=False)
    assert request.reasoning == Reasoning(enabled=True, effort="low")
    assert request.grammar is None
    form = {"format": {"type": "json_schema", "name": "p", "schema": SCHEMA, "strict": True}}
    body = await respond(client, text=form)
    assert body["text"] == {**form, "verbosity": "medium"}
    assert api.pool.submitted[1][1].grammar == Grammar(GrammarKind.JSON_SCHEMA, source)
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    await respond(client, tools=[WEATHER], tool_choice=allowed, text={"format": {"type": "json_object"}})
    assert api.pool.submitted[2][1].tool_choice == ToolChoice()
    assert api.pool.submitted[2][1].grammar == Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "not_supported", "tools[0].type"),
        ({"background": True}, "not_supported", "background"),
        ({"conversation": "conv_1"}, "not_supported", "conversation"),
        ({"prompt": {"id": "p"}}, "not_supported", "prompt"),
        ({"truncation": "auto"}, "not_supported", "truncation"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
            "not_supported",
            "input[0].content[0]",
        ),
        ({"input": [{"type": "computer_call"}]}, "invalid_parameter", "input[0]"),
        ({"input": []}, "invalid_parameter", "input"),
        ({"input": [{"role": "robot", "content": ""}]}, "invalid_parameter", "input[0].role"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "invalid_parameter", "input[0].call_id"),
        ({"tools": [{"type": "function"}]}, "invalid_parameter", "tools[0].name"),
        ({"tool_choice": "required"}, "invalid_parameter", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "invalid_parameter", "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_parameter", "text.format.schema"),
        ({"max_output_tokens": 0}, "invalid_parameter", "max_output_tokens"),
        ({"metadata": {"a": 1}}, "invalid_parameter", "metadata.a"),
        ({"top_logprobs": 21}, "invalid_parameter", "top_logprobs"),
        ({"reasoning": {"effort": "some"}}, "invalid_parameter", "reasoning.effort"),
    ],
)
async def test_what_is_not_carried_out_or_impossible_is_refused_by_name(client, api, fields, code, param):
    body = await respond(client, 400, **fields)
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    assert api.pool.submitted == []


async def test_a_grammar_that_the_worker_refuses_is_refused_by_its_field(client, api):
    api.pool.script = [Failed("invalid_grammar", "It cannot be read; mend it.", "response_format")]
    body = await respond(client, 400, text={"format": {"type": "json_object"}})
    assert body["error"]["param"] == "text.format"


# --- what is kept ------------------------------------------------------------------------------------------------


def stored(name: str, text: str = "") -> StoredResponse:
    return StoredResponse({"id": name}, (MessageItemBody(role="user", content=text, id=f"msg_{name}"),), ())


def kept(store: ResponseStore, names: str) -> str:
    found = ""
    for name in names:
        try:
            store.get("", name)
            found += name
        except ResponseNotFound:
            pass
    return found


def test_the_oldest_responses_go_first():
    store = ResponseStore(most=2)
    for name in "abc":
        store.put("", stored(name))
    assert kept(store, "abc") == "bc"
    assert store.item("", "msg_a") is None
    assert store.item("", "msg_c") is not None
    assert store.item("other", "msg_c") is None


def test_no_more_bytes_are_kept_than_allowed():
    store = ResponseStore(most_bytes=1000)
    for name in "abc":
        store.put("", stored(name, "x" * 300))
    assert kept(store, "abc") == "bc"
    store.put("", stored("d", "x" * 1000))
    assert kept(store, "abcd") == ""
    store.put("", stored("e"))
    assert kept(store, "e") == "e"


def test_a_response_gets_too_old():
    now = 0.0
    store = ResponseStore(seconds=10, clock=lambda: now)
    store.put("", stored("a"))
    now = 9.0
    store.put("", stored("b"))
    assert kept(store, "ab") == "ab"
    now = 10.0
    assert kept(store, "ab") == "b"


def test_a_store_of_none_keeps_none():
    store = ResponseStore(most=0)
    store.put("", stored("a"))
    assert kept(store, "a") == ""


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


async def test_the_sdk_parses_texts_and_calls(sdk, play):
    play(Token('{"city":"Rome"}'), *CALL, CALLED)
    tool = openai.pydantic_function_tool(Weather, name="weather")["function"]
    tools = [{"type": "function", **tool}]
    answer = await sdk.responses.parse(model="gloss", input="Hi", text_format=Weather, tools=tools)
    assert answer.output_parsed == Weather(city="Rome")
    assert answer.output[1].parsed_arguments == {"city": "Rome"}
    async with sdk.responses.stream(model="gloss", input="Hi", text_format=Weather, tools=tools) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_parsed == Weather(city="Rome")


async def test_the_sdk_keeps_a_conversation(sdk):
    first = await sdk.responses.create(model="gloss", input="Hi")
    assert first.output_text == "Hello"
    second = await sdk.responses.create(model="gloss", input="Go on", previous_response_id=first.id)
    assert (await sdk.responses.retrieve(second.id)).output_text == "Hello"
    listed = [item async for item in sdk.responses.input_items.list(second.id, limit=1, order="asc")]
    assert [item.type for item in listed] == ["message"] * 3
    await sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.responses.retrieve(first.id)
    assert missing.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as gone:
        await sdk.responses.create(model="gloss", input="Go on", previous_response_id=first.id)
    assert gone.value.code == "previous_response_not_found"


async def test_output_items_go_back_in_as_the_sdk_has_them(sdk, api, play):
    play(Thought("Hm"), Token("Yes"), *CALL, CALLED)
    first = await sdk.responses.create(model="gloss", input="Hi", store=False)
    result = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "rain"}
    await sdk.responses.create(model="gloss", input=[{"role": "user", "content": "Hi"}, *first.output, result])
    assert api.pool.submitted[1][1].messages == (
        Message("user", "Hi"),
        Message("assistant", "Yes", "Hm", (ToolCall("call_1", "weather", '{"city":"Rome"}'),)),
        Message("tool", "rain", tool_call_id="call_1"),
    )
