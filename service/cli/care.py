"""`quantry verify`, `prune`, `pin`, `unpin`, `store`: the store looked after."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.api.care_shapes import PruneShape, StoreShape
from service.api.catalogue_shapes import JobShape, VariantShape, VerifiedShape
from service.cli import figures, tables
from service.cli.client import VERIFY_SECONDS, Client, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.session import Session

_PANEL = "Store"
_REPAIR = "quantry verify --repair, or bring the same bytes again: quantry import"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A variant, e.g. gloss:Q4_K_M.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "verify", _PANEL)(verify)
    command(app, "store", _PANEL)(store)
    command(app, "prune", _PANEL)(prune)
    command(app, "pin", _PANEL)(pin)
    command(app, "unpin", _PANEL)(unpin)


def verify(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models or variants; none: all that is stored.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make or fetch again what is damaged.")] = False,
) -> None:
    """Read files again and compare them with their digests; exit code 1 when one is damaged."""
    wanted = names or []
    with session.client() as client:
        if len(wanted) == 1 and not repair:
            _verify_one(session, client, wanted[0])
        else:
            _verify_many(session, client, wanted, repair)


def store(session: Session) -> None:
    """Show what the store holds, what it may still hold, and what is damaged."""
    with session.client() as client:
        found = client.get(StoreShape, "/v1/store")
    if session.as_json:
        session.document(found)
        return
    quota = "none" if found.quota_bytes is None else figures.size(found.quota_bytes)
    pairs = [
        ("models", f"{found.models}, {found.variants} variants, {found.pinned} pinned"),
        ("files", f"{found.blobs}, {figures.size(found.blob_bytes)}"),
        ("elsewhere", f"{found.outside}, {figures.size(found.outside_bytes)} adopted where they are"),
        ("under way", figures.size(found.transfers_bytes)),
        ("quarantined", f"{found.quarantined}, {figures.size(found.quarantined_bytes)}"),
        ("quota", f"{quota}, {figures.size(found.taken_bytes)} taken"),
        ("disk", f"{figures.size(found.free_bytes)} free, {figures.size(found.reserve_bytes)} to stay free"),
        ("room", figures.size(found.room_bytes)),
        ("all read since", figures.moment(found.oldest_verified_at) if found.oldest_verified_at else "-"),
    ]
    session.table(tables.facts(pairs))
    if found.damaged:
        session.note(f"damaged: {', '.join(found.damaged)}; {_REPAIR}", style="bold red")


def prune(
    session: Session,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Variants of these models alone.")
    ] = None,
    unused_days: Annotated[
        float | None,
        typer.Option(
            min=0, max=3650, help="Variants too that nobody used for so many days and that can be made again."
        ),
    ] = None,
    levels: Annotated[
        list[str] | None,
        typer.Option("--level", metavar="LEVEL", help="Variants too of this level that can be made again; repeatable."),
    ] = None,
    age_minutes: Annotated[
        float | None,
        typer.Option("--age-minutes", min=1.0, max=525_600.0, help="Age from which unused files go; by default a day."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it; without, only say what would go.")] = False,
) -> None:
    """Make room: say what could go and why; with --yes, remove it."""
    body = {"unused_days": unused_days, "levels": levels or [], "models": models or [], "dry_run": not yes}
    if age_minutes is not None:
        body["age_seconds"] = age_minutes * 60
    with session.client() as client:
        found = client.post(PruneShape, "/v1/prune", body, seconds=VERIFY_SECONDS)
    if session.as_json:
        session.document(found)
        return
    if not found.data:
        session.say("There is nothing to remove.")
        if age_minutes is None:
            session.note(
                "Files of less than a day stay; --age-minutes 1 takes younger ones that nothing is made of too."
            )
        return
    table = tables.columns("Kind", "Name", ">Size", "~Why")
    for row in found.data:
        name = row.name[:19] if row.name.startswith("sha256:") else row.name
        table.add_row(row.kind, name, figures.size(row.size_bytes), row.reason)
    session.table(table)
    if found.dry_run:
        session.note(f"{figures.size(found.size_bytes)} in all; nothing was removed. The same with --yes removes it")
    else:
        session.note(f"{figures.size(found.size_bytes)} removed")


def pin(session: Session, name: Name) -> None:
    """Keep a variant from being pruned or deleted."""
    with session.client() as client:
        variant = client.post(VariantShape, f"/v1/variants/{ref_path(name)}/pin")
    _told(session, variant)


def unpin(session: Session, name: Name) -> None:
    """Let a variant be pruned and deleted again."""
    with session.client() as client:
        variant = client.delete(VariantShape, f"/v1/variants/{ref_path(name)}/pin")
    _told(session, variant)


def _told(session: Session, variant: VariantShape) -> None:
    if session.as_json:
        session.document(variant)
    session.say(f"{variant.name} is {'pinned' if variant.pinned else 'no longer pinned'}")


def _verify_one(session: Session, client: Client, name: str) -> None:
    path = f"/v1/variants/{ref_path(name)}/verify"
    if session.is_live:
        with session.err.status("reading the file again"):
            found = client.post(VerifiedShape, path, seconds=VERIFY_SECONDS)
    else:
        found = client.post(VerifiedShape, path, seconds=VERIFY_SECONDS)
    if session.as_json:
        session.document(found)
        if not found.intact:
            raise typer.Exit(ExitCode.FAILED)
        return
    if not found.intact:
        raise CommandFailed(
            "blob_corrupt",
            f"The bytes of {found.name} no longer match {found.digest}.",
            remedy=f"quantry verify {found.name} --repair, or bring the same bytes again: quantry import",
        )
    took = figures.duration(found.duration_seconds)
    session.say(f"{found.name} is intact: {figures.size(found.size_bytes)} read in {took}, {found.digest}")


def _verify_many(session: Session, client: Client, names: list[str], repair: bool) -> None:
    asked = client.post(JobShape, "/v1/verify", {"models": names, "repair": repair})
    job = watch_job(session.silenced() if session.as_json else session, client, asked)
    damaged = [one for one in job.result if one.startswith("sha256:")]
    repairs = [one for one in job.result if not one.startswith("sha256:")]
    if session.as_json:
        session.document(job)
    elif damaged:
        for step in job.steps:
            if step.detail:
                session.say(step.detail)
        for job_id in repairs:
            session.note(f"follow the repair: quantry jobs {job_id} --watch")
        if not repair:
            session.note(f"mend what can be mended: {_REPAIR}", style="yellow")
    else:
        session.say("All that was read is intact.")
    if damaged:
        sys.stdout.flush()
        raise typer.Exit(ExitCode.FAILED)
