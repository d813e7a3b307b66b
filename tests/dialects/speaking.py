"""One question put in the words of every dialect, whole or streamed, and its answer in words of no dialect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from service.cli.events import events
from tests.server import Server


@dataclass(frozen=True)
class Question:
    """What is asked. `turns` are a conversation, or one text without a template if `raw`. `seed` None: greedy."""

    model: str
    turns: tuple[tuple[str, str], ...]
    most: int
    raw: bool = False
    temperature: float = 0.0
    seed: int | None = None
    top_k: int = 40
    top_p: float = 0.95
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    tool: dict[str, Any] | None = None
    thinks: bool | None = None

    @property
    def text(self) -> str:
        """The last turn's."""
        return self.turns[-1][1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as most dialects write them."""
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields that have the same names everywhere."""
        found = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": 0.05}
        return found if self.seed is None else {**found, "seed": self.seed}


@dataclass
class Answer:
    """What came. `calls` are names and arguments; `stopped_by` only where the dialect tells."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    reason: str = ""
    stopped_by: str | None = None
    prompt_tokens: int = -1
    completion_tokens: int = -1
    variant: str = ""


@dataclass(frozen=True)
class Dialect:
    """How one route is asked, and how its answers are read."""

    path: str
    body: Callable[[Question], dict[str, Any]]
    whole: Callable[[dict[str, Any]], Answer]
    streamed: Callable[[Iterator[tuple[str, Any]]], Answer]
    raw: bool = False  # takes raw texts
    chats: bool = True  # takes conversations
    turns: bool = True  # of more than one turn
    tools: bool = True
    thinking: bool = True

    def takes(self, question: Question) -> bool:
        """Whether this route can be asked that."""
        if question.raw:
            return self.raw
        talks = self.chats and (self.turns or len(question.turns) == 1)
        return talks and (self.tools or question.tool is None) and (self.thinking or question.thinks is None)


def ask(server: Server, dialect: Dialect, question: Question) -> Answer:
    """The whole answer."""
    reply = server.client.post(dialect.path, json={**dialect.body(question), "stream": False})
    assert reply.status_code == 200, reply.text
    found = dialect.whole(reply.json())
    found.variant = reply.headers["X-Quantry-Variant"]
    return found


def ask_streamed(server: Server, dialect: Dialect, question: Question) -> Answer:
    """The answer put together from its stream."""
    body = {**dialect.body(question), "stream": True}
    if dialect.path.startswith(("/v1/chat", "/v1/completions")):
        body["stream_options"] = {"include_usage": True}
    with server.client.stream("POST", dialect.path, json=body) as reply:
        assert reply.status_code == 200, reply.read()
        if reply.headers["Content-Type"].startswith("application/x-ndjson"):
            found = dialect.streamed(("", json.loads(line)) for line in reply.iter_lines())
        else:
            came = ((event.kind, event.data) for event in events(reply.iter_bytes()))
            found = dialect.streamed((kind, json.loads(data)) for kind, data in came if data != "[DONE]")
        found.variant = reply.headers["X-Quantry-Variant"]
    return found


def _arguments(text: str) -> Any:
    """A call's arguments; the text itself where they were cut off."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text


# --- native ------------------------------------------------------------------------------------------------------


def _native_body(asked: Question) -> dict[str, Any]:
    body = {"model": asked.model, "max_tokens": asked.most, "stop": list(asked.stop), **asked.sampling}
    if asked.raw:
        return {**body, "prompt": asked.text, "parse_special": True}
    tools = [] if asked.tool is None else [asked.tool]
    reasoning = None if asked.thinks is None else {"enabled": asked.thinks}
    return {**body, "messages": asked.messages, "format": asked.schema, "tools": tools, "reasoning": reasoning}


def _native_end(found: Answer, value: dict[str, Any]) -> Answer:
    found.reason, found.stopped_by = value["finish_reason"], value["stop"]
    found.prompt_tokens, found.completion_tokens = (value["usage"][f"{of}_tokens"] for of in ("prompt", "completion"))
    return found


def _native_whole(value: dict[str, Any]) -> Answer:
    calls = [(call["name"], _arguments(call["arguments"])) for call in value["tool_calls"] or ()]
    return _native_end(Answer(value["text"], value["reasoning"] or "", calls), value)


def _native_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    found = Answer()
    names: list[str] = []
    texts: list[str] = []
    for kind, value in came:
        if kind == "token":
            found.text += value["text"]
        elif kind == "thought":
            found.thinking += value["text"]
        elif kind == "tool_call":
            if "name" in value:
                names.append(value["name"])
                texts.append("")
            texts[value["call"]] += value["arguments"]
        else:
            assert kind == "done", value
            _native_end(found, value)
    found.calls = list(zip(names, map(_arguments, texts), strict=True))
    return found


# --- OpenAI ------------------------------------------------------------------------------------------------------


def _openai_tools(asked: Question) -> dict[str, Any]:
    return {} if asked.tool is None else {"tools": [{"type": "function", "function": asked.tool}]}


def _chat_body(asked: Question) -> dict[str, Any]:
    form = None
    if asked.schema is not None:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.schema}}
    return {
        "model": asked.model,
        "messages": asked.messages,
        "max_completion_tokens": asked.most,
        "stop": list(asked.stop),
        "response_format": form,
        "reasoning_effort": {None: None, False: "none", True: "medium"}[asked.thinks],
        **_openai_tools(asked),
        **asked.sampling,
    }


