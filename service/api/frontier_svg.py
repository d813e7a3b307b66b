"""The picture of a model's levels: size against KL divergence, as SVG written by hand. Pure: values in, text out.

It carries its own style, in light and dark, and needs no font, script or file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from itertools import pairwise

from service.api.frontier_axes import SMALLEST_KLD, STRIP, Axes, axes_in, loss_ticks, plain, size, size_ticks
from service.api.label_placement import Anchor, Box, Label, Segment, place_labels
from service.api.text_width import text_width
from service.domain.frontier import Judged


class Theme(StrEnum):
    """Colours of the picture; `auto` follows what the reader's system prefers."""

    AUTO = "auto"
    LIGHT = "light"
    DARK = "dark"


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. `notes` stand below the picture, a paragraph each: (what, the rest)."""

    title: str
    subtitle: str
    points: tuple[Judged, ...]
    notes: tuple[tuple[str, str], ...] = ()
    empty: tuple[str, str] = ("Nothing is measured yet", "")  # said in place of the points when there are none


WIDTH = 960
_LEFT, _RIGHT, _TOP = 86.0, 34.0, 104.0
_FEW = 20  # points; with more of them the plot is higher
_NONE_HEIGHT, _FEW_HEIGHT, _MANY_HEIGHT = 180.0, 440.0, 580.0
_LABEL = 13.0
_NOTE = 12.5
_NOTE_LINE = 19.0
_MOST_LABELS = 48
_LIGHT = {
    "paper": "#ffffff", "ink": "#1c2128", "muted": "#59636e", "grid": "#e6e9ed", "axis": "#b6bdc6",
    "front": "#0969da", "beaten": "#8a94a0", "source": "#1a7f37",
}  # fmt: skip
_DARK = {
    "paper": "#12161c", "ink": "#e8ebef", "muted": "#9aa4b0", "grid": "#242b34", "axis": "#4a545f",
    "front": "#58a6ff", "beaten": "#76808c", "source": "#4ac26b",
}  # fmt: skip
_SVG = 'xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title description"'
FONT = (
    "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', 'Liberation Sans', Helvetica, Arial, sans-serif"
)


def frontier_svg(picture: Picture, theme: Theme = Theme.AUTO) -> str:
    """The whole document."""
    notes = [_wrapped(note) for note in picture.notes]
    lines = sum(len(note) for note in notes)
    plot_bottom = _TOP + _plot_height(len(picture.points))
    height = plot_bottom + 66 + (lines * _NOTE_LINE + 5 * len(notes) + 16 if notes else 0)
    title, subtitle = _fitting(picture.title, 21, bold=True), _fitting(picture.subtitle, 14)
    body = [
        f'<rect class="paper" width="{WIDTH}" height="{_n(height)}"/>',
        f'<text class="title" x="{_n(_LEFT)}" y="38">{_text(title)}</text>',
        f'<text class="muted subtitle" x="{_n(_LEFT)}" y="61">{_text(subtitle)}</text>',
        *(_plot(picture.points) if picture.points else _nothing(picture.empty)),
        *_notes(notes, plot_bottom + 78),
    ]
    description = f"{picture.subtitle} {'; '.join(_told(judged) for judged in picture.points)}"
    return "\n".join(
        [
            f'<svg {_SVG} viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH}" height="{_n(height)}">',
            f'<title id="title">{_text(picture.title)}</title>',
            f'<desc id="description">{_text(description)}</desc>',
            f"<style>{_style(theme)}</style>",
            *body,
            "</svg>\n",
        ]
    )


# --- the plot ----------------------------------------------------------------------------------------------------


def _plot_height(points: int) -> float:
    if not points:
        return _NONE_HEIGHT
    return _FEW_HEIGHT if points <= _FEW else _MANY_HEIGHT


def _plot(judged: Sequence[Judged]) -> Iterable[str]:
    area = Box(_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, _plot_height(len(judged)))
    axes = axes_in(area, [one.point for one in judged])
    places = [(axes.x(max(1, one.point.size_bytes)), axes.y(one.point.mean_kld.value)) for one in judged]
    route = [place for one, place in zip(judged, places, strict=True) if one.on_front]
    segments = [(*one, *other) for one, other in pairwise(route)]
    yield from _grid(axes)
    yield from _legend(judged)
    yield from _route(route, axes)
    labelled = _labelled(judged)
    labels = _labels([judged[at] for at in labelled], [places[at] for at in labelled], axes.area, segments)
    for at, label in zip(labelled, labels, strict=True):
        if label.leader:
            (x, y), (to_x, to_y) = places[at], label.leader
            yield f'<line class="leader" x1="{_n(x)}" y1="{_n(y)}" x2="{_n(to_x)}" y2="{_n(to_y)}"/>'
    # The front lies on top where points meet.
    for at in sorted(range(len(judged)), key=lambda at: (judged[at].on_front, judged[at].point.is_source)):
        yield from _marker(judged[at], *places[at], axes)
    for at, label in zip(labelled, labels, strict=True):
        yield _label_text(judged[at], label)


def _route(route: Sequence[tuple[float, float]], axes: Axes) -> Iterable[str]:
    """The front as a line; dotted where it leaves the logarithmic axis, since there it has no slope."""
    above = [place for place in route if place[1] <= axes.bottom]
    below = [place for place in route if place[1] > axes.bottom]
    if len(above) > 1:
        yield f'<polyline class="route" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in above)}"/>'
    if below and len(route) > 1:
        ends = [*above[-1:], *below]
        yield f'<polyline class="route break" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in ends)}"/>'


def _grid(axes: Axes) -> Iterable[str]:
    area = axes.area
    right, bottom = area.x + area.width, area.y + area.height
    for value, text in size_ticks(axes):
        x = _n(axes.x(value))
        yield f'<line class="grid" x1="{x}" y1="{_n(area.y)}" x2="{x}" y2="{_n(bottom)}"/>'
        yield f'<text class="tick" x="{x}" y="{_n(bottom + 21)}" text-anchor="middle">{text}</text>'
    for value in loss_ticks(axes):
        y = axes.y(value)
        yield f'<line class="grid" x1="{_n(area.x)}" y1="{_n(y)}" x2="{_n(right)}" y2="{_n(y)}"/>'
        yield f'<text class="tick" x="{_n(area.x - 10)}" y="{_n(y + 4)}" text-anchor="end">{plain(value)}</text>'
    if axes.strip:
        y = bottom - STRIP / 2
        yield f'<line class="edge" x1="{_n(area.x)}" y1="{_n(axes.bottom)}" x2="{_n(right)}" y2="{_n(axes.bottom)}"/>'
        yield f'<text class="tick" x="{_n(area.x - 10)}" y="{_n(y + 4)}" text-anchor="end">0</text>'
    yield f'<path class="axis" d="M{_n(area.x)} {_n(area.y)}V{_n(bottom)}H{_n(right)}"/>'
    middle = area.y + area.height / 2
    yield f'<text class="muted name" x="{_n(area.x + area.width / 2)}" y="{_n(bottom + 46)}">file size</text>'
    yield (
        f'<text class="muted name" transform="translate(24 {_n(middle)}) rotate(-90)">'
        "mean KL divergence to the source, nats</text>"
    )


def _legend(judged: Sequence[Judged]) -> Iterable[str]:
    entries = [("front", "on the Pareto front")]
    if any(not one.on_front for one in judged):
        entries.append(("beaten", "dominated: another is no larger and loses no more"))
    if any(one.point.is_source for one in judged):
        entries.append(("source", "the source"))
    x, y = _LEFT + 4, 86.0
    for kind, said in entries:
        yield _sign(kind, x, y - 4.5)
        yield f'<text class="muted key" x="{_n(x + 12)}" y="{_n(y)}">{said}</text>'
        x += 12 + text_width(said, 12.5) + 26


def _marker(judged: Judged, x: float, y: float, axes: Axes) -> Iterable[str]:
    point = judged.point
    kind = _kind(judged)
    yield f"<g><title>{_text(_told(judged))}</title>"
    error = point.mean_kld.error
    if point.mean_kld.value >= SMALLEST_KLD and math.isfinite(error) and error > 0:
        top = max(axes.area.y, axes.y(point.mean_kld.value + error))
        bottom = min(axes.bottom, axes.y(max(axes.losses[0], point.mean_kld.value - error)))
        if bottom - top > 11:  # else it is hidden by the marker
            yield f'<path class="whisker {kind}-line" d="M{_n(x)} {_n(top)}V{_n(bottom)}"/>'
    yield _sign(kind, x, y)
    yield "</g>"


def _sign(kind: str, x: float, y: float) -> str:
    if kind == "source":
        return f'<path class="source" d="M{_n(x)} {_n(y - 6.5)}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>'
    return f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{"5" if kind == "front" else "4"}"/>'


def _kind(judged: Judged) -> str:
    return "source" if judged.point.is_source else "front" if judged.on_front else "beaten"


def _labelled(judged: Sequence[Judged]) -> list[int]:
    """Which points get a label: all of them, or where there are too many the front and then the smallest."""
    order = sorted(range(len(judged)), key=lambda at: (not judged[at].on_front, at))
    return sorted(order[:_MOST_LABELS])


def _labels(
    judged: Sequence[Judged], places: Sequence[tuple[float, float]], area: Box, lines: Sequence[Segment]
) -> list[Label]:
    # Nothing can lie below and left of the front, so its labels are out of the way there; the others' lie above.
    anchors = [
        Anchor(
            x,
            y,
            text_width(_short(one.point.label), _LABEL, bold=one.on_front),
            _LABEL + 1,
            towards=math.radians(135 if one.on_front and not one.point.is_source else -45),
        )
        for one, (x, y) in zip(judged, places, strict=True)
    ]
    inside = Box(area.x + 3, area.y + 3, area.width - 3 + _RIGHT - 6, area.height - 6)
    return place_labels(anchors, inside, lines)


def _label_text(judged: Judged, label: Label) -> str:
    box = label.box
    x = {"start": box.x, "middle": box.x + box.width / 2, "end": box.x + box.width}[label.align]
    said = _text(_short(judged.point.label))
    kind = f"label {_kind(judged)}-label"
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(box.y + _LABEL - 2)}" text-anchor="{label.align}">{said}</text>'


def _nothing(said: tuple[str, str]) -> Iterable[str]:
    x, y = WIDTH / 2, _TOP + _NONE_HEIGHT / 2
    width = WIDTH - _LEFT - _RIGHT
    yield f'<rect class="blank" x="{_n(_LEFT)}" y="{_n(_TOP)}" width="{_n(width)}" height="{_n(_NONE_HEIGHT)}" rx="8"/>'
    yield f'<text class="title" x="{_n(x)}" y="{_n(y - 8)}" text-anchor="middle">{_text(said[0])}</text>'
    yield f'<text class="muted subtitle" x="{_n(x)}" y="{_n(y + 20)}" text-anchor="middle">{_text(said[1])}</text>'


def _told(judged: Judged) -> str:
    point = judged.point
    figures = f"{point.name}: {size(point.size_bytes)}, {point.bits_per_weight:.2f} bits per weight"
    if point.is_source:
        return f"{figures}, the source"
    figures += f", mean KL divergence {point.mean_kld.value:.3g} ± {point.mean_kld.error:.1g}"
    beaten = judged.dominated_by
    return f"{figures}, on the Pareto front" if beaten is None else f"{figures}, dominated by {beaten.name}"


# --- text --------------------------------------------------------------------------------------------------------

JOINT = "\u00a0"
"""A space that no line is broken at."""


def _fitting(text: str, pixels: float, *, bold: bool = False) -> str:
    room = WIDTH - _LEFT - _RIGHT
    while text_width(text, pixels, bold=bold) > room and len(text) > 1:
        text = text[:-2].rstrip() + "…"
    return text


def _short(label: str) -> str:
    return label if len(label) <= 28 else label[:16] + "…" + label[-11:]


def _wrapped(note: tuple[str, str]) -> list[str]:
    """A note in lines that fit."""
    head, rest = note
    room = WIDTH - _LEFT - _RIGHT
    parts = [f"{head}:", *rest.split(" ")]
    lines = [parts[0]]
    for word in parts[1:]:
        if text_width(f"{lines[-1]} {word}", _NOTE) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(_fitting(word, _NOTE))
    return lines


def _notes(notes: Sequence[Sequence[str]], y: float) -> Iterable[str]:
    for note in notes:
        head, _, first = note[0].partition(":")
        for number, line in enumerate(note):
            said = f'<tspan class="head">{_text(head)}</tspan> {_text(first.strip())}' if number == 0 else _text(line)
            yield f'<text class="muted note" x="{_n(_LEFT)}" y="{_n(y)}">{said}</text>'
            y += _NOTE_LINE
        y += 5


def _text(text: str) -> str:
    """Escaped, and without the control characters that XML cannot carry."""
    return escape("".join(letter for letter in text.replace(JOINT, " ") if letter.isprintable()))


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


# --- style -------------------------------------------------------------------------------------------------------


def _style(theme: Theme) -> str:
    # Plain rules without variables: renderers that are no browser know no more.
    fixed = (
        f"text{{font-family:{FONT}}}"
        ".title{font-size:21px;font-weight:600}.subtitle{font-size:14px}.key,.note,.tick{font-size:12.5px}"
        ".name{font-size:13px;text-anchor:middle}.tick{font-variant-numeric:tabular-nums}"
        f".label{{font-size:{_n(_LABEL)}px}}.front-label,.source-label,.head{{font-weight:600}}"
        ".grid,.edge,.axis,.blank,.leader,.whisker,.route{fill:none}.grid,.edge,.axis{stroke-width:1}"
        ".edge{stroke-dasharray:3 4}.route{stroke-width:2;stroke-linejoin:round;stroke-opacity:.75}"
        ".break{stroke-dasharray:2 5;stroke-linecap:round}"
        ".leader{stroke-width:.8;stroke-opacity:.7}.whisker{stroke-width:1.5;stroke-opacity:.6}.beaten{stroke-width:1.6}"
        ".front,.source{stroke-width:1.5}.blank{stroke-dasharray:5 6}"
    )
    colours = _colours(_DARK if theme is Theme.DARK else _LIGHT)
    if theme is Theme.AUTO:
        colours += f"@media (prefers-color-scheme:dark){{{_colours(_DARK)}}}"
    return fixed + colours


def _colours(of: dict[str, str]) -> str:
    return (
        f".paper{{fill:{of['paper']}}}.title,.front-label{{fill:{of['ink']}}}"
        f".muted,.tick,.beaten-label{{fill:{of['muted']}}}.head{{fill:{of['ink']}}}"
        f".source-label{{fill:{of['source']}}}.grid{{stroke:{of['grid']}}}.axis,.edge,.blank{{stroke:{of['axis']}}}"
        f".leader{{stroke:{of['beaten']}}}.route,.front-line{{stroke:{of['front']}}}"
        f".beaten-line{{stroke:{of['beaten']}}}"
        f".front{{fill:{of['front']};stroke:{of['paper']}}}.beaten{{fill:{of['paper']};stroke:{of['beaten']}}}"
        f".source{{fill:{of['source']};stroke:{of['paper']}}}.source-line{{stroke:{of['source']}}}"
    )
