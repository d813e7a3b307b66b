"""`quantry recommend` and `quantry frontier`: which level to run here, and what each one costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.api.advice_shapes import AdvisedShape, FrontierShape, RecommendationShape
from service.api.frontier_svg import Theme
from service.cli import figures, tables
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.pictures import png
from service.cli.session import Session

_PANEL = "Quantization"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Which model, e.g. gloss.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "recommend", _PANEL)(recommend)
    command(app, "frontier", _PANEL)(frontier)


def recommend(
    session: Session,
    model: Model,
    memory: Annotated[str | None, typer.Option(help="Memory it may take, e.g. 16GiB; else what there is.")] = None,
    context: Annotated[int | None, typer.Option(min=1, max=1 << 20, help="Tokens of context it shall have.")] = None,
    max_kld: Annotated[float | None, typer.Option(help="Most mean KL divergence to the source, in nats.")] = None,
    min_speed: Annotated[float | None, typer.Option(help="Least tokens per second of generation.")] = None,
) -> None:
    """Say which level of a model to run here, why, and what it costs; exit code 1 when none keeps to what is asked."""
    asked = {"memory": memory, "context": context, "max_kld": max_kld, "min_speed": min_speed}
    params = {name: str(value) for name, value in asked.items() if value is not None}
    with session.client() as client:
        found = client.get(RecommendationShape, "/v1/recommend", {"model": model, **params})
    if session.as_json:
        session.document(found)
    else:
        _say(session, found)
    if found.recommended is None:
        raise typer.Exit(ExitCode.FAILED)


def frontier(
    session: Session,
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Draw it: a file that ends in .svg or .png.")
    ] = None,
    theme: Annotated[Theme, typer.Option(help="Colours; auto: as the reader prefers, in an .svg.")] = Theme.AUTO,
) -> None:
    """Compare the measured variants of a model by size and loss, in a table or a picture."""
    if out is not None and out.suffix.lower() not in (".svg", ".png"):
        raise CommandFailed(
            "usage",
            f"A picture is a file that ends in .svg or .png, and {out.name!r} is none.",
            remedy=f"quantry frontier {model} --out {out.stem or model}.svg",
            exit_code=ExitCode.USAGE,
        )
    with session.client() as client:
        found = client.get(FrontierShape, "/v1/frontier", {"model": model})
        if out is not None:
            params = {"model": model, "format": "svg", "theme": theme.value}
            svg = client.send("GET", "/v1/frontier", params=params).text
            _write(out, png(svg) if out.suffix.lower() == ".png" else svg.encode())
    if session.as_json:
        session.document(found)
        return
    if out is not None:
        session.say(f"{out}: {len(found.data)} variants, {sum(point.on_front for point in found.data)} on the front")
    elif found.data:
        session.table(_points(found))
    else:
        session.say(f"No variant of {found.model} has been measured against its source yet.")
    if not found.data:
        session.note(f"Measure them: quantry evaluate {found.model}")
    elif out is None:
        text = f"{found.chunks} windows of {found.window} tokens of {found.dataset!r}"
        session.note(f"KLD: mean KL divergence to {found.source}, in nats, over {text}")
    if found.unmeasured and found.data:
        session.note(f"Not comparable or not measured: {', '.join(found.unmeasured)}")


def _say(session: Session, found: RecommendationShape) -> None:
    pairs: list[tuple[str, str | Text]] = []
    if found.recommended is not None:
        pairs.append(("run", Text(found.recommended.name, style="bold green")))
        if not found.recommended.stored:
            pairs.append(("make it", Text(_command(found.recommended), style="bold")))
    pairs.append(("why", found.why))
    if found.cost:
        pairs.append(("cost", found.cost))
    if found.runner_up is not None:
        stored = "" if found.runner_up.stored else f"; {_command(found.runner_up)}"
        pairs.append(("runner-up", f"{found.runner_up.name}{stored}"))
    if found.next_up_needs:
        pairs.append(("next up", found.next_up_needs))
    session.table(tables.facts(pairs))
    for warning in found.warnings:
        session.note(f"! {warning}", style="yellow")


def _command(level: AdvisedShape) -> str:
    """The command that makes a level."""
    make = level.make or {}
    options = " --allow-requantize" if make.get("allow_requantize") else ""
    options += f" --imatrix {make['imatrix']}" if "imatrix" in make else ""
    return f"quantry quantize {make.get('model')} {level.quantization}{options}"


def _points(found: FrontierShape) -> Table:
    table = tables.columns("Variant", ">Size", ">Bits/w", ">KLD", ">±", "~Front")
    for point in found.data:
        if point.is_source:
            place = Text("source", style="green")
        elif point.on_front:
            place = Text("on the front", style="bold")
        else:
            place = Text(f"beaten by {point.dominated_by}", style="dim")
        table.add_row(
            point.name,
            figures.size(point.size_bytes),
            figures.bits(point.bits_per_weight),
            f"{point.mean_kld.value:.3g}" if not point.is_source else "0",
            f"{point.mean_kld.error:.1g}" if not point.is_source else "",
            place,
        )
    return table


def _write(out: Path, content: bytes) -> None:
    try:
        out.write_bytes(content)
    except OSError as error:
        raise CommandFailed(
            "cannot_write", f"{out} cannot be written: {error.strerror}.", remedy="name another file with --out"
        ) from None
