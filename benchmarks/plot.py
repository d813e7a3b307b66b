"""The table of aims as a picture: one bar for each ratio, a mark where it should be. SVG written by hand; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.targets import Row

_LABELS = 470
_BARS = 430
_LINE = 26
_TOP = 58
_GREEN, _RED, _GREY = "#2f7d4f", "#b3402f", "#6b7280"


def svg(rows: Sequence[Row], title: str) -> str:
    """Ratios on a logarithmic axis, 1 in grey; the thin line across a bar spans the single repeats."""
    values = [value for row in rows for value in (row.ratio, row.low, row.high, row.aim.ratio) if value]
    low = min([0.25, *values]) * 0.9
    high = max([2.0, *values]) * 1.1

    def x(ratio: float) -> float:
        return _LABELS + _BARS * math.log(max(ratio, low) / low) / math.log(high / low)

    width = _LABELS + _BARS + 90
    height = _TOP + _LINE * len(rows) + 34
    box = f'width="{width}" height="{height}"'
    legend = "ratio of medians; black mark: what is aimed at; ↓: lower is better; thin line: single runs"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">',
        f'<rect {box} fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="12" y="40" fill="{_GREY}">{legend}</text>',
    ]
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if low <= tick <= high:
            parts.append(
                f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 6}" y2="{height - 28}" '
                f'stroke="{_GREY if tick == 1 else "#e5e7eb"}"/>'
                f'<text x="{x(tick):.1f}" y="{height - 12}" text-anchor="middle" fill="{_GREY}">{tick:g}</text>'
            )
    for number, row in enumerate(rows):
        parts.append(_bar(row, _TOP + _LINE * number, x))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, top: float, x: object) -> str:
    assert callable(x)
    colour = _GREY if row.met is None else _GREEN if row.met else _RED
    left, right = sorted((float(x(1.0)), float(x(row.ratio))))
    middle = top + 9
    arrow = " ↓" if row.aim.lower_is_better else ""
    label = f"{row.aim.work}, against {row.aim.against}{arrow}"
    parts = [
        f'<text x="{_LABELS - 10}" y="{top + 13:.1f}" text-anchor="end" font-size="11">{escape(label)}</text>',
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" height="18" fill="{colour}"/>',
        f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{middle}" y2="{middle}" stroke="#111827"/>',
    ]
    if row.aim.ratio is not None:
        place = x(row.aim.ratio)
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{top - 2:.1f}" y2="{top + 20:.1f}" '
            'stroke="#111827" stroke-width="2.5"/>'
        )
    parts.append(f'<text x="{max(right, float(x(row.high))) + 6:.1f}" y="{top + 13:.1f}">{row.ratio:.2f}</text>')
    return "".join(parts)
