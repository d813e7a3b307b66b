"""What is kept of answers is given again only where it would come out the same."""

from __future__ import annotations

from service.api.remembered import LastAnswer, Parts


def test_a_part_is_given_again_only_for_what_it_was_made_from() -> None:
    parts = Parts()
    assert parts.get("a", 1) is None
    parts.keep("a", 1, (b"one", b""))
    assert parts.get("a", 1) == (b"one", b"")
    assert parts.get("a", 2) is None
    parts.keep("a", 2, (b"two",))
    assert (parts.get("a", 1), parts.get("a", 2)) == (None, (b"two",))


def test_parts_take_no_more_than_so_many_bytes_and_the_longest_unasked_go_first() -> None:
    parts = Parts(most_bytes=3000)
    for name in ("a", "b", "c"):
        parts.keep(name, 1, (bytes(400),))
    assert parts.get("a", 1) is not None
    parts.keep("d", 1, (bytes(400),))
    assert [parts.get(name, 1) is not None for name in ("a", "b", "c", "d")] == [True, False, True, True]
    for _ in range(10):
        parts.keep("d", 1, (bytes(400),))
    assert parts.get("a", 1) is not None, "one in the place of another takes no more"
    parts.keep("too large", 1, (bytes(4000),))
    assert parts.get("too large", 1) is None
    assert parts._size_bytes == 0
    assert not parts._known


def test_only_the_last_answer_is_kept_and_none_where_others_write() -> None:
    last = LastAnswer()
    assert last.get((1, "a")) is None
    last.keep((1, "a"), b"one")
    assert last.get((1, "a")) == b"one"
    assert last.get((2, "a")) is None
    last.keep((None, "b"), b"two")
    assert last.get((None, "b")) is None
