"""What is kept of answers is given again only where it would come out the same."""

from __future__ import annotations

from service.api import remembered
from service.api.remembered import LastAnswer, Parts


def test_a_part_is_made_again_when_what_it_is_made_from_changes_and_not_before(monkeypatch) -> None:
    parts, made = Parts(), []

    def get(key: str, made_from: object) -> int:
        return parts.get(key, made_from, lambda: made.append(key) or len(made))

    assert [get("a", [1]), get("a", [1]), get("b", [1]), get("a", [2]), get("a", [1])] == [1, 1, 2, 3, 4]
    monkeypatch.setattr(remembered, "_MOST_PARTS", 2)
    assert get("c", [1]) == 5
    assert len(parts._known) == 1, "a store that grows does not grow this without bound"


def test_only_the_last_answer_is_kept_and_none_where_others_write() -> None:
    last = LastAnswer()
    assert last.get((1, "a")) is None
    last.keep((1, "a"), b"one")
    assert last.get((1, "a")) == b"one"
    assert last.get((2, "a")) is None
    last.keep((None, "b"), b"two")
    assert last.get((None, "b")) is None
