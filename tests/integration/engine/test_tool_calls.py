"""Tool calls and thinking on llama.cpp: forced calls fit their schemas, thinking ends in time, parts add up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import jsonschema_rs
import pytest

from service.domain.errors import InvalidGrammar
from service.domain.generation import (
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Message,
    Reasoning,
    SamplingParams,
    Thought,
    Token,
    Tool,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
)
from service.engine.prompt import PromptRenderer
from service.engine.reading import Reader
from service.llama.model import Model
from tests.integration.engine.driving import GREEDY, Driver, running

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
}
LIGHT = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": WEATHER, "set_light": LIGHT}
TOOLS = tuple(Tool(name, f"Does {name}", json.dumps(schema)) for name, schema in SCHEMAS.items())
STRICT = tuple(Tool(tool.name, tool.description, tool.parameters, strict=True) for tool in TOOLS)
QUESTION = (Message("user", "What is the weather in Paris?"),)

# What the templates of Qwen3 do, in short.
QWEN = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>.<|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN_OPENED = QWEN.replace("{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}")
CODER = "{{ '<function=f>\n<parameter=p>' if tools }}{% for t in tools %}{{ t | tojson }}{% endfor %}" + QWEN
CHANNELS = (
    "{{ tools | tojson if tools }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant{# <|channel|>analysis<|message|> <|channel|>commentary #}"
)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@dataclass
class Answer:
    """The parts of one answer."""

    thought: str = ""
    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    end: Finished | None = None
    failed: Failed | None = None

    def take(self, event: GenerationEvent) -> None:
        match event:
            case Thought():
                self.thought += event.text
            case Token():
                self.text += event.text
            case ToolCallDelta():
                if event.name is not None:
                    assert event.id is not None
                    assert event.index == len(self.calls)
                    self.calls.append([event.name, ""])
                self.calls[event.index][1] += event.arguments
            case Finished():
                self.end = event
            case Failed():
                self.failed = event

    def check_calls(self) -> None:
        assert self.calls
        for name, arguments in self.calls:
            jsonschema_rs.validate(SCHEMAS[name], json.loads(arguments))
        assert self.end is not None
        assert self.end.reason is FinishReason.TOOL_CALLS


class Chat:
    """Requests as a worker prepares them, over an engine."""

    def __init__(self, driver: Driver, template: str | None = None) -> None:
        model = driver.model
        self.engine = driver.engine
        self.renderer = PromptRenderer(
            template=template or model.chat_template(),
            tokenize=model.tokenize,
            bos_token=model.bos_token,
            adds_bos=model.adds_bos,
            bos_text="",
            eos_text="",
            special_texts=model.special_texts(),
        )
        self.reader = Reader(model, self.renderer, driver.grammars)

    def ask(self, **options: Any) -> Answer:
        asked: dict[str, Any] = {"messages": QUESTION, "tools": TOOLS, "sampling": GREEDY, "max_tokens": 80}
        request = GenerationRequest(**asked | options)
        prompt = self.renderer.prompt(request)
        constraint, call_constraint = self.reader.constraints(request, prompt)
        reading = self.reader.reading(request, prompt)
        self.engine.submit(1, prompt.tokens, request, constraint, None, reading, call_constraint)
        answer = Answer()
        while not self.engine.is_idle:
            for _, event in self.engine.step():
                answer.take(event)
        return answer


@pytest.fixture(scope="module")
def marked(gloss: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gloss with single tokens for the markers: two that have text, as Qwen's, and two that have none."""
    path = tmp_path_factory.mktemp("marked") / "marked.gguf"
    reader = gguf.GGUFReader(gloss)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        contents = value.contents()
        if name == "tokenizer.ggml.tokens":
            contents[-4:] = MARKERS
        elif name == "tokenizer.ggml.token_type":
            contents[-4:] = [gguf.TokenType.USER_DEFINED] * 2 + [gguf.TokenType.CONTROL] * 2
        writer.add_key_value(name, contents, value.types[0], value.types[-1] if len(value.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def plain(gloss: Path) -> Iterator[Driver]:
    with running(gloss, cells=1024) as driver:
        yield driver


@pytest.fixture(scope="module")
def driver(marked: Path) -> Iterator[Driver]:
    with running(marked, cells=1024) as driver:
        yield driver


def towards(model: Model, marker: str, bias: float = 100.0) -> SamplingParams:
    """Greedy, and leaning towards one marker."""
    (token,) = model.tokenize(marker, add_special=False, parse_special=True)
    return SamplingParams(temperature=0.0, logit_bias=((token, bias),))


@pytest.mark.parametrize("template", [None, QWEN, QWEN_OPENED, CODER, CHANNELS])
def test_a_call_that_is_required_fits_its_schema(plain: Driver, driver: Driver, template: str | None) -> None:
    for each in (plain, driver):
        chat = Chat(each, template)
        answer = chat.ask(
            tool_choice=ToolChoice(ToolMode.REQUIRED, parallel=False), reasoning=Reasoning(max_tokens=8), max_tokens=200
        )
        answer.check_calls()
        assert len(answer.calls) == 1
        assert answer.text == ""
        named = chat.ask(
            tool_choice=ToolChoice(ToolMode.NAMED, "set_light"), reasoning=Reasoning(max_tokens=8), max_tokens=200
        )
        named.check_calls()
        assert [name for name, _ in named.calls] == ["set_light"]


def test_a_small_model_makes_the_call_that_is_required(smollm2: Path) -> None:
    with running(smollm2, cells=512) as driver:
        answer = Chat(driver).ask(tool_choice=ToolChoice(ToolMode.REQUIRED, parallel=False))
    answer.check_calls()
    assert json.loads(answer.calls[0][1])["city"] == "Paris"


def test_a_strict_tool_is_held_to_its_schema_from_the_moment_a_call_begins(driver: Driver) -> None:
    chat = Chat(driver, QWEN)
    lean = towards(driver.model, "<tool_call>")
    chat.ask(tools=STRICT, sampling=lean, tool_choice=ToolChoice(parallel=False)).check_calls()
    free = chat.ask(tools=TOOLS, sampling=lean)
    assert free.calls == []
    assert free.text.startswith("<tool_call>")


def test_without_a_choice_the_tools_are_not_shown(plain: Driver) -> None:
    chat = Chat(plain, QWEN)
    hidden = chat.renderer.prompt(
        GenerationRequest(messages=QUESTION, tools=TOOLS, tool_choice=ToolChoice(ToolMode.NONE))
    )
    assert hidden == chat.renderer.prompt(GenerationRequest(messages=QUESTION))


@pytest.mark.parametrize("limit", [0, 5])
def test_thinking_is_ended_after_its_budget_and_an_answer_follows(plain: Driver, driver: Driver, limit: int) -> None:
    for each in (plain, driver):
        answer = Chat(each, QWEN_OPENED).ask(tools=(), reasoning=Reasoning(max_tokens=limit), max_tokens=40)
        assert answer.end is not None
        markers = len(each.model.tokenize("\n</think>\n\n", add_special=False, parse_special=True))
        assert limit < answer.end.usage.reasoning_tokens <= limit + markers
        assert answer.text
        assert "</think>" not in answer.text + answer.thought
        whole = Chat(each, QWEN_OPENED).ask(tools=(), reasoning=Reasoning(max_tokens=limit, split=False), max_tokens=40)
        assert whole.thought == ""
        assert whole.text.endswith(answer.text)
        assert "</think>" in whole.text


def test_thinking_that_is_switched_off_does_not_begin(plain: Driver) -> None:
    for template in (QWEN_OPENED, QWEN_OPENED.replace("enable_thinking", "other")):
        chat = Chat(plain, template)
        prompt = chat.renderer.prompt(GenerationRequest(messages=QUESTION, reasoning=Reasoning(enabled=False)))
        end = plain.model.tokenize("<think>\n\n</think>\n\n", add_special=False, parse_special=True)
        assert prompt.tokens[-len(end) :] == end
        assert not prompt.opens_thought


def test_a_grammar_holds_for_the_answer_and_not_for_the_thinking(driver: Driver) -> None:
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps({**WEATHER, "additionalProperties": False}))
    chat = Chat(driver, QWEN)
    lean = towards(driver.model, "<think>")
    answer = chat.ask(tools=(), grammar=grammar, sampling=lean, reasoning=Reasoning(max_tokens=4))
    assert answer.thought
    jsonschema_rs.validate(WEATHER, json.loads(answer.text))
    at_once = chat.ask(tools=(), grammar=grammar, sampling=lean, reasoning=Reasoning(enabled=False))
    assert at_once.thought == ""
    jsonschema_rs.validate(WEATHER, json.loads(at_once.text))
    channels = Chat(driver, CHANNELS).ask(tools=(), grammar=grammar, reasoning=Reasoning(max_tokens=4))
    jsonschema_rs.validate(WEATHER, json.loads(channels.text))


def test_tools_whose_grammar_cannot_be_made_are_refused_by_name(plain: Driver) -> None:
    chat = Chat(plain, QWEN)
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"type": "object", "properties": {"x": deep}}
    with pytest.raises(InvalidGrammar) as caught:
        chat.ask(tools=(Tool("f", "", json.dumps(deep)),), tool_choice=ToolChoice(ToolMode.REQUIRED))
    assert caught.value.param == "tools"
    with pytest.raises(InvalidGrammar, match="No tool is called"):
        chat.ask(tool_choice=ToolChoice(ToolMode.NAMED, "other"))


NUMBER = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(NUMBER))


@pytest.mark.parametrize("template", [None, QWEN])
def test_beside_a_form_the_model_calls_or_keeps_to_it(driver: Driver, template: str | None) -> None:
    chat = Chat(driver, template)
    marker = "<tool_call>" if template else '{"name'
    asked: dict[str, Any] = {
        "grammar": FORM, "tools": STRICT, "tool_choice": ToolChoice(parallel=False), "max_tokens": 160,
    }  # fmt: skip
    for seed in range(8):
        answer = chat.ask(**asked, sampling=SamplingParams(temperature=1.0, seed=seed))
        if answer.calls:
            answer.check_calls()
            assert answer.text == ""
        else:
            assert set(json.loads(answer.text)) == {"n"}
            assert marker not in answer.text
    if template:
        chat.ask(**asked, sampling=towards(driver.model, "<tool_call>")).check_calls()
    chat.ask(**{**asked, "tool_choice": ToolChoice(ToolMode.REQUIRED, parallel=False)}).check_calls()
