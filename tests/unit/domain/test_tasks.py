"""Tasks as JSON lines, and what counts as a right answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidParameter
from service.domain.generation import Message
from service.domain.tasks import TaskItem, is_right, may_become_right, parse_task


def test_prompts_and_messages_are_read_and_empty_lines_are_not() -> None:
    lines = [
        {"prompt": "2 + 2 =", "expected": "4"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "ü"}], "expected": "x y"},
    ]
    data = "\r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    assert parse_task(data) == (
        TaskItem("4", prompt="2 + 2 ="),
        TaskItem("x y", messages=(Message("system", "s"), Message("user", "ü"))),
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no object"),
        ('{"prompt": "a", "expected": "b", "answer": "c"}', "no object"),
        ('{"prompt": "a"}', "expected"),
        ('{"prompt": "a", "expected": " "}', "expected"),
        ('{"prompt": "a", "expected": 4}', "expected"),
        ('{"expected": "b"}', "one of"),
        ('{"prompt": "a", "messages": [], "expected": "b"}', "one of"),
        ('{"prompt": 4, "expected": "b"}', "prompt"),
        ('{"messages": [], "expected": "b"}', "messages"),
        ('{"messages": ["x"], "expected": "b"}', "message"),
        ('{"messages": [{"role": "tool", "content": "x"}], "expected": "b"}', "role"),
        ('{"messages": [{"role": [], "content": "x"}], "expected": "b"}', "role"),
        ("\xff", "no JSON"),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str) -> None:
    data = b'{"prompt": "a", "expected": "b"}\n\n' + line.encode("latin-1")
    with pytest.raises(InvalidParameter, match=f"Line 3 .*{problem}"):
        parse_task(data)


def test_a_task_without_lines_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="empty"):
        parse_task(b"\n \n")


@given(st.text(max_size=20), st.text(min_size=1, max_size=10).filter(str.strip))
def test_an_answer_is_given_up_only_when_no_end_could_make_it_right(answer: str, expected: str) -> None:
    for length in range(len(answer) + 1):
        if not may_become_right(answer[:length], expected):
            assert not is_right(answer, expected)
    assert all(may_become_right(f" {expected} "[:length], expected) for length in range(len(expected) + 3))
    assert is_right(f"\n{expected} ", expected)
