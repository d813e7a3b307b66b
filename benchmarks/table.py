"""The measured rows as Markdown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.targets import Figures, Row


def aims_table(rows: Sequence[Row]) -> str:
    """work | against | ours | theirs | ratio (single repeats) | aim | met."""
    lines = ["| work | against | quantry | against it | ratio (single runs) | aim | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        aim = row.aim
        sign = "≤" if aim.lower_is_better else "≥"
        wanted = "" if aim.ratio is None else f"{sign} {aim.ratio:g}"
        verdict = "" if row.met is None else "met" if row.met else "**missed**"
        if row.same_text is not None:
            verdict += ", same text" if row.same_text else ", **another text**"
        variant = f" ({row.their_arm})" if row.their_arm != aim.against else ""
        lines.append(
            f"| {aim.work} | {aim.against}{variant if aim.ratio is not None and len(aim.theirs) > 1 else ''} "
            f"| {_number(row.ours)} {aim.unit} | {_number(row.theirs)} {aim.unit} "
            f"| {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}, n={row.repeats}) | {wanted} | {verdict} |"
        )
    return "\n".join(lines)


def details_table(figures: Figures) -> str:
    """Every arm of every workload: medians of its figures over the repeats."""
    names = {
        "total_rate": "total tokens/s",
        "generation_rate": "tokens/s of a stream",
        "ttft_p50": "TTFT p50",
        "ttft_p95": "TTFT p95",
        "gap_p50": "gap p50",
        "gap_p95": "gap p95",
        "gap_p99": "gap p99",
        "gap_max": "gap max",
        "memory_mib": "MiB",
    }
    lines = [f"| workload | side | {' | '.join(names.values())} |", "|---|---|" + "---|" * len(names)]
    for workload, arms in figures.items():
        for arm, runs in arms.items():
            cells = []
            for name in names:
                values = [run[name] for run in runs if name in run]
                cells.append(_number(statistics.median(values)) if values else "")
            if runs:
                lines.append(f"| {workload} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
