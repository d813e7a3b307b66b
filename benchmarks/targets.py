"""The table of aims: which figure of which arm is held against which other, and the ratio that is wanted. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""workload -> arm -> one mapping of figures for each repeat."""


@dataclass(frozen=True)
class Aim:
    """`figure` of arm `ours` over that of the best of `theirs` in the same workload, and what it should be.

    `against` says whose it is in words. A `None` ratio is for information.
    """

    work: str
    workload: str
    figure: str
    unit: str
    ours: str
    theirs: tuple[str, ...]
    against: str
    ratio: float | None
    lower_is_better: bool = False
    same_text: bool = False


_THEM = ("llama-server", "llama-server, unified")

AIMS = (
    Aim("1 client, generation", "one", "generation_rate", "tokens/s", "quantry", _THEM, "llama-server", 1.2),
    Aim(
        "1 client, generation",
        "one",
        "generation_rate",
        "tokens/s",
        "quantry",
        ("llama-bench",),
        "llama-bench tg (kernels alone)",
        0.93,
    ),
    Aim("4 clients, own prompts, total", "four", "total_rate", "tokens/s", "quantry", _THEM, "llama-server", 1.3),
    Aim("8 clients, own prompts, total", "eight", "total_rate", "tokens/s", "quantry", _THEM, "llama-server", 1.2),
    Aim("16 clients, own prompts, total", "sixteen", "total_rate", "tokens/s", "quantry", _THEM, "llama-server", 1.2),
    Aim(
        "16 clients sharing a 300-word system prompt",
        "shared",
        "total_rate",
        "tokens/s",
        "quantry",
        _THEM,
        "llama-server",
        1.8,
    ),
    Aim("same, median TTFT", "shared", "ttft_p50", "s", "quantry", _THEM, "llama-server", 0.3, lower_is_better=True),
    Aim("1 client, busy neighbour", "neighbour-1", "total_rate", "tokens/s", "quantry", _THEM, "llama-server", 8.0),
    Aim("8 clients, busy neighbour", "neighbour-8", "total_rate", "tokens/s", "quantry", _THEM, "llama-server", 8.0),
    Aim(
        "copying or editing a given text, 1 client, greedy",
        "copy",
        "generation_rate",
        "tokens/s",
        "quantry",
        ("quantry, no drafts",),
        "itself without speculation",
        1.8,
        same_text=True,
    ),
    Aim(
        "a 4,000-token prompt arriving while 4 streams run: worst gap",
        "long",
        "gap_max",
        "s",
        "quantry",
        _THEM,
        "llama-server",
        0.5,
        lower_is_better=True,
    ),
    Aim(
        "JSON schema output",
        "schema",
        "generation_rate",
        "tokens/s",
        "quantry, schema",
        ("quantry",),
        "itself unconstrained",
        0.9,
    ),
    Aim(
        "memory of worker + server processes",
        "sixteen",
        "memory_mib",
        "MiB",
        "quantry",
        _THEM,
        "llama-server",
        1.25,
        lower_is_better=True,
    ),
)


def _beside(work: str, workload: str, figure: str, against: str, arm: str, unit: str = "tokens/s") -> Aim:
    return Aim(work, workload, figure, unit, "quantry", (arm,), against, None, lower_is_better=unit == "s")


_ALONE = "llama-server -t 1 (told beforehand)"

BESIDE = (
    *(
        _beside(work, workload, "total_rate", side, side)
        for side in ("examples/server", "llama_cpp.server")
        for work, workload in (("1 client, total", "one"), ("4 clients, total", "four"))
    ),
    _beside("8 clients, total", "eight", "total_rate", "examples/server", "examples/server"),
    _beside("16 clients, total", "sixteen", "total_rate", "examples/server", "examples/server"),
    _beside("16 clients sharing a prompt", "shared", "total_rate", "examples/server", "examples/server"),
    Aim(
        "the same, three requests each",
        "shared-turns",
        "total_rate",
        "tokens/s",
        "quantry",
        _THEM,
        "llama-server",
        None,
    ),
    _beside("1 client, busy neighbour", "neighbour-1", "total_rate", _ALONE, "llama-server, 1 thread"),
    _beside("8 clients, busy neighbour", "neighbour-8", "total_rate", _ALONE, "llama-server, 1 thread"),
    _beside(
        "copying a text", "copy", "generation_rate", "llama-server with n-gram drafts", "llama-server, n-gram drafts"
    ),
    Aim(
        "JSON schema output",
        "schema",
        "generation_rate",
        "tokens/s",
        "quantry, schema",
        ("llama-server, schema",),
        "llama-server with the same schema",
        None,
    ),
    Aim("4,000-token prompt: its TTFT", "long", "ttft_long", "s", "quantry", _THEM, "llama-server", None, True),
    _beside("open loop, 1 request/s: TTFT p50", "arrivals", "ttft_p50", "llama-server", "llama-server", "s"),
    _beside("open loop: gap between tokens p95", "arrivals", "gap_p95", "llama-server", "llama-server", "s"),
    _beside("8 staggered clients, total", "staggered", "total_rate", "llama-server", "llama-server"),
)
"""For information: no ratio is aimed at."""


@dataclass(frozen=True)
class Row:
    """An aim with what was measured. `low` and `high` are the least and greatest ratio of a single repeat.

    `ratio` is the ratio of the medians. `same_text` is None where texts are not compared.
    """

    aim: Aim
    ours: float
    theirs: float
    their_arm: str
    ratio: float
    low: float
    high: float
    repeats: int
    same_text: bool | None = None

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None where there is none."""
        if self.aim.ratio is None:
            return None
        reached = self.ratio <= self.aim.ratio if self.aim.lower_is_better else self.ratio >= self.aim.ratio
        return reached and self.same_text is not False


def rows(aims: Sequence[Aim], figures: Figures, same_texts: Mapping[str, bool]) -> list[Row]:
    """A row for every aim whose two sides were measured, in the order of `aims`."""
    made = []
    for aim in aims:
        row = _row(aim, figures.get(aim.workload, {}), same_texts.get(aim.workload))
        if row is not None:
            made.append(row)
    return made


def _row(aim: Aim, arms: Mapping[str, Sequence[Mapping[str, float]]], same_text: bool | None) -> Row | None:
    ours = _values(arms, aim.ours, aim.figure)
    # Against several sets of flags, the one that did best.
    candidates = [(statistics.median(values), arm) for arm in aim.theirs if (values := _values(arms, arm, aim.figure))]
    if not ours or not candidates:
        return None
    median, arm = min(candidates) if aim.lower_is_better else max(candidates)
    single = [a / b for a, b in zip(ours, _values(arms, arm, aim.figure), strict=False) if b]
    if not median or not single:
        return None
    return Row(
        aim,
        statistics.median(ours),
        median,
        arm,
        statistics.median(ours) / median,
        min(single),
        max(single),
        len(single),
        same_text if aim.same_text else None,
    )


def _values(arms: Mapping[str, Sequence[Mapping[str, float]]], arm: str, figure: str) -> list[float]:
    values = [run[figure] for run in arms.get(arm, ()) if figure in run]
    return [value for value in values if not math.isnan(value)]
