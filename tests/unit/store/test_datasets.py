"""What a dataset may hold."""

from __future__ import annotations

import pytest

from service.domain.datasets import DatasetKind
from service.domain.errors import InvalidParameter
from service.domain.tasks import parse_task
from service.store.datasets import BUILT_IN, TEXTS, check


@pytest.mark.parametrize(("data", "said"), [(b"", "empty"), (b" \n", "empty"), (b"a\xff", "byte 1"), (b"a\0b", "NUL")])
def test_a_text_is_utf8_and_says_something(data: bytes, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        check(DatasetKind.TEXT, data)


def test_a_task_is_questions_with_answers() -> None:
    check(DatasetKind.TASK, b'{"prompt": "1 + 1", "expected": "2"}\n')
    with pytest.raises(InvalidParameter, match="Line 2"):
        check(DatasetKind.TASK, b'{"prompt": "1 + 1", "expected": "2"}\nnot JSON\n')


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for _, kind, file in BUILT_IN])
def test_the_built_in_datasets_are_what_they_say(kind: DatasetKind, file: str) -> None:
    data = (TEXTS / file).read_bytes()
    check(kind, data)
    if kind is DatasetKind.TASK:
        assert len(parse_task(data)) == 232
