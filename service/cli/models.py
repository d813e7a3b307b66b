"""`quantry list`, `show`, `cp`, `rm`: what is stored."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from service.api.catalogue_shapes import AvailableShape, DeletedShape, VariantListing, VariantShape
from service.cli import cards, figures, tables
from service.cli.client import Client, ref_path
from service.cli.failures import CommandFailed
from service.cli.options import command
from service.cli.session import Session

_PANEL = "Models"
_LONGEST_LINEAGE = 8

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model or variant, e.g. gloss or gloss:Q4_K_M.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "list", _PANEL)(list_models)
    command(app, "show", _PANEL)(show)
    command(app, "cp", _PANEL)(copy)
    command(app, "rm", _PANEL)(remove)


def list_models(
    session: Session,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.")] = None,
    context: Annotated[
        int | None, typer.Option(min=1, max=1 << 20, help="Show the memory that one request of this many tokens takes.")
    ] = None,
    available: Annotated[bool, typer.Option("--available", help="Show what could be made as well.")] = False,
) -> None:
    """List what is stored: size, bits per weight, advice, what is loaded."""
    with session.client() as client:
        listing = variants(client, model, context)
    if session.as_json:
        session.document(listing)
        return
    print_variants(session, listing.data, context)
    makeable = [row for row in listing.available if not row.error and not row.needs_imatrix]
    if available:
        _print_available(session, makeable, len(listing.available), context)
    elif makeable:
        session.note(f"{len(makeable)} more levels could be made: quantry list --available")


def print_variants(session: Session, rows: list[VariantShape], context: int | None = None) -> None:
    """The table of variants and what its signs mean."""
    if not rows:
        session.say("Nothing is stored here. Bring a model in: quantry import NAME PATH, or quantry pull ADDRESS")
        return
    session.table(tables.variants(rows, context))
    session.note(tables.MARKS_NOTE)
    session.note(tables.REFERENCE_NOTE)
    bare = tables.bare_names(rows)
    if bare:
        session.note(f"bare names: {bare}")
    if context:
        session.note(f"Memory: what one request of {context} tokens takes")


def _print_available(session: Session, rows: list[AvailableShape], known: int, context: int | None) -> None:
    session.say()
    session.table(tables.available(rows, context))
    lossy = sorted({row.source for row in rows if row.lossy_source})
    if lossy:
        session.note(f"{', '.join(lossy)} lost precision before: quantize takes --allow-requantize there")
    if known > len(rows):
        session.note(f"{known - len(rows)} more levels cannot be made; quantry plan MODEL LEVEL says why")


def variants(client: Client, model: str | None = None, context: int | None = None) -> VariantListing:
    """What the server stores, largest first within a model."""
    params: dict[str, str | int] = {}
    if model is not None:
        params["model"] = model
    if context is not None:
        params["context"] = context
    listing = client.get(VariantListing, "/v1/variants", params)
    rows = sorted(listing.data, key=lambda row: (row.model.lower(), -row.bits_per_weight, row.name))
    return listing.model_copy(update={"data": rows})


def show(session: Session, name: Name) -> None:
    """Show one variant: what it is, what it takes, where it comes from."""
    with session.client() as client:
        variant = client.get(VariantShape, f"/v1/variants/{ref_path(name)}")
        if session.as_json:
            session.document(variant)
            return
        ancestors = _ancestors(client, variant)
    lineage = ("lineage", " <- ".join([variant.quantization, *ancestors]))
    session.table(tables.facts([*_facts(variant), *cards.recipe(variant.lineage), lineage]))
    if variant.card is not None:
        session.say()
        session.table(tables.facts(cards.facts(variant.card)))


def copy(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", help="What to copy.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Its second name.")],
) -> None:
    """Give a variant a second name; no bytes are copied."""
    with session.client() as client:
        variant = client.post(VariantShape, "/v1/models/copy", {"source": source, "destination": destination})
    if session.as_json:
        session.document(variant)
    session.say(f"{destination} is {variant.name}")


def remove(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Variants, tags, or whole models.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete variants, tags, or whole models; on a terminal it asks first."""
    with session.client() as client:
        if not yes and not session.as_json and sys.stdin.isatty():
            _confirm(client, names)
        gone = [client.delete(DeletedShape, f"/v1/variants/{ref_path(name)}") for name in names]
    if session.as_json:
        session.document({"object": "list", "data": [one.model_dump() for one in gone]})
    for one in gone:
        what = ", ".join(one.variants) or f"the tag {one.id}"
        session.say(f"deleted {what}")
        if one.orphaned:
            session.note(f"no longer to be made again, without their source: {', '.join(one.orphaned)}", style="yellow")


