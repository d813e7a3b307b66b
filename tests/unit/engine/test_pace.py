"""The measured cost of steps, and how much prompt fits into a gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.pace import Pace


def measured(gap: float = 0.25, token: float = 0.004) -> Pace:
    """One token alone 10 ms, 4 tokens 20 ms, and so much for each token of a prompt."""
    pace = Pace(batch_tokens=512, max_gap_seconds=gap)
    for _ in range(50):
        pace.observe(1, 0, 0.010)
        pace.observe(4, 0, 0.020)
        pace.observe(4, 60, 0.020 + 60 * token)
    return pace


def test_prompts_beside_streams_fit_into_the_gap() -> None:
    pace = measured(token=0.002)
    tokens = pace.prompt_tokens(generating=4)
    assert 100 <= tokens <= 120
    assert 0.020 + tokens * 0.002 <= 0.27


def test_prompts_alone_take_larger_steps_that_stay_short_enough_to_cancel() -> None:
    assert measured().prompt_tokens(generating=0) == 125


def test_before_anything_is_known_a_prompt_alone_takes_the_whole_batch_and_a_careful_chunk_beside_streams() -> None:
    pace = Pace(batch_tokens=512, max_gap_seconds=0.25)
    assert pace.prompt_tokens(generating=0) == 512
    assert pace.prompt_tokens(generating=3) == 64


def test_a_prompt_goes_on_however_tight_the_gap_is_in_pieces_that_attention_is_made_for() -> None:
    assert measured(gap=0.001).prompt_tokens(generating=4) == 64


def test_costs_between_and_beyond_the_measured_sizes_follow_from_them() -> None:
    pace = measured()
    assert 0.0130 < pace.step_seconds(2) < 0.0137
    assert abs(pace.step_seconds(14) - 0.060) < 0.006
    assert Pace(batch_tokens=8, max_gap_seconds=1).step_seconds(3) == 0.0


def test_one_slow_step_changes_little() -> None:
    pace = measured()
    pace.observe(1, 0, 5.0)
    assert pace.step_seconds(1) < 0.016


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 512), st.floats(1e-5, 5)), max_size=40), st.integers(0, 64)
)
def test_whatever_is_measured_the_answers_make_sense(
    observations: list[tuple[int, int, float]], generating: int
) -> None:
    pace = Pace(batch_tokens=512, max_gap_seconds=0.25)
    for generated, prompt, seconds in observations:
        if generated + prompt:
            pace.observe(generated, prompt, seconds)
    assert 64 <= pace.prompt_tokens(generating) <= 512
    assert pace.step_seconds(generating) >= 0
