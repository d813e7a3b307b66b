"""What is guessed, and how many guesses pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.speculation import DraftLength, NgramIndex

tokens_lists = st.lists(st.integers(0, 3), max_size=60)


def test_what_followed_the_last_three_tokens_before_is_guessed() -> None:
    assert NgramIndex().draft([1, 2, 3, 4, 5, 6, 1, 2, 3], 2) == ([4, 5], False)


def test_the_latest_occurrence_counts() -> None:
    assert NgramIndex().draft([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == ([5], False)


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert NgramIndex().draft([1, 2, 3, 4, 5, 6, 7], 4) == ([], False)
    assert NgramIndex().draft([1, 2], 4) == ([], False)


def test_a_repetition_is_continued_past_its_own_end() -> None:
    assert NgramIndex().draft([7, 1, 2, 1, 2, 1, 2], 5) == ([1, 2, 1, 2, 1], False)


@given(tokens_lists, st.integers(0, 9))
def test_a_text_that_grows_token_by_token_gets_the_guesses_of_one_looked_at_whole(
    tokens: list[int], limit: int
) -> None:
    index = NgramIndex()
    for end in range(len(tokens) + 1):
        grown = index.draft(tokens[:end], limit)
        assert grown == NgramIndex().draft(tokens[:end], limit)
        assert len(grown[0]) in (0, limit)


def flat(tokens: int) -> float:
    return 0.010  # memory-bound: more tokens cost nothing


def linear(tokens: int) -> float:
    return 0.002 + 0.006 * tokens  # compute-bound


def test_where_tokens_are_free_everything_is_guessed() -> None:
    assert DraftLength().choose(8, 1, flat, max_seconds=1) == 8


def test_guesses_that_are_wrong_are_given_up_and_those_that_would_have_been_right_come_back() -> None:
    length = DraftLength()
    for _ in range(10):
        length.observe(4, 0)
    assert length.choose(8, 1, linear, max_seconds=1) == 0
    for _ in range(40):
        length.observe(1, 1)
    assert length.choose(8, 1, linear, max_seconds=1) == 8


def test_a_model_that_guesses_at_a_loss_rests_and_is_tried_again() -> None:
    length = DraftLength()
    for _ in range(10):
        length.observe(4, 0)
    chosen = [length.choose(8, 1, flat, max_seconds=1, guess_seconds=0.004) for _ in range(60)]
    assert chosen[:17] == [0] * 17
    assert any(chosen)


def test_guesses_that_are_right_grow_longer() -> None:
    length = DraftLength()
    before = length.choose(64, 1, linear, max_seconds=1)
    for _ in range(30):
        length.observe(8, 8)
    assert length.choose(64, 1, linear, max_seconds=1) > before


def test_a_full_batch_guesses_less_than_a_single_stream() -> None:
    def saturating(tokens: int) -> float:
        return 0.008 + 0.004 * tokens

    length = DraftLength()
    assert length.choose(16, 1, saturating, 1) > length.choose(16, 32, saturating, 1)


def test_no_step_takes_longer_than_it_may_on_account_of_guesses() -> None:
    length = DraftLength()
    for _ in range(30):
        length.observe(8, 8)
    assert length.choose(64, 1, linear, max_seconds=0.05) == 7


def test_a_guess_that_costs_a_decode_must_be_worth_it() -> None:
    assert DraftLength().choose(8, 1, flat, 1, guess_seconds=0.001) > 0
    assert DraftLength().choose(8, 1, flat, 1, guess_seconds=0.012) == 0


def test_a_long_agreement_is_told_from_a_short_one_and_trusted_more() -> None:
    text = list(range(20))
    assert NgramIndex().draft([*text, 99, *text[:10]], 3) == ([10, 11, 12], True)
    assert NgramIndex().draft([*text, 99, *text[:5]], 3) == ([5, 6, 7], False)
    assert DraftLength(hopeful=True).choose(32, 1, linear, 1) > DraftLength().choose(32, 1, linear, 1)
