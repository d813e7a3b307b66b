"""How models write tool calls and thinking, told from the text of their chat template and not from their name. Pure.

One table of families: what to look for in a template, how a call is read (tool_calls.py) and how it is written where it
is forced (tool_grammar.py). Knows no requests and no tokens.
"""

# DeepSeek's tokens are written with full-width bars.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from service.engine.channels import CALL, MESSAGE


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model marks its thinking. `close` ends it early; `empty` is thinking that is skipped."""

    start: str
    end: str
    after: str = "\n\n"  # what models write between the end and the answer
    close: str = ""
    empty: str = ""
    channels: bool = False  # the answer is a row of messages with headers (channels.py)
    answer_header: str = ""  # where a grammar holds for the whole answer, what must stand before

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be single tokens without text of their own."""
        return (self.start, self.end, *SPECIAL.findall(self.start + self.close + self.answer_header))


@dataclass(frozen=True, slots=True)
class Writing:
    """How calls are written by the book: opening, call, between, call, ..., closing.

    A call is `before_name`, the name, `before_arguments`, the arguments, `after_arguments`.
    """

    before_name: str
    before_arguments: str
    after_arguments: str
    opening: str = ""
    between: str = "\n"
    closing: str = ""


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments as tags, one for each, with white space around their parts; strings stand there as they are."""

    key: str
    key_end: tuple[str, ...]  # one after another
    value_end: str
    end: str  # of the call
    name_ends: str  # characters that end the function's name
    break_lines: bool  # values stand on lines of their own


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are read and written.

    A call begins with one of `triggers`; without any, an answer that begins with JSON, or with one of `leads` and JSON,
    is a call. Between a trigger and the arguments stands `header`, a pattern that finds the `name`; where a JSON object
    comes at once, or a list of them, the name is inside. `closers` may follow a call and are no text.
    """

    family: str
    writing: Writing
    triggers: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    header: re.Pattern[str] | None = None
    closers: tuple[str, ...] = ()
    tags: Tags | None = None
    parallel: bool = True  # the template can show several calls of one turn
    short_ids: bool = False  # ids have 9 letters and digits
    explained: bool = True  # the template shows the tools; else a text of ours does

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be single tokens without text of their own."""
        parts = [*self.triggers, *self.leads, *self.closers]
        writing = self.writing
        for text in (writing.opening, writing.before_name, writing.before_arguments, writing.after_arguments):
            parts += SPECIAL.findall(text)
        parts += SPECIAL.findall(writing.closing)
        if self.tags is not None:
            parts += [self.tags.key, *self.tags.key_end, self.tags.value_end, self.tags.end]
        return tuple(dict.fromkeys(parts))


# What looks like a special token inside a longer text.
SPECIAL = re.compile(r"<[|｜][^<>]*[|｜]>|</?[\w:]+>|\[/?[A-Z_]+\]")

_NAME = r"(?P<name>[\w.\-/]+)"


def _header(pattern: str) -> re.Pattern[str]:
    return re.compile(r"\s*" + pattern.replace("NAME", _NAME) + r"\s*")


def _json_call(name: str = "name", arguments: str = "arguments", before: str = "", after: str = "") -> Writing:
    return Writing(f'{before}{{"{name}": "', f'", "{arguments}": ', f"}}{after}")


GENERIC = CallFormat("generic", _json_call(), leads=("```json", "```"), closers=("```",), explained=False)
"""For templates that take no tools, or teach a way of writing calls that is not in the table."""

_LLAMA = CallFormat("llama", _json_call(arguments="parameters"), leads=("<|python_tag|>",), parallel=False)
_HERMES = CallFormat(
    "hermes",
    _json_call(before="<tool_call>\n", after="\n</tool_call>"),
    triggers=("<tool_call>",),
    closers=("</tool_call>",),
)
_MISTRAL_LIST = CallFormat(
    "mistral",
    Writing('{"name": "', '", "arguments": ', "}", opening="[TOOL_CALLS][", between=", ", closing="]"),
    triggers=("[TOOL_CALLS]",),
    header=_header(r"NAME\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?"),
)
_MISTRAL_NAMED = replace(_MISTRAL_LIST, writing=Writing("[TOOL_CALLS]", "[ARGS]", "", between=""))
_DEEPSEEK = CallFormat(
    "deepseek",
    Writing(
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        opening="<｜tool▁calls▁begin｜>",
        between="",
        closing="<｜tool▁calls▁end｜>",
    ),
    triggers=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    header=_header(
        r"(?:<｜tool▁call▁begin｜>)?\s*(?:function\s*<｜tool▁sep｜>\s*)?NAME\s*(?:<｜tool▁sep｜>)?\s*(?:```(?:json)?)?"
    ),
    closers=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
_DEEPSEEK_R1 = replace(
    _DEEPSEEK,
    writing=replace(
        _DEEPSEEK.writing,
        before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        before_arguments="\n```json\n",
        after_arguments="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
)
_KIMI = CallFormat(
    "kimi",
    Writing(
        "<|tool_call_begin|>functions.",
        ":0<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        opening="<|tool_calls_section_begin|>",
        between="",
        closing="<|tool_calls_section_end|>",
    ),
    triggers=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    header=_header(r"(?:<\|tool_call_begin\|>)?\s*(?:functions\.)?NAME(?::\d+)?\s*(?:<\|tool_call_argument_begin\|>)?"),
    closers=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
)
_COMMAND_R = CallFormat(
    "command-r",
    Writing(
        '    {"tool_call_id": "0", "tool_name": "',
        '", "parameters": ',
        "}",
        opening="<|START_ACTION|>[\n",
        between=",\n",
        closing="\n]<|END_ACTION|>",
    ),
    triggers=("<|START_ACTION|>",),
    closers=("<|END_ACTION|>",),
)
_GPT_OSS = CallFormat(
    "gpt-oss",
    Writing("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""),
    triggers=(CALL,),
    header=_header("NAME" + re.escape(MESSAGE)),
    parallel=False,
)
_QWEN_CODER = CallFormat(
    "qwen-coder",
    Writing("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>"),
    triggers=("<tool_call>", "<function="),
    header=_header("(?:<function=)?NAME"),
    closers=("</tool_call>",),
    tags=Tags("<parameter=", (">",), "</parameter>", "</function>", name_ends=">", break_lines=True),
)
_GLM = CallFormat(
    "glm",
    Writing("<tool_call>", "\n", "</tool_call>"),
    triggers=("<tool_call>",),
    header=_header("NAME"),
    tags=Tags(
        "<arg_key>", ("</arg_key>", "<arg_value>"), "</arg_value>", "</tool_call>", name_ends="\n<", break_lines=False
    ),
)
_FUNCTIONARY = CallFormat(
    "functionary",
    Writing("<function=", ">", "</function>", between=""),
    triggers=("<function=",),
    header=_header("NAME>"),
    closers=("</function>",),
)


def _list_between(family: str, opening: str, closing: str) -> CallFormat:
    return CallFormat(
        family,
        Writing('{"name": "', '", "arguments": ', "}", opening=f"{opening}[", between=", ", closing=f"]{closing}"),
        triggers=(opening,),
        closers=(closing,),
    )


# The first whose words are all in the template, and whose others are not.
CALL_FORMATS: tuple[tuple[tuple[str, ...], tuple[str, ...], CallFormat], ...] = (
    (("<|channel|>commentary", "<|message|>"), (), _GPT_OSS),
    (("[TOOL_CALLS]", "[ARGS]"), (), _MISTRAL_NAMED),
    (("[TOOL_CALLS]",), (), _MISTRAL_LIST),
    (("<｜tool▁calls▁begin｜>", "```json"), (), _DEEPSEEK_R1),
    (("<｜tool▁calls▁begin｜>",), (), _DEEPSEEK),
    (("<|tool_call_begin|>",), (), _KIMI),
    (("<|START_ACTION|>",), (), _COMMAND_R),
    (("<function=", "<parameter="), (), _QWEN_CODER),
    (("<tool_call>", "<arg_key>"), (), _GLM),
    (("<tool_call>",), ("<invoke",), _HERMES),
    (("<function=",), (), _FUNCTIONARY),
    (("<TOOLCALL>",), (), _list_between("nemotron", "<TOOLCALL>", "</TOOLCALL>")),
    (("<|tool_call|>",), ("<|tool_call>",), _list_between("phi", "<|tool_call|>", "<|/tool_call|>")),
    (("ipython", '"parameters"'), (), _LLAMA),
    (("<|python_tag|>",), (), _LLAMA),
)

_CHANNELS = Thinking(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    after="<|start|>assistant",
    close="<|end|><|start|>assistant",
    empty="<|channel|>analysis<|message|><|end|><|start|>assistant",
    channels=True,
    answer_header="<|channel|>final<|message|>",
)
THINKING = (
    _CHANNELS,
    Thinking("<think>", "</think>", close="\n</think>\n\n", empty="<think>\n\n</think>\n\n"),
    Thinking("[THINK]", "[/THINK]", after="", close="[/THINK]", empty="[THINK][/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>", after="", close="<|END_THINKING|>", empty=""),
    Thinking("<seed:think>", "</seed:think>", after="\n", close="</seed:think>\n", empty=""),
)


@dataclass(frozen=True, slots=True)
class Format:
    """What a template says about its model."""

    calls: CallFormat = GENERIC
    thinking: Thinking | None = None
    thought_key: str | None = None  # under which messages carry earlier thinking


def detect(template: str, *, takes_tools: bool) -> Format:
    """The format of a template's model. `takes_tools`: it reads a variable of that name."""
    # Templates write line ends and quotes of their own strings escaped.
    text = template.replace('\\"', '"').replace("\\n", "\n")
    calls = GENERIC
    if takes_tools or "tool_calls" in text:
        for words, others, known in CALL_FORMATS:
            if all(word in text for word in words) and not any(word in text for word in others):
                calls = replace(known, explained=takes_tools)
                break
    if "single tool-call" in text:
        calls = replace(calls, parallel=False)
    if re.search(r"length\s*!=\s*9\b", text):
        calls = replace(calls, short_ids=True)
    thinking = next(
        (known for known in THINKING if known.start in text or (known.end in text and not known.channels)), None
    )
    thought_key = next((key for key in ("reasoning_content", "thinking") if re.search(rf"\b{key}\b", text)), None)
    return Format(calls, thinking, thought_key)
