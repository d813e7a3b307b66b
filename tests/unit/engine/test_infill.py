"""Promises of prompts that fill a hole: they fit, what is near the hole stays, and the marks are where they belong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import NotSupported, PromptTooLong
from service.engine import infill
from service.engine.infill import infill_prompt
from service.llama.vocabulary import InfillTokens

PREFIX, SUFFIX, MIDDLE, PROJECT, FILE, BOS = 1, 2, 3, 4, 5, 6
FULL = InfillTokens(PREFIX, SUFFIX, MIDDLE, PROJECT, FILE)


class _Model:
    """One token a character."""

    adds_bos = True
    bos_token = BOS

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [100 + ord(character) for character in text]


def prompt(marks: InfillTokens | None = FULL, **fields: Any) -> list[int]:
    given = {"before": "abc", "behind": "xyz", "begun": "", "files": [], "room": 1000, **fields}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infill, "infill_tokens", lambda model: marks)
        return infill_prompt(_Model(), **given)  # type: ignore[arg-type]


def words(tokens: list[int]) -> str:
    return "".join(chr(token - 100) if token >= 100 else f"<{token}>" for token in tokens)


def test_the_order_is_files_then_what_is_before_begun_and_behind() -> None:
    files = [("a.py", "A"), ("b.py", "B")]
    assert words(prompt(begun="!", files=files)) == (
        "<4>myproject\n<5>a.py\nA<5>b.py\nB<5>filename\n<6><1>abc!<2>xyz<3>"
    )
    bare = InfillTokens(PREFIX, SUFFIX, MIDDLE, None, None)
    assert words(prompt(bare, files=files)) == "\n\n--- snip ---\n\nA\n\n--- snip ---\n\nB<6><1>abc<2>xyz<3>"
    assert words(prompt(bare)) == "<6><1>abc<2>xyz<3>"


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5), st.integers(9, 120))
def test_it_fits_and_keeps_what_is_next_to_the_hole(before: int, behind: int, begun: int, room: int) -> None:
    head, tail = ("h" * before)[:-1] + "H" * bool(before), "T" * bool(behind) + ("t" * behind)[1:]
    tokens = prompt(before=head, behind=tail, begun="!" * begun, files=[("f", "f" * 30)], room=room)
    assert len(tokens) <= room
    shown = words(tokens)
    left = room - 4 - begun
    kept_head = shown.partition("<1>")[2].partition("<2>")[0].rstrip("!")
    kept_tail = shown.partition("<2>")[2].removesuffix("<3>")
    assert head.endswith(kept_head)
    assert tail.startswith(kept_tail)
    assert len(kept_head) + len(kept_tail) == min(left, before + behind)
    assert shown.endswith("<3>")


def test_models_without_the_tokens_and_beginnings_without_room_are_refused() -> None:
    with pytest.raises(NotSupported):
        prompt(None)
    with pytest.raises(PromptTooLong):
        prompt(begun="!" * 20, room=20)
