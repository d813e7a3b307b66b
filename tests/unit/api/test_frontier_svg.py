"""Promises of the picture: it can be read in every theme with any number of points, and nobody can write into it."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.api.frontier_axes import size
from service.api.frontier_svg import WIDTH, Picture, Theme, frontier_svg
from service.api.label_placement import Anchor, Box, place_labels
from service.api.text_width import text_width
from service.domain.evaluation import Estimate
from service.domain.frontier import Point, judge
from service.domain.quants import QUANTIZATIONS

SVG = "{http://www.w3.org/2000/svg}"
AREA = Box(86, 104, 840, 440)

ANCHORS = st.lists(
    st.builds(
        Anchor,
        st.floats(90, 920),
        st.floats(108, 540),
        st.floats(20, 90),
        st.just(14.0),
        st.floats(-math.pi, math.pi),
    ),
    max_size=35,
)


def points(number: int) -> tuple[Point, ...]:
    """The source and so many levels, as they lie on most models."""
    levels = [label for label in QUANTIZATIONS if label != "F32"][:number]
    return tuple(
        Point(f"gloss:{label}", label, int(4e7 / (1 + at)), 4.0, Estimate(at / 40, 0.01), is_source=label == "F16")
        for at, label in enumerate(levels)
    )


def picture(found: tuple[Point, ...]) -> Picture:
    return Picture(
        "gloss: what each level costs", "Mean KL divergence to F16.", judge(found), (("Note", "words " * 60),)
    )


def labels(svg: str) -> list[tuple[str, Box]]:
    """The labels of the points with the boxes that they take."""
    found = []
    for text in ET.fromstring(svg).iter(f"{SVG}text"):
        kind = text.get("class", "")
        if kind.startswith("label"):
            said = text.text or ""
            width = text_width(said, 13, bold="beaten" not in kind)
            x, y = float(text.get("x", "0")), float(text.get("y", "0"))
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "start")]
            found.append((said, Box(left, y - 11, width, 14)))
    return found


@settings(deadline=None, max_examples=10)
@given(ANCHORS)
@example([Anchor(400, 300, 80, 14, 0.0)] * 35)
@example([Anchor(90, 540, 80, 14, 0.0)] * 35)
def test_no_label_covers_another_or_leaves_its_area(anchors: list[Anchor]) -> None:
    placed = place_labels(anchors, AREA)
    assert len(placed) == len(anchors)
    for at, label in enumerate(placed):
        assert AREA.contains(label.box)
        assert not any(label.box.overlaps(other.box) for other in placed[at + 1 :])


def test_a_lonely_label_stands_beside_its_point_on_the_side_that_is_liked() -> None:
    (right,) = place_labels([Anchor(400, 300, 50, 14, 0.0)], AREA)
    assert (right.align, right.leader) == ("start", None)
    assert right.box.x > 400
    (left,) = place_labels([Anchor(400, 300, 50, 14, math.pi)], AREA)
    assert left.align == "end"
    assert left.box.x + left.box.width < 400


def test_a_label_keeps_off_the_line_of_the_front() -> None:
    (label,) = place_labels([Anchor(400, 300, 50, 14, 0.0)], AREA, [(400, 300, 600, 300)])
    assert not label.box.overlaps(Box(400, 299, 200, 2))


@pytest.mark.parametrize("number", [1, 3, 14, 34])
def test_every_level_has_its_label_and_none_covers_another(number: int) -> None:
    found = labels(frontier_svg(picture(points(number))))
    assert sorted(said for said, _ in found) == sorted(point.label for point in points(number))
    for at, (_, box) in enumerate(found):
        assert box.x > 0
        assert box.x + box.width < WIDTH
        assert not any(box.overlaps(other) for _, other in found[at + 1 :])


def test_the_front_is_marked_and_what_is_dominated_says_by_what() -> None:
    svg = frontier_svg(picture((*points(4), Point("gloss:bad", "bad", 10**9, 8.0, Estimate(5.0, 0.1)))))
    root = ET.fromstring(svg)
    told = [title.text or "" for group in root.iter(f"{SVG}g") for title in group.iter(f"{SVG}title")]
    assert [text for text in told if text.startswith("gloss:bad") and "dominated by gloss:" in text]
    assert len([one for one in root.iter(f"{SVG}circle") if one.get("class") == "beaten"]) == 2  # with its legend
    assert [one for one in root.iter(f"{SVG}polyline") if "route" in one.get("class", "")]


def test_auto_has_both_sets_of_colours_and_the_others_one() -> None:
    auto, light, dark = (frontier_svg(picture(points(3)), theme) for theme in (Theme.AUTO, Theme.LIGHT, Theme.DARK))
    assert "prefers-color-scheme:dark" in auto
    assert "prefers-color-scheme" not in light + dark
    assert ".paper{fill:#ffffff}" in light
    assert ".paper{fill:#ffffff}" not in dark


@settings(deadline=None, max_examples=40)
@given(st.text(), st.text(), st.text(max_size=60))
@example("</svg><script>alert(1)</script>", '" onload="alert(1)', "]]>\x00\x1b\ud7ff")
def test_whatever_a_name_is_the_picture_is_well_formed_and_runs_nothing(title: str, note: str, label: str) -> None:
    odd = Point(label, label, 5 << 20, 4.0, Estimate(0.1, 0.01))
    svg = frontier_svg(Picture(title, note, judge([odd]), ((note, label),), (title, note)))
    root = ET.fromstring(svg)
    allowed = {"svg", "title", "desc", "style", "rect", "text", "tspan", "line", "path", "circle", "polyline", "g"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= allowed
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]


def test_a_picture_of_nothing_says_what_to_do() -> None:
    svg = frontier_svg(Picture("gloss", "", (), empty=("Nothing is measured yet", "quantry evaluate gloss")))
    assert "quantry evaluate gloss" in "".join(ET.fromstring(svg).itertext())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 1 << 45), st.floats(0, 20), st.floats(0, 1) | st.just(math.nan)), max_size=12))
def test_any_sizes_and_losses_can_be_drawn(figures: list[tuple[int, float, float]]) -> None:
    found = tuple(
        Point(f"m:{at}", str(at), size_bytes, 4.0, Estimate(kld, error))
        for at, (size_bytes, kld, error) in enumerate(figures)
    )
    svg = frontier_svg(picture(found))
    assert not re.search(r'="[^"]*(nan|inf)\b', svg.split("</style>")[1].replace("middle", ""))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(17, "17 B"), (3_777_152, "3.60 MiB"), (40_700_000_000, "37.9 GiB"), (999 << 20, "999 MiB")],
)
def test_sizes_have_three_figures(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text