def _completions_body(asked: Question) -> dict[str, Any]:
    body = {"model": asked.model, "prompt": asked.text, "max_tokens": asked.most, "stop": list(asked.stop)}
    return {**body, **asked.sampling}


def _openai_usage(found: Answer, usage: dict[str, Any]) -> None:
    found.prompt_tokens, found.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def _openai_whole(value: dict[str, Any]) -> Answer:
    (choice,) = value["choices"]
    message = choice.get("message", {})
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    found = Answer(
        choice["text"] if "text" in choice else message["content"] or "",
        message.get("reasoning_content") or "",
        [(function["name"], _arguments(function["arguments"])) for function in functions],
        choice["finish_reason"],
    )
    _openai_usage(found, value["usage"])
    return found


def _openai_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    found = Answer()
    names: list[str] = []
    texts: list[str] = []
    for _, value in came:
        for choice in value["choices"]:
            delta = choice.get("delta", {})
            found.text += choice.get("text") or delta.get("content") or ""
            found.thinking += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    names.append(call["function"]["name"])
                    texts.append("")
                texts[call["index"]] += call["function"]["arguments"]
            found.reason = choice["finish_reason"] or found.reason
        if value.get("usage"):
            _openai_usage(found, value["usage"])
    found.calls = list(zip(names, map(_arguments, texts), strict=True))
    return found


def _responses_body(asked: Question) -> dict[str, Any]:
    form = {"type": "text"}
    if asked.schema is not None:
        form = {"type": "json_schema", "name": "answer", "schema": asked.schema}
    return {
        "model": asked.model,
        "input": asked.messages,
        "max_output_tokens": asked.most,
        "stop": list(asked.stop),
        "text": {"format": form},
        "reasoning": {"effort": {None: None, False: "none", True: "medium"}[asked.thinks]},
        "tools": [] if asked.tool is None else [{"type": "function", **asked.tool}],
        "store": False,
        **asked.sampling,
    }


def _response(value: dict[str, Any]) -> Answer:
    found = Answer()
    for item in value["output"]:
        if item["type"] == "message":
            found.text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "reasoning":
            found.thinking += "".join(part["text"] for part in item["content"])
        else:
            assert item["type"] == "function_call"
            found.calls.append((item["name"], _arguments(item["arguments"])))
    ended = "tool_calls" if found.calls else "stop"
    found.reason = ended if value["status"] == "completed" else "length"
    usage = value["usage"]
    found.prompt_tokens, found.completion_tokens = usage["input_tokens"], usage["output_tokens"]
    return found


def _responses_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    """What the deltas say; the last event's response must say the same."""
    said = Answer()
    arguments: dict[str, str] = {}
    for number, (kind, value) in enumerate(came):
        assert (value["type"], value["sequence_number"]) == (kind, number)
        if kind == "response.output_text.delta":
            said.text += value["delta"]
        elif kind == "response.reasoning_text.delta":
            said.thinking += value["delta"]
        elif kind == "response.function_call_arguments.delta":
            arguments[value["item_id"]] = arguments.get(value["item_id"], "") + value["delta"]
    last = _response(value["response"])
    assert (said.text, said.thinking) == (last.text, last.thinking)
    assert list(map(_arguments, arguments.values())) == [given for _, given in last.calls if given != {}]
    return last


# --- Ollama ------------------------------------------------------------------------------------------------------


def _ollama_body(asked: Question) -> dict[str, Any]:
    options = {**asked.sampling, "num_predict": asked.most, "stop": list(asked.stop)}
    body = {"model": asked.model, "options": options, "format": asked.schema, "think": asked.thinks}
    return {**body, "tools": _openai_tools(asked).get("tools")}


def _ollama_generate_body(asked: Question) -> dict[str, Any]:
    return {**_ollama_body(asked), "prompt": asked.text, "raw": asked.raw}


def _ollama_chat_body(asked: Question) -> dict[str, Any]:
    return {**_ollama_body(asked), "messages": asked.messages}


def _ollama_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    found = Answer()
    for _, value in came:
        said = value.get("message", value)
        found.text += said.get("response") or said.get("content") or ""
        found.thinking += said.get("thinking") or ""
        functions = [call["function"] for call in said.get("tool_calls") or ()]
        assert [function["index"] for function in functions] == [len(found.calls) + n for n in range(len(functions))]
        found.calls += [(function["name"], function["arguments"]) for function in functions]
        if value["done"]:
            found.reason = value["done_reason"]
            found.prompt_tokens, found.completion_tokens = value["prompt_eval_count"], value["eval_count"]
    return found


