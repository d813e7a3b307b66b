"""`quantry quantize` and `quantry plan`: levels of a stored model or a mix within a budget, made or only worked out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from service.api.catalogue_shapes import JobShape, PlanShape
from service.api.shapes import Listing
from service.cli import cards, measuring, recipes, tables
from service.cli.client import Client, read
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.models import print_variants, variants
from service.cli.options import command
from service.cli.session import Session
from service.domain.quants import QUANTIZATIONS, Family, parse_label

_PANEL = "Quantization"

# The levels with published figures: Q2_K to Q8_0.
TABLE_LEVELS = tuple(
    level.label for level in reversed(QUANTIZATIONS.values()) if level.reference and level.family is not Family.FLOAT
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="What to quantize, e.g. gloss or gloss:F16.")]


Context = Annotated[
    int | None,
    typer.Option("--context", min=1, max=1 << 20, help="Work memory out for one request of this many tokens."),
]
_BUDGET = "A budget, instead of levels"


def _budget(name: str, about: str, **rules: Any) -> Any:
    return typer.Option(name, help=about, rich_help_panel=_BUDGET, show_default=False, **rules)


def _bound(name: str, about: str) -> Any:
    return typer.Option(
        name, help=about, rich_help_panel="From the largest level down, until one breaks a bound", show_default=False
    )


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "quantize", _PANEL, added={**recipes.OPTIONS, **measuring.OPTIONS})(quantize)
    command(app, "plan", _PANEL, added=recipes.OPTIONS)(plan)


def quantize(
    session: Session,
    /,
    model: Model,
    levels: Annotated[
        list[str] | None, typer.Argument(metavar="LEVEL...", help="E.g. Q4_K_M Q8_0, in any case.")
    ] = None,
    all_levels: Annotated[
        bool, typer.Option("--all", help="Every level from Q2_K to Q8_0 that can be made of this model.")
    ] = False,
    size: Annotated[str | None, _budget("--size", "Largest file, e.g. 3.2GiB.", metavar="SIZE")] = None,
    bits_per_weight: Annotated[float | None, _budget("--bits-per-weight", "Most bits of a weight.")] = None,
    max_kld: Annotated[float | None, _budget("--max-kld", "Most mean KL divergence to the source.")] = None,
    min_speed: Annotated[float | None, _budget("--min-speed", "Least tokens per second here.")] = None,
    types: Annotated[str | None, _budget("--types", "Types that may be used.", metavar="TYPE,TYPE,...")] = None,
    guide: Annotated[str | None, _budget("--guide", "auto, measured or estimated.")] = None,
    max_seconds: Annotated[float | None, _budget("--max-seconds", "Longest search.", min=1)] = None,
    until_kld: Annotated[float | None, _bound("--until-kld", "Most mean KL divergence to the source.")] = None,
    until_perplexity_ratio: Annotated[
        float | None, _bound("--until-perplexity-ratio", "Largest ratio of perplexity to the source's.")
    ] = None,
    until_same_top: Annotated[
        float | None, _bound("--until-same-top", "Smallest share of tokens with the same most likely token.")
    ] = None,
    keep_all: Annotated[bool, _bound("--keep-all", "Keep all levels, not the last good one alone.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Measure each level once it is made.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Threads to compute with.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
    **options: Any,
) -> None:
    """Make levels of a stored model, or the best mix of tensor types within a budget, with a bar for each step."""
    target = {"size": size, "bits_per_weight": bits_per_weight, "max_kld": max_kld, "min_speed": min_speed}
    target = {name: value for name, value in target.items() if value is not None}
    until = _until(until_kld, until_perplexity_ratio, until_same_top, keep_all=keep_all)
    if bool(levels) + all_levels + bool(target) > 1 or not (levels or all_levels or target or until):
        raise CommandFailed(
            "usage", "Name levels, or say --all, or give a bound such as --until-kld or a budget such as --size.",
            remedy=f"quantry quantize {model} Q4_K_M", exit_code=ExitCode.USAGE,
        )  # fmt: skip
    body: dict[str, Any] = {"model": model, **recipes.fields(options)}
    measured = measuring.fields(options)
    if evaluate or measured:
        body["evaluate"] = measured or True
    if threads is not None:
        body["threads"] = threads
    search = _search(types, guide, max_seconds)
    if search and not target:
        raise CommandFailed(
            "usage", "--types, --guide and --max-seconds go with a budget.", remedy="give one, such as --size 3GiB",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    if until:
        body["until"] = until
        if target:
            raise CommandFailed(
                "usage", "A bound goes with levels, not with a budget.", remedy="leave one of them out",
                exit_code=ExitCode.USAGE,
            )  # fmt: skip
    with session.client() as client:
        if target:
            body |= {"target": target, **({"search": search} if search else {})}
        elif levels or all_levels:
            body["to"] = makeable(client, model) if all_levels else [parse_label(level) for level in levels or ()]
        job = read(JobShape, client.send("POST", "/v1/quantize", body=body))
        finish(session, client, job, detach=detach, verdicts=bool(until))


def finish(session: Session, client: Client, job: JobShape, *, detach: bool, verdicts: bool = False) -> None:
    """Follow a job that makes or measures variants, and show them; or say how to. `verdicts`: what each one lost."""
    if detach:
        if session.as_json:
            session.document(job)
        session.say(f"Job {job.id} is {job.status}. Follow it: quantry jobs {job.id} --watch")
        return
    job = watch_job(session, client, job)
    if session.as_json:
        return
    if verdicts:
        for step in job.steps:
            if step.detail and step.name.startswith("evaluate "):
                session.note(f"{step.name.removeprefix('evaluate ')}: {step.detail}")
    rows = [row for row in variants(client).data if row.name in set(job.result)]
    print_variants(session, rows)
    if any(row.card for row in rows):
        session.say()
        session.table(cards.table(rows))
        for note in cards.notes(rows):
            session.note(note)


def plan(
    session: Session,
    /,
    model: Model,
    levels: Annotated[list[str] | None, typer.Argument(metavar="[LEVEL...]", help="Only these levels.")] = None,
    context: Context = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the type of every tensor.")] = False,
    **options: Any,
) -> None:
    """Work out what levels of a model would be, to the byte, and make nothing."""
    wanted = [parse_label(level) for level in levels] if levels else list(TABLE_LEVELS)
    body: dict[str, Any] = recipes.fields(options) | ({"tensors": True} if tensors else {})
    if context is not None:
        body["context"] = context
    with session.client() as client:
        listing = plans(client, model, wanted, **body)
    if session.as_json:
        session.document(listing)
        return
    session.say(f"{listing.data[0].source} would become:")
    session.table(tables.plans(listing.data, has_matrix="imatrix" in body))
    for row in listing.data:
        for note in row.notes:
            session.note(f"{row.quantization}: {note}", "yellow")
    session.note("* recommended")
    session.note(tables.REFERENCE_NOTE)
    if not all(row.fits for row in listing.data if not row.error):
        session.note("! does not fit the server's memory budget.")
    if not all(row.fits_disk for row in listing.data if not row.error):
        session.note("The disk has no room for every one of these; make some, or make room.", "yellow")
    if tensors:
        for row in listing.data:
            session.say(f"\n{row.quantization}")
            session.table(tables.tensors(row.tensors or []))


def _until(
    kld: float | None, perplexity_ratio: float | None, same_top: float | None, *, keep_all: bool
) -> dict[str, Any]:
    given = {"max_kld": kld, "max_perplexity_ratio": perplexity_ratio, "min_same_top": same_top}
    bound: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if keep_all and not bound:
        raise CommandFailed(
            "usage", "--keep-all goes with a bound.", remedy="give one, such as --until-kld 0.05",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    return bound | ({"keep": "all"} if keep_all else {})


def _search(types: str | None, guide: str | None, max_seconds: float | None) -> dict[str, Any]:
    given = {
        "types": [kind.strip() for kind in types.split(",")] if types else None,
        "guide": guide,
        "max_seconds": max_seconds,
    }
    return {name: value for name, value in given.items() if value is not None}


def makeable(client: Client, model: str) -> list[str]:
    """The levels of the table that llama.cpp can make of the model."""
    return [
        row.quantization
        for row in plans(client, model, list(TABLE_LEVELS)).data
        if not row.error and not row.needs_imatrix
    ]


def plans(client: Client, source: str, levels: list[str], **options: Any) -> Listing[PlanShape]:
    """A dry run. `options` are further fields of the request."""
    body = {"model": source, "to": levels, "dry_run": True, **options}
    return client.post(Listing[PlanShape], "/v1/quantize", body)


def submit(client: Client, source: str, levels: list[str], *, allow_requantize: bool = False) -> JobShape:
    """Ask for the levels; the job that makes them."""
    body = {"model": source, "to": levels, "allow_requantize": allow_requantize}
    return read(JobShape, client.send("POST", "/v1/quantize", body=body))
