"""What the trial of a chat template has written before its end is a verdict, however it ended."""

from __future__ import annotations

import pytest

from service.domain.catalog import FileFacts, ModelShape
from service.jobs.template_check import COMPILING, ONE_TURN
from service.jobs.templates import verdict_of


def test_what_a_check_died_of_is_read_from_its_last_line() -> None:
    ended = [{"case": COMPILING}, {"case": ONE_TURN}]
    assert verdict_of(ended, -24) == "broken: The chat template ran for more than 1 s."
    assert "memory" in str(verdict_of(ended, -11))
    assert verdict_of([], 1) is None
    whole = [*ended, {"case": ONE_TURN, "refused": None}, {"case": "tools"}]
    assert verdict_of(whole, -9) == "refuses tools"
    assert verdict_of([{"case": ONE_TURN, "refused": "a\nb\x1b[31m" + "c" * 1000}], 0) == "broken: a b [31m" + "c" * 292


@pytest.mark.parametrize(
    ("verdict", "fault"), [(None, None), ("ok", None), ("refuses tools", None), ("broken: it ends", "it ends")]
)
def test_only_a_broken_template_is_at_fault(verdict: str | None, fault: str | None) -> None:
    assert FileFacts("F16", 1, 16.0, 1, ModelShape("llama"), template_verdict=verdict).template_fault == fault