def _confirm(client: Client, names: list[str]) -> None:
    going = ", ".join(names)
    bare = [name for name in names if ":" not in name.rpartition("/")[2]]
    if bare:
        rows = [row.name for name in bare for row in variants(client, name).data]
        going += f" ({len(rows)} variants: {', '.join(rows)})" if rows else ""
    if not typer.confirm(f"Delete {going}?"):
        raise CommandFailed("not_confirmed", "Nothing was deleted.")


def _ancestors(client: Client, variant: VariantShape) -> list[str]:
    """Where a variant comes from, nearest first, as far as it is still stored."""
    found: list[str] = []
    while variant.lineage.source is not None and len(found) < _LONGEST_LINEAGE:
        name = variant.lineage.source
        try:
            source = client.get(VariantShape, f"/v1/variants/{ref_path(name)}")
        except CommandFailed:
            return [*found, f"{name} (no longer stored)"]
        if source.digest != variant.lineage.source_digest:
            return [*found, f"{name} (replaced since)"]
        found.append(f"{name} ({source.lineage.origin})")
        variant = source
    return found


def _facts(variant: VariantShape) -> list[tuple[str, str | Text]]:
    lineage = variant.lineage
    state = "damaged: quantry verify --repair" if variant.corrupt else "loaded" if variant.loaded else "not loaded"
    made = f"{lineage.origin} {figures.moment(variant.created_at)} UTC"
    if lineage.duration_seconds is not None:
        made += f", in {figures.duration(lineage.duration_seconds)}"
    pairs: list[tuple[str, str | Text]] = [
        ("name", Text(variant.name, style="bold")),
        ("also called", ", ".join(variant.aliases) or "-"),
        ("level", f"{variant.quantization}, {figures.bits(variant.bits_per_weight)} bits per weight"),
        ("advice", variant.advice or "-"),
        ("PPL 7B", _published(variant)),
        ("parameters", f"{variant.parameters:,} ({figures.count(variant.parameters)})"),
        ("context", f"{variant.context_length} tokens"),
        ("size", f"{figures.size(variant.size_bytes)} ({variant.size_bytes:,} bytes)"),
        ("memory", f"{figures.size(variant.memory_bytes)} as this server would load it"),
        ("state", f"{state}, pinned" if variant.pinned else state),
        ("digest", variant.digest),
        ("licence", variant.license or "not stated in the file"),
        ("made", made),
    ]
    if lineage.remote is not None:
        pairs.append(("pulled from", lineage.remote.address))
    if lineage.converted_from is not None:
        pairs.append(("converted", f"from {lineage.converted_from}"))
    if lineage.llama_build:
        pairs.append(("made by", lineage.llama_build))
    if variant.lossy:
        pairs.append(("precision", "lost before: quantizing it again needs --allow-requantize"))
    pairs += [(measured.name, f"{measured.value:g} {measured.unit}") for measured in variant.measured]
    return pairs


def _published(variant: VariantShape) -> str:
    figure = tables.reference(variant.quantization, lossy_source=variant.lineage.lossy_source)
    if figure == "-":
        return "-"
    return f"{figure} (published for one 7B model, not measured here)"