def _ollama_whole(value: dict[str, Any]) -> Answer:
    return _ollama_streamed(iter([("", value)]))


# --- Anthropic ---------------------------------------------------------------------------------------------------

_ANTHROPIC_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def _anthropic_body(asked: Question) -> dict[str, Any]:
    system = [content for role, content in asked.turns if role == "system"]
    body: dict[str, Any] = {
        "model": asked.model,
        "messages": [message for message in asked.messages if message["role"] != "system"],
        "max_tokens": asked.most,
        "stop_sequences": list(asked.stop),
        **asked.sampling,
    }
    if system:
        body["system"] = system[0]
    if asked.thinks is not None:
        body["thinking"] = {"type": "adaptive" if asked.thinks else "disabled"}
    if asked.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": asked.schema}}
    if asked.tool is not None:
        schema = asked.tool["parameters"]
        body["tools"] = [{"name": asked.tool["name"], "description": asked.tool["description"], "input_schema": schema}]
    return body


def _anthropic_usage(found: Answer, usage: dict[str, Any]) -> None:
    found.prompt_tokens = usage["input_tokens"] + usage["cache_read_input_tokens"]
    found.completion_tokens = usage["output_tokens"]


def _anthropic_blocks(found: Answer, blocks: list[dict[str, Any]]) -> None:
    for block in blocks:
        if block["type"] == "text":
            found.text += block["text"]
        elif block["type"] == "thinking":
            found.thinking += block["thinking"]
        else:
            found.calls.append((block["name"], block["input"]))


def _anthropic_whole(value: dict[str, Any]) -> Answer:
    found = Answer(reason=_ANTHROPIC_REASONS[value["stop_reason"]], stopped_by=value["stop_sequence"])
    _anthropic_blocks(found, value["content"])
    _anthropic_usage(found, value["usage"])
    return found


def _anthropic_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    found = Answer()
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for kind, value in came:
        assert value["type"] == kind
        if kind == "content_block_start":
            blocks.append(dict(value["content_block"]))
        elif kind == "content_block_delta":
            delta = value["delta"]
            for name in ("text", "thinking"):
                if delta["type"] == f"{name}_delta":
                    blocks[value["index"]][name] += delta[name]
            if delta["type"] == "input_json_delta":
                arguments[value["index"]] = arguments.get(value["index"], "") + delta["partial_json"]
        elif kind == "message_delta":
            found.reason = _ANTHROPIC_REASONS[value["delta"]["stop_reason"]]
            found.stopped_by = value["delta"]["stop_sequence"]
            _anthropic_usage(found, value["usage"])
    for index, text in arguments.items():
        given = _arguments(text)
        blocks[index]["input"] = given if isinstance(given, dict) else {}
    _anthropic_blocks(found, blocks)
    return found


# --- llama-server ------------------------------------------------------------------------------------------------


def _completion_body(asked: Question) -> dict[str, Any]:
    body = {"model": asked.model, "prompt": asked.text, "n_predict": asked.most, "stop": list(asked.stop)}
    return {**body, **asked.sampling}


def _completion_streamed(came: Iterator[tuple[str, Any]]) -> Answer:
    found = Answer()
    for _, value in came:
        found.text += value["content"]
        if value["stop"]:
            found.reason = {"eos": "stop", "word": "stop", "limit": "length"}[value["stop_type"]]
            found.stopped_by = value["stopping_word"] or None
            found.prompt_tokens, found.completion_tokens = value["tokens_evaluated"], value["tokens_predicted"]
    return found


def _completion_whole(value: dict[str, Any]) -> Answer:
    return _completion_streamed(iter([("", value)]))


DIALECTS = {
    "native": Dialect("/v1/generate", _native_body, _native_whole, _native_streamed, raw=True),
    "chat": Dialect("/v1/chat/completions", _chat_body, _openai_whole, _openai_streamed),
    "completions": Dialect(
        "/v1/completions", _completions_body, _openai_whole, _openai_streamed, raw=True, chats=False
    ),
    "responses": Dialect("/v1/responses", _responses_body, _response, _responses_streamed),
    "ollama-generate": Dialect(
        "/api/generate", _ollama_generate_body, _ollama_whole, _ollama_streamed, raw=True, turns=False, tools=False
    ),
    "ollama-chat": Dialect("/api/chat", _ollama_chat_body, _ollama_whole, _ollama_streamed),
    "anthropic": Dialect("/v1/messages", _anthropic_body, _anthropic_whole, _anthropic_streamed),
    "llama-server": Dialect(
        "/completion", _completion_body, _completion_whole, _completion_streamed, raw=True, chats=False
    ),
}
