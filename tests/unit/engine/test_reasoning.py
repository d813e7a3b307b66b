"""Promises of thinking: told apart whatever the cuts, nothing of it in the answer, stop strings only in the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.generation import Thought, Token, ToolCallDelta
from service.engine.answer import AnswerStream, Reading
from service.engine.channels import ChannelSplitter
from service.engine.formats import GENERIC, Thinking, detect
from service.engine.reasoning import ThoughtSplitter

THINK = Thinking("<think>", "</think>")
PIECES = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<thi", "nk>", "</", "think>", "a", "b c", " ", "\n\n", "<", " " * 300, "é"]
    ),
    max_size=14,
).map("".join)
SIZES = st.lists(st.integers(1, 9), max_size=40)


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(text[position : position + size])
        position += size
    return [*pieces, text[position:]]


def split(pieces: list[str], **options: bool) -> tuple[str, str]:
    splitter = ThoughtSplitter(THINK, **{"opened": False, **options})
    found = [*map(splitter.push, pieces), splitter.finish()]
    return "".join(thought for thought, _ in found), "".join(answer for _, answer in found)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>\nHm, 2 + 2.\n</think>\n\nIt is 4.", False, "Hm, 2 + 2.", "It is 4."),
        ("\n<think>Hm.</think>4", False, "Hm.", "4"),
        ("Hm.\n</think>\n\n4", True, "Hm.", "4"),
        ("<think>\n\n</think>\n\n4 <think>no</think>", False, "", "4 <think>no</think>"),
        ("It is <think>.", False, "", "It is <think>."),
        ("<think>never ends </th", False, "never ends </th", ""),
        ("  plain", False, "", "  plain"),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, opened: bool, thought: str, answer: str) -> None:
    for pieces in ([text], list(text)):
        assert split(pieces, opened=opened) == (thought, answer)


@given(PIECES, SIZES, st.booleans())
def test_the_cuts_do_not_matter(text: str, sizes: list[int], opened: bool) -> None:
    assert split(cut(text, sizes), opened=opened) == split([text], opened=opened)


@given(PIECES, SIZES, st.booleans())
def test_with_its_markers_kept_the_text_is_whole(text: str, sizes: list[int], opened: bool) -> None:
    assert "".join(split(cut(text, sizes), opened=opened, keeps_markers=True)) == text


def read(text: str, reading: Reading, stops: tuple[str, ...] = ()) -> tuple[str, str, str, str | None]:
    stream = AnswerStream(reading, stops, 0, new_id=lambda: "id")
    parts = [part for byte in text.encode() for part in stream.push(bytes([byte]))] + stream.finish()
    return (
        "".join(part.text for part in parts if isinstance(part, Thought)),
        "".join(part.text for part in parts if isinstance(part, Token)),
        "".join(f"{part.name or ''}{part.arguments}" for part in parts if isinstance(part, ToolCallDelta)),
        stream.stopped_by,
    )


def test_stop_strings_end_the_answer_and_not_the_thinking() -> None:
    text = "<think>Stop here?</think>Yes. Stop here."
    assert read(text, Reading(thinking=THINK), ("Stop",)) == ("Stop here?", "Yes. ", "", "Stop")


def test_stop_strings_do_not_end_calls() -> None:
    text = '{"name": "now", "arguments": {"why": "Stop"}}'
    reading = Reading(calls=GENERIC, tools={"now": {}})
    assert read(text, reading, ("Stop",)) == ("", "", 'now{"why": "Stop"}', None)


def test_thinking_comes_before_calls_and_may_be_left_in_the_text() -> None:
    text = '<think>Now?</think>\n\n{"name": "now", "arguments": {}}'
    tools: dict[str, dict[str, object]] = {"now": {}}
    assert read(text, Reading(thinking=THINK, calls=GENERIC, tools=tools)) == ("Now?", "", "now{}", None)
    left = read(text, Reading(thinking=THINK, calls=GENERIC, tools=tools, splits=False))
    assert left == ("", "<think>Now?</think>", "now{}", None)


OSS = detect("<|channel|>analysis<|message|> <|channel|>commentary", takes_tools=True)
ANALYSIS = "<|channel|>analysis<|message|>User wants weather.<|end|><|start|>assistant"
CHANNELS = [
    (f"{ANALYSIS}<|channel|>final<|message|>It is sunny.", "User wants weather.", "It is sunny.", ""),
    (
        f'{ANALYSIS}<|channel|>commentary to=functions.now <|constrain|>json<|message|>{{"a": 1}}',
        "User wants weather.",
        "",
        'now{"a": 1}',
    ),
    (
        (
            f"{ANALYSIS}<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.now"
            "<|channel|>commentary json<|message|>{}"
        ),
        "User wants weather.",
        "Let me look.",
        "now{}",
    ),
    ("<|channel|>final<|message|>Hi <|", "", "Hi <|", ""),
    ("No header at all.", "", "No header at all.", ""),
    ("<|channel|>analysis<|message|>Never ends", "Never ends", "", ""),
]


@pytest.mark.parametrize(("text", "thought", "answer", "calls"), CHANNELS)
def test_channels_are_told_apart(text: str, thought: str, answer: str, calls: str) -> None:
    assert read(text, Reading(thinking=OSS.thinking, calls=OSS.calls)) == (thought, answer, calls, None)


@given(
    st.lists(
        st.sampled_from(
            [
                "<|channel|>",
                "<|message|>",
                "<|end|>",
                "<|start|>",
                "assistant",
                "analysis",
                "final",
                "to=functions.f",
                "a",
            ]
        ),
        max_size=14,
    ).map("".join),
    SIZES,
)
def test_the_cuts_of_channels_do_not_matter(text: str, sizes: list[int]) -> None:
    def parts(pieces: list[str]) -> tuple[str, str]:
        splitter = ChannelSplitter()
        found = [*map(splitter.push, pieces), splitter.finish()]
        return "".join(thought for thought, _ in found), "".join(answer for _, answer in found)

    assert parts(cut(text, sizes)) == parts([text])
