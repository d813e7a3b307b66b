"""What the commands show, as rich tables that fit 80 columns on a terminal and stay one row a line in a pipe. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from service.api.catalogue_shapes import (
    AvailableShape,
    JobShape,
    PlanShape,
    TensorShape,
    VariantShape,
    WorkerShape,
)
from service.api.remote_shapes import RemoteShape
from service.cli import figures
from service.domain.quants import QUANTIZATIONS

STATUS_STYLES = {
    "queued": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "ready": "green",
    "starting": "cyan",
    "draining": "yellow",
    "quarantined": "bold red",
}
MARKS_NOTE = "* recommended, + in memory, ^ pinned"
REFERENCE_NOTE = "PPL 7B: perplexity added to F16, as published for one 7B model"
_SAID_BY_THE_STAR = " - recommended"
_MOST_BARE_NAMES = 8


def variants(rows: Sequence[VariantShape], context: int | None) -> Table:
    """What is stored. With `context`, what one request of that many tokens takes in memory."""
    table = columns("Name", ">Size", ">Bits/w", ">PPL 7B", *([">Memory"] if context else []), "~Advice")
    for row in rows:
        table.add_row(
            _name(row),
            figures.size(row.size_bytes),
            figures.bits(row.bits_per_weight),
            reference(row.quantization, lossy_source=row.lineage.lossy_source),
            *([figures.size(row.memory_bytes)] if context else []),
            _advice(row.advice, lossy=row.lineage.lossy_source or (row.lossy and row.lineage.origin == "imported")),
        )
    return table


def available(rows: Sequence[AvailableShape], context: int | None) -> Table:
    """What could be made from the stored sources."""
    table = columns("Could be made", ">Size", ">Bits/w", ">PPL 7B", *([">Memory"] if context else []), "~Advice")
    for row in rows:
        table.add_row(
            _marked(f"{row.model}:{row.quantization}", recommended=row.recommended),
            figures.size(row.size_bytes),
            figures.bits(row.bits_per_weight),
            reference(row.quantization, lossy_source=row.lossy_source),
            *([_memory(row.memory_bytes, row.fits)] if context else []),
            _advice(row.advice),
        )
    return table


def plans(rows: Sequence[PlanShape], *, has_matrix: bool = False) -> Table:
    """A dry run. `has_matrix`: an importance matrix will be there."""
    table = columns("Level", ">Size", ">Bits/w", ">PPL 7B", ">Memory", ">Time", "~Notes")
    for row in rows:
        level = QUANTIZATIONS.get(row.quantization)
        hindered = _hindrance(row.error, row.needs_imatrix and not has_matrix)
        advice = _advice(level.advice if level else None)
        fallbacks = f"{len(row.fallbacks)} of {sum(row.types.values())} tensors need another type; "
        table.add_row(
            _marked(row.quantization, recommended=bool(level and level.recommended)),
            figures.size(row.size_bytes) if not row.error else "-",
            figures.bits(row.bits_per_weight) if not row.error else "-",
            reference(row.quantization),
            _memory(row.memory_bytes, row.fits) if not row.error else "-",
            "-" if row.estimated_seconds is None else figures.duration(row.estimated_seconds),
            hindered or (Text.assemble(fallbacks, advice) if row.fallbacks else advice),
        )
    return table


def remote(seen: RemoteShape) -> Table:
    """The levels of a model elsewhere."""
    table = columns("Level", ">Size", ">Files", "Address", "~Notes")
    for row in seen.levels:
        size = Text(figures.size(row.size_bytes))
        if not row.fits:
            size.append(" !", style="bold red")
        notes = [f"here as {', '.join(row.stored)}"] if row.stored else []
        if row.converts:
            kind = "a quantized checkpoint" if row.lossy_source else "a checkpoint"
            notes.append(f"{kind}, converted here{'; lossy source' if row.lossy_source else ''}")
        level = row.level
        if level == "UNKNOWN":
            level = "-"
            notes.append("its level is in the file")
        table.add_row(
            _marked(level, recommended=row.recommended), size, str(len(row.files)), row.address, "; ".join(notes)
        )
    return table


def tensors(rows: Sequence[TensorShape]) -> Table:
    """Every tensor of a plan."""
    table = columns("Tensor", "Type", ">Shape", ">Size")
    for row in rows:
        table.add_row(row.name, row.type, " x ".join(map(str, row.shape)), figures.size(row.size_bytes))
    return table


def workers(rows: Sequence[WorkerShape]) -> Table:
    """What is in memory."""
    table = columns("Name", "State", "Rung", ">Context", ">Memory", ">Active", ">Queued", "Expires (UTC)")
    for row in rows:
        table.add_row(
            row.name,
            _status(row.state),
            row.rung,
            f"{row.context_length} x {row.parallel}{_cache(row)}",
            figures.size(row.memory_bytes),
            str(row.active_requests),
            str(row.queued_requests),
            figures.moment(row.expires_at)[11:] if row.expires_at else "-",
        )
    return table


def _cache(row: WorkerShape) -> str:
    """The cache's types where they are not the usual ones."""
    types = (row.cache_type_k, row.cache_type_v)
    return "" if types == ("f16", "f16") else " " + "/".join(dict.fromkeys(types))


