"""Promises of tool calls: recorded outputs of each family are read, whatever the cuts; what is no call stays text."""

# DeepSeek's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.generation import ToolCallDelta
from service.engine import formats
from service.engine.formats import CallFormat
from service.engine.tool_calls import CallParser, call_id, short_id

FAMILIES = {known.family: known for _, _, known in formats.CALL_FORMATS} | {"generic": formats.GENERIC}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}},
    "write_file": {"path": {"type": "string"}, "text": {"type": "string"}},
    "now": {},
}
PARIS = ("get_weather", {"city": "Paris"})
ROME = ("get_weather", {"city": "Rome", "days": 3})

RECORDED: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    # family, what the model wrote, the text in it, the calls in it
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    (
        "hermes",
        (
            'Let me look.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
        ),
        "Let me look.",
        [PARIS, ROME],
    ),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name":"now","arguments":null}</tool_call> Done.', "Done.", [("now", {})]),
    ("hermes", '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', "", [PARIS]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", [PARIS]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}</tool_call>', "", [PARIS]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris",}}</tool_call>', "", [PARIS]),
    (
        "hermes",
        (
            '<tool_call>{"name": "write_file", "arguments": {"path": "a", "text": "one\ntwo\\$ \\u00e9 '
            '</tool_call> {"}}</tool_call>'
        ),
        "",
        [("write_file", {"path": "a", "text": "one\ntwo\\$ é </tool_call> {"})],
    ),
    (
        "hermes",
        'a < b <tool <tool_call> oops <tool_call>{"name": "now"}</tool_call>',
        "a < b <tool <tool_call> oops",
        [("now", {})],
    ),
    ("hermes", "Use <tool_call> like this.", "Use <tool_call> like this.", []),
    ("hermes", '<tool_call>{"name": "now", "argu', '<tool_call>{"name": "now", "argu', []),
    ("llama", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama", '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    (
        "llama",
        (
            '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
            '{"name": "get_weather", "parameters": {"city": "Rome", "days": 3}}'
        ),
        "",
        [PARIS, ROME],
    ),
    ("llama", '{"name": "Ada", "parameters": {"age": 36}}', '{"name": "Ada", "parameters": {"age": 36}}', []),
    ("llama", 'It is {"name": "now", "parameters": {}}', 'It is {"name": "now", "parameters": {}}', []),
    (
        "mistral",
        (
            '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "VvvODy9mT"}, '
            '{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}, "id": "Qj2ODy9mT"}]'
        ),
        "",
        [PARIS, ROME],
    ),
    ("mistral", 'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "Sure.", [PARIS]),
    (
        "mistral",
        '[TOOL_CALLS]get_weather[CALL_ID]VvvODy9mT[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}',
        "",
        [PARIS, ("now", {})],
    ),
    (
        "deepseek",
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "",
        [PARIS, ("now", {})],
    ),
    (
        "deepseek",
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n'
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "",
        [PARIS, ("now", {})],
    ),
    (
        "kimi",
        (
            "I will look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>'
        ),
        "I will look.",
        [PARIS],
    ),
    (
        "command-r",
        (
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}},'
            '\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>'
        ),
        "",
        [PARIS, ("now", {})],
    ),
    (
        "qwen-coder",
        (
            "On it.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n</function>\n</tool_call>"
        ),
        "On it.",
        [ROME],
    ),
    (
        "qwen-coder",
        (
            "<function=write_file>\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\n"
            "\ndef f():\n    return '\"<\\'\n"
            "\n</parameter>\n</function>"
        ),
        "",
        [("write_file", {"path": "a.py", "text": "\ndef f():\n    return '\"<\\'\n"})],
    ),
    (
        "qwen-coder",
        (
            '<tool_call>\n<function=get_weather>\n<parameter=where>\n{"lat": 1.5, "ok": True}\n'
            "</parameter>\n"
            "<parameter=other>\nnot json\n</parameter>\n</function>\n</tool_call>"
        ),
        "",
        [("get_weather", {"where": {"lat": 1.5, "ok": True}, "other": "not json"})],
    ),
    ("qwen-coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [("now", {})]),
    (
        "glm",
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>3</arg_value>\n</tool_call>"
        ),
        "",
        [ROME],
    ),
    ("glm", "<tool_call>now</tool_call>", "", [("now", {})]),
    ("functionary", '<function=get_weather>{"city": "Paris"}</function>', "", [PARIS]),
    (
        "functionary",
        'Both.\n<function=get_weather>{"city": "Paris"}</function><function=now>{}</function>',
        "Both.",
        [PARIS, ("now", {})],
    ),
    ("nemotron", '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>', "", [PARIS]),
    ("phi", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>', "", [PARIS]),
    ("generic", '{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    ("generic", '```json\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n```', "", [PARIS]),
    (
        "generic",
        '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]',
        "",
        [PARIS, ("now", {})],
    ),
    ("generic", "```python\nprint()\n```", "```python\nprint()\n```", []),
    ("generic", "[a link](https://x.y)", "[a link](https://x.y)", []),
    ("generic", '{"name": "now"}', '{"name": "now"}', []),
    ("generic", "  Hello {there}", "  Hello {there}", []),
]


def read(form: CallFormat, pieces: list[str], **options: Any) -> tuple[str, list[tuple[str, str]]]:
    numbers = itertools.count()
    parser = CallParser(form, TOOLS, new_id=lambda: f"id{next(numbers)}", **options)
    found = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    text, calls = "", {}
    for part in found:
        if isinstance(part, str):
            assert part
            text += part
        elif part.name is not None:
            assert part.index == len(calls)
            assert part.id == f"id{part.index}"
            calls[part.index] = [part.name, part.arguments]
        else:
            calls[part.index][1] += part.arguments
    return text, [(name, arguments) for name, arguments in calls.values()]


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(text[position : position + size])
        position += size
    return [*pieces, text[position:]]


@pytest.mark.parametrize(("family", "written", "text", "calls"), RECORDED)
def test_recorded_outputs_are_read(family: str, written: str, text: str, calls: list[tuple[str, Any]]) -> None:
    for pieces in ([written], list(written), cut(written, [3] * (len(written) // 3))):
        found, found_calls = read(FAMILIES[family], pieces)
        assert [(name, json.loads(arguments)) for name, arguments in found_calls] == calls
        assert found == text


@given(st.sampled_from(RECORDED), st.lists(st.integers(1, 12), max_size=60))
def test_the_cuts_do_not_matter(recorded: tuple[str, str, str, Any], sizes: list[int]) -> None:
    form = FAMILIES[recorded[0]]
    assert read(form, cut(recorded[1], sizes)) == read(form, [recorded[1]])


MARKERS = sorted({marker for form in FAMILIES.values() for marker in (*form.triggers, *form.leads, *form.closers)})
NOISE = st.lists(
    st.sampled_from(
        [
            *MARKERS,
            "{",
            "}",
            "[",
            "]",
            '"',
            ":",
            ",",
            " ",
            "\n",
            "\\",
            '"name"',
            '"arguments"',
            '"now"',
            "now",
            "1e5",
            ">",
            "[ARGS]",
            "<parameter=x>",
            "</parameter>",
            "</function>",
            "<arg_key>k</arg_key>",
            "<arg_value>",
            "tru",
            "\\u12",
            "é",
        ]
    ),
    max_size=25,
).map("".join)


@settings(max_examples=300)
@given(st.sampled_from(sorted(FAMILIES)), NOISE, st.lists(st.integers(1, 9), max_size=60))
def test_no_text_breaks_the_reading_and_no_cut_changes_it(family: str, text: str, sizes: list[int]) -> None:
    assert read(FAMILIES[family], cut(text, sizes)) == read(FAMILIES[family], [text])


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.text(alphabet="ab <>[]{}|/\"':,\n_tolcTOLCA", max_size=60),
    st.lists(st.integers(1, 5), max_size=40),
)
def test_a_text_without_calls_is_given_out_to_the_character(family: str, text: str, sizes: list[int]) -> None:
    found, calls = read(FAMILIES[family], cut(text, sizes))
    assert (found, calls) == (text, [])


def test_text_is_given_out_at_once_and_markers_are_held_back() -> None:
    parser = CallParser(FAMILIES["hermes"], TOOLS)
    assert parser.push("Hello <b") == ["Hello <b"]
    assert parser.push(" and <tool_c") == [" and"]
    assert parser.push("ake") == [" <tool_cake"]


def test_arguments_are_given_out_as_they_come() -> None:
    parser = CallParser(FAMILIES["hermes"], TOOLS, new_id=lambda: "id")
    assert parser.push('<tool_call>{"name": "get_weather", "arguments": {') == []
    assert parser.push('"ci') == [ToolCallDelta(0, '{"ci', "id", "get_weather")]
    assert parser.push('ty": "Pa') == [ToolCallDelta(0, 'ty": "Pa')]
    assert parser.push('ris"}}') == [ToolCallDelta(0, 'ris"}')]


def test_strings_in_tags_are_given_out_as_they_come() -> None:
    parser = CallParser(FAMILIES["qwen-coder"], TOOLS, new_id=lambda: "id")
    parser.push("<tool_call>\n<function=write_file>\n<parameter=text>\n")
    assert parser.push("one\ntw") == [ToolCallDelta(0, "one\\ntw")]
    assert parser.push("o\n</par") == [ToolCallDelta(0, "o")]


def test_past_the_last_call_that_is_allowed_nothing_is_given_out() -> None:
    written = '<tool_call>{"name": "now"}</tool_call>' * 2 + "Done."
    assert read(FAMILIES["hermes"], [written], most_calls=1) == ("", [("now", "{}")])
    assert read(FAMILIES["hermes"], list(written), most_calls=1) == ("", [("now", "{}")])


def test_arguments_that_break_off_stay_with_their_call_and_the_rest_is_text() -> None:
    text, calls = read(FAMILIES["hermes"], ['<tool_call>{"name": "now", "arguments": {"a": 1 !!}}</tool_call> x'])
    assert calls == [("now", '{"a": 1 ')]
    assert text == "!!}}</tool_call> x"


def test_reading_takes_time_in_proportion_to_the_text() -> None:
    def seconds(text: str) -> float:
        started = time.process_time()
        read(FAMILIES["hermes"], cut(text, [4] * (len(text) // 4)))
        return time.process_time() - started

    for part in (
        "<tool_call>{",
        " ",
        "<tool_call",
        '<tool_call>{"a": ["',
        '<tool_call>{"name":"now","arguments":{"x":"',
    ):
        assert seconds(part * 2000) < 1 + 12 * seconds(part * 250)


def test_ids_look_as_those_of_others() -> None:
    assert len(call_id()) == 29
    assert call_id().startswith("call_")
    assert len(short_id()) == 9
    assert short_id().isalnum()
