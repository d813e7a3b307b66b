"""Promises of the launch ladder."""

from __future__ import annotations

from service.workers.ladder import Rung, flags, next_lower, parse_rung


def test_each_rung_gives_up_one_more_thing_and_the_last_needs_nothing() -> None:
    rung: Rung | None = Rung.FULL
    seen = []
    while rung is not None:
        launch = flags(rung, gpu_layers=-1)
        seen.append((launch.extra_buffers, launch.flash_attention, launch.gpu_layers))
        rung = next_lower(rung)
    assert seen == [(True, True, -1), (False, True, -1), (False, False, -1), (False, False, 0)]


def test_an_unknown_remembered_rung_starts_at_the_top() -> None:
    assert parse_rung(None) is Rung.FULL
    assert parse_rung("from-a-later-version") is Rung.FULL
    assert parse_rung("no-gpu") is Rung.NO_GPU
