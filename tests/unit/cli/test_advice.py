"""`quantry recommend` and `quantry frontier` against scripted answers: what is said, what is written, how they end."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.api.frontier_svg import Picture, frontier_svg
from service.cli import pictures
from service.cli.client import Client
from service.cli.failures import CommandFailed, ExitCode
from service.cli.program import build
from service.cli.session import Session
from service.domain.evaluation import Estimate
from service.domain.frontier import Point, judge

MEMORY = {
    "total_bytes": 5 << 30,
    "weights_bytes": 4 << 30,
    "kv_cache_bytes": 1 << 30,
    "compute_bytes": 0,
    "runtime_bytes": 0,
}
LEVEL = {
    "name": "m:Q4_K_M", "quantization": "Q4_K_M", "stored": False, "size_bytes": 4 << 30, "bits_per_weight": 4.8,
    "memory": MEMORY, "fits": True, "largest_context": 8192,
    "loss": {"kld": 0.009, "error": None, "basis": "reference"}, "speed": None, "hindrances": [],
    "advice": None, "card": None, "reference": None,
    "make": {"model": "m:F16", "to": ["Q4_K_M"], "allow_requantize": True, "imatrix": "auto"},
}  # fmt: skip
RECOMMENDATION = {
    "model": "m", "source": "m:F16", "memory_bytes": 8 << 30, "memory_asked": True, "context_length": 4096,
    "max_kld": 0.01, "max_kld_asked": False, "min_speed": None, "reason": "little_loss",
    "why": "It is the smallest that will do.", "cost": "5.00 GiB of memory.", "recommended": LEVEL, "runner_up": None,
    "next_up": None, "next_up_needs": "Q5_K_S takes more.", "warnings": ["Not measured."], "considered": [],
}  # fmt: skip
POINTS = [
    {"name": "m:F16", "label": "F16", "size_bytes": 13 << 30, "bits_per_weight": 16.0,
     "mean_kld": {"value": 0.0, "error": 0.0}, "is_source": True, "on_front": True, "dominated_by": None},
    {"name": "m:Q4_0", "label": "Q4_0", "size_bytes": 4 << 30, "bits_per_weight": 4.5,
     "mean_kld": {"value": 0.0141, "error": 0.0004}, "is_source": False, "on_front": False, "dominated_by": "m:Q4_K_S"},
]  # fmt: skip
FRONTIER = {
    "model": "m", "source": "m:F16", "dataset": "evaluation", "window": 512, "chunks": 47, "tokens": 12032,
    "data": POINTS, "unmeasured": ["m:Q2_K"],
}  # fmt: skip
SVG = frontier_svg(Picture("m", "", judge([Point("m:F16", "F16", 9, 16.0, Estimate(0.1, 0.0))])))

Quantry = Callable[..., Any]


@pytest.fixture
def asked() -> list[dict[str, str]]:
    """The query of every request."""
    return []


@pytest.fixture
def quantry(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, str]]) -> Quantry:
    """quantry(*arguments, recommendation=..., frontier=...): the command on a server that answers with these."""

    def _quantry(*arguments: str, recommendation: Any = RECOMMENDATION, frontier: Any = FRONTIER) -> Any:
        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(dict(request.url.params))
            if request.url.params.get("format") == "svg":
                return httpx.Response(200, text=SVG)
            return httpx.Response(200, json=recommendation if "recommend" in request.url.path else frontier)

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(Session, "client", lambda session: Client("http://test", transport=transport))
        return CliRunner().invoke(build(), list(arguments))

    return _quantry


def test_a_recommendation_says_what_to_run_how_to_make_it_and_why(quantry: Quantry) -> None:
    result = quantry("recommend", "m")
    assert result.exit_code == ExitCode.OK
    for said in ("m:Q4_K_M", "It is the smallest that will do.", "5.00 GiB of memory.", "Q5_K_S takes more."):
        assert said in result.stdout
    assert "quantry quantize m:F16 Q4_K_M --allow-requantize --imatrix auto" in result.stdout
    assert "Not measured." in result.stderr


def test_the_bounds_are_sent_as_they_were_given(quantry: Quantry, asked: list[dict[str, str]]) -> None:
    quantry("recommend", "m", "--memory", "16GiB", "--context", "8192", "--max-kld", "0.02", "--min-speed", "12.5")
    assert asked == [{"model": "m", "memory": "16GiB", "context": "8192", "max_kld": "0.02", "min_speed": "12.5"}]


def test_without_a_level_that_will_do_it_says_why_and_ends_with_1(quantry: Quantry) -> None:
    nothing = {**RECOMMENDATION, "recommended": None, "reason": "too_large", "why": "Nothing fits.", "cost": ""}
    result = quantry("recommend", "m", recommendation=nothing)
    assert result.exit_code == ExitCode.FAILED
    assert "Nothing fits." in result.stdout
    assert json.loads(quantry("recommend", "m", "--json", recommendation=nothing).stdout)["recommended"] is None


def test_the_frontier_is_a_table_without_a_file(quantry: Quantry) -> None:
    result = quantry("frontier", "m")
    assert result.exit_code == ExitCode.OK
    assert "beaten by m:Q4_K_S" in result.stdout
    assert "m:Q2_K" in result.stderr


def test_with_nothing_measured_it_says_what_to_do(quantry: Quantry) -> None:
    empty = {**FRONTIER, "data": [], "source": None, "dataset": None, "window": None, "chunks": None, "tokens": None}
    assert "quantry evaluate m" in quantry("frontier", "m", frontier=empty).stderr


def test_the_picture_is_written_as_svg(quantry: Quantry, asked: list[dict[str, str]], tmp_path: Path) -> None:
    out = tmp_path / "m.svg"
    assert quantry("frontier", "m", "--out", str(out), "--theme", "dark").exit_code == ExitCode.OK
    assert out.read_text() == SVG
    assert asked[-1] == {"model": "m", "format": "svg", "theme": "dark"}


def test_the_picture_is_written_as_png(quantry: Quantry, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    out = tmp_path / "m.PNG"
    try:
        pictures.png(SVG)
    except CommandFailed as failure:
        pytest.skip(failure.problem.message)
    assert quantry("frontier", "m", "-o", str(out)).exit_code == ExitCode.OK
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_png_without_resvg_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, quantry: Quantry, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    result = quantry("frontier", "m", "--out", str(tmp_path / "m.png"))
    assert result.exit_code == ExitCode.USAGE
    assert "quantry[png]" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_png_without_any_font_is_refused_and_not_drawn_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    resvg = pytest.importorskip("resvg_py")
    real = resvg.svg_to_bytes
    monkeypatch.setattr(resvg, "svg_to_bytes", lambda svg, **more: real(svg, skip_system_fonts=True, **more))
    with pytest.raises(CommandFailed, match="font") as failed:
        pictures.png(SVG)
    assert failed.value.problem.code == "no_fonts"


@pytest.mark.parametrize("name", ["m.jpg", "m", ".svg.gz"])
def test_a_file_that_is_no_picture_is_refused_before_anything_is_asked(
    quantry: Quantry, asked: list[dict[str, str]], name: str, tmp_path: Path
) -> None:
    result = quantry("frontier", "m", "--out", str(tmp_path / name))
    assert result.exit_code == ExitCode.USAGE
    assert ".svg" in result.stderr
    assert asked == []


def test_a_place_that_cannot_be_written_is_told(quantry: Quantry, tmp_path: Path) -> None:
    result = quantry("frontier", "m", "--out", str(tmp_path / "none" / "m.svg"))
    assert result.exit_code == ExitCode.FAILED
    assert "cannot be written" in result.stderr
