"""`quantry export`: a variant's file, or a whole model as a bundle, into a file here; a second run goes on with it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from service.cli import figures
from service.cli.client import Client, Params, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.progress import transfer
from service.cli.session import Session
from service.cli.uploading import Advance, chunks, retrying
from service.domain.errors import QuantryError
from service.store.bundles.reading import read_bundle

_FILE_NAME = re.compile(r'filename="([A-Za-z0-9_][A-Za-z0-9_.-]*)"')
_TOTAL = re.compile(r"bytes 0-0/([0-9]+)")


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "export", "Models")(export)


def export(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A variant, or with --bundle a model.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; by default MODEL-LEVEL.gguf in this folder.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="Write the whole model with its names into this tar file."),
    ] = None,
    level: Annotated[
        list[str] | None, typer.Option("--level", help="With --bundle, only this level; may be given again.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a variant's GGUF file, or a whole model as a bundle."""
    if bundle is not None and file is not None:
        raise _usage("Name one file: for a variant after its name, for a bundle after --bundle.")
    if bundle is None and level:
        raise _usage("--level chooses what goes into a bundle; write the level after a colon for one file.")
    with session.client() as client:
        if bundle is None:
            found = _Export(session, client, f"/v1/variants/{ref_path(name)}/file", {}, file, force)
            found.fetch()
            found.check_digest()
        else:
            params: Params = {"levels": ",".join(level)} if level else {}
            found = _Export(session, client, f"/v1/models/{ref_path(name)}/bundle", params, bundle, force)
            found.fetch()
            _check_bundle(session, found)
        found.keep()
    if session.as_json:
        digest = found.digest if bundle is None else f"sha256:{found.hasher.hexdigest()}"
        session.document({"file": str(found.target), "size_bytes": found.size_bytes, "digest": digest})
    session.say(f"{found.target}: {figures.size(found.size_bytes)}")


class _Export:
    """One download into a file: `fetch`, check, `keep`. What has come lies beside the target under a name of its own,
    which says what it is a part of, until it is whole."""

    def __init__(
        self, session: Session, client: Client, path: str, params: Params, target: Path | None, force: bool
    ) -> None:
        """Ask what it is. Raises CommandFailed when there is none, or where it cannot be written."""
        self._session, self._client, self._path, self._params = session, client, path, params
        answer = client.send("GET", path, params=params, headers={"Range": "bytes=0-0"})
        total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        named = _FILE_NAME.search(answer.headers.get("Content-Disposition", ""))
        self._tag = answer.headers.get("ETag", "")
        if total is None or named is None or not self._tag:
            raise CommandFailed("bad_answer", "The server does not say what it would send.", remedy="update the server")
        self.size_bytes = int(total[1])
        self.digest = self._tag.strip('"')
        self.target = _target(target, named[1])
        if self.target.exists() and not force:
            raise CommandFailed(
                "file_exists", f"{str(self.target)!r} is there already.", remedy="add --force to write over it",
                exit_code=ExitCode.USAGE,
            )  # fmt: skip
        self.partial = self.target.with_name(f".{self.target.name}.{self.digest[-12:]}.part")
        self.hasher = hashlib.sha256()
        self._received = 0

    def fetch(self) -> None:
        """Bring what is missing of it, and hash it all."""
        try:
            self._begin()
            with transfer(self._session, "receiving", self.size_bytes) as advance:
                advance(self._received)
                retrying(lambda: self._receive(advance), lambda: self._received)
        except OSError as error:
            reason = error.strerror or "it cannot be written"
            raise CommandFailed(
                "no_file", f"{str(self.target)!r}: {reason}.", remedy="name a file in a folder of yours, with room",
                exit_code=ExitCode.USAGE,
            ) from None  # fmt: skip

    def check_digest(self) -> None:
        """Raise CommandFailed, and drop what came, when it is not what was asked for."""
        if f"sha256:{self.hasher.hexdigest()}" != self.digest:
            self.drop()

    def drop(self) -> None:
        """What came is damaged: remove it, and fail."""
        self.partial.unlink(missing_ok=True)
        raise CommandFailed(
            "digest_mismatch", "The bytes that came are not those of the store.", remedy="run the command again"
        )

    def keep(self) -> None:
        """Give it its name."""
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.target)

    def _begin(self) -> None:
        """Take up what an earlier run has left."""
        self.partial.touch()
        left = self.partial.stat().st_size
        if left > self.size_bytes:
            os.truncate(self.partial, 0)
            left = 0
        needed = self.size_bytes - left
        if shutil.disk_usage(self.partial.parent).free < needed:
            raise CommandFailed("disk_full", f"The disk has no room for {figures.size(needed)} more.")
        if left:
            with transfer(self._session, "checking", left) as advance:
                for chunk in chunks(self.partial):
                    self.hasher.update(chunk)
                    advance(len(chunk))
        self._received = left

    def _receive(self, advance: Advance) -> bool:
        """Append what comes; True when it is whole. Raises CommandFailed when it breaks off."""
        if self._received == self.size_bytes:
            return True
        headers = {"Range": f"bytes={self._received}-", "If-Range": self._tag}
        with self._client.receive(self._path, params=self._params, headers=headers) as (status, incoming):
            if status != 206:
                raise CommandFailed(
                    "changed", f"What {self.target.name} is has changed meanwhile.", remedy="run the command again"
                )
            with self.partial.open("ab") as file:
                for chunk in incoming:
                    file.write(chunk)
                    file.flush()  # what is counted is in the file, whole: a raw write may take less
                    self.hasher.update(chunk)
                    self._received += len(chunk)
                    advance(len(chunk))
        return self._received == self.size_bytes


def _check_bundle(session: Session, found: _Export) -> None:
    """Every file of the bundle against its digest."""
    try:
        files = read_bundle(str(found.partial)).stored
        with transfer(session, "checking", sum(file.size_bytes for file in files)) as advance:
            for file in files:
                hasher = hashlib.sha256()
                for chunk in chunks(found.partial, file.offset, file.offset + file.size_bytes):
                    hasher.update(chunk)
                    advance(len(chunk))
                if f"sha256:{hasher.hexdigest()}" != file.digest:
                    found.drop()
    except QuantryError:
        found.drop()


def _target(asked: Path | None, name: str) -> Path:
    if asked is None:
        return Path(name)
    return asked / name if asked.is_dir() else asked


def _usage(message: str) -> CommandFailed:
    return CommandFailed("usage", message, remedy="quantry export --help", exit_code=ExitCode.USAGE)