def jobs(rows: Sequence[JobShape]) -> Table:
    """Jobs, as they come."""
    table = columns("Id", "Model", "Makes", "Status", "Created (UTC)")
    for row in rows:
        status = _status(row.status)
        if row.status == "running":
            status.append(f" {figures.percent(row.progress)}")
        table.add_row(
            row.id,
            row.model,
            _first_of(row.levels) if row.levels and row.kind == "quantize" else row.kind,
            status,
            figures.moment(row.created_at)[5:16],
        )
    return table


def steps(job: JobShape) -> Table:
    """The parts of one job."""
    table = columns("Step", "Status", ">Done", "~Detail")
    for step in job.steps:
        table.add_row(step.name, _status(step.status), figures.percent(step.progress), step.detail or "")
    return table


def facts(pairs: Sequence[tuple[str, str | Text]]) -> Table:
    """Names and values, one pair a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def reference(label: str, *, lossy_source: bool = False) -> str:
    """Perplexity the level adds on the published 7B model; `-` where nothing is published, or of a lossy source.

    The figures hold for levels made of full precision: F32 made of 4 bits is not lossless.
    """
    level = QUANTIZATIONS.get(label)
    if lossy_source:
        return "-"
    return figures.perplexity(level.reference.perplexity_added) if level and level.reference else "-"


def bare_names(rows: Sequence[VariantShape]) -> str:
    """What the bare names of models with several variants reach: `gloss is gloss:Q4_K_M`."""
    variants = Counter(row.model for row in rows)
    reached = [f"{row.model} is {row.name}" for row in rows if row.model in row.aliases and variants[row.model] > 1]
    rest = len(reached) - _MOST_BARE_NAMES
    return ", ".join(reached[:_MOST_BARE_NAMES]) + (f", and {rest} more" if rest > 0 else "")


def columns(*names: str) -> Table:
    """A table with these columns: `>` is right-aligned, `~` takes what width is left and wraps."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in names:
        wraps = column.startswith("~")
        table.add_column(
            column.lstrip(">~"), justify="right" if column.startswith(">") else "left", no_wrap=not wraps,
            overflow="fold",
        )  # fmt: skip
    return table


def _name(row: VariantShape) -> Text:
    text = _marked(row.name, recommended=row.recommended)
    if row.loaded:
        text.append("+" if row.recommended else " +", style="cyan")
    if row.pinned:
        text.append(" ^", style="dim")
    return text.append(" DAMAGED", style="bold red") if row.corrupt else text


def _first_of(levels: Sequence[str]) -> str:
    return levels[0] if len(levels) == 1 else f"{levels[0]} +{len(levels) - 1}"


def _marked(name: str, *, recommended: bool) -> Text:
    return Text.assemble((name, "bold"), (" *", "green")) if recommended else Text(name)


def _advice(advice: str | None, *, lossy: bool = False) -> Text:
    text = Text((advice or "").removesuffix(_SAID_BY_THE_STAR))
    if lossy:
        text.append("; lossy source" if text.plain else "lossy source", style="yellow")
    return text


def _hindrance(error: str | None, needs_imatrix: bool) -> Text | None:
    if error:
        return Text(f"cannot be made: {error}", style="yellow")
    return Text("needs an importance matrix", style="yellow") if needs_imatrix else None


def _memory(memory_bytes: int, fits: bool) -> Text:
    text = Text(figures.size(memory_bytes))
    return text if fits else text.append(" !", style="bold red")


def _status(word: str) -> Text:
    return Text(word, style=STATUS_STYLES.get(word, ""))
