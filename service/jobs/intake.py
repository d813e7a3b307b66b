"""What comes in that is no current GGUF file yet: recognised, and made into one.

Job children only. Every way in (imports, pulls, bundles) asks `what_is` of the files that it has, and for everything
but a current GGUF file has `make_gguf` leave one. Knows nothing of the store; what the file must then stand up to is
`importing.examine`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from service.domain.errors import DiskFull, InvalidModel, NotSupported
from service.domain.names import parse_ref
from service.gguf.checkpoint_files import PICKLE_REMEDY, PICKLES, Files
from service.gguf.convert import prepare
from service.gguf.files import read_header
from service.gguf.header import MAGIC
from service.gguf.legacy import is_legacy, upgrade
from service.gguf.splits import merge, pieces_among, pieces_of
from service.jobs.limits import limit_file_size
from service.jobs.messages import NamedPath
from service.store.naming import check_label

Source = Path | Sequence[NamedPath]
Progress = Callable[[float, str], None]

_CHUNK_BYTES = 4 * 1024 * 1024
_HASHING = 0.3  # of the work, where a file is read again to hash it


class Kind(Enum):
    """What files are."""

    GGUF = auto()  # one current GGUF file
    SPLIT = auto()  # the pieces of one
    LEGACY = auto()  # a model file of an older format
    CHECKPOINT = auto()  # safetensors, with their config.json


@dataclass(frozen=True, slots=True)
class Taken:
    """The GGUF file that was made: what it was before, and whether precision was lost before."""

    digest: str
    size_bytes: int
    converted_from: str
    lossy_source: bool = False


def what_is(source: Source, within: Sequence[Path] = ()) -> Kind:
    """What a file, a folder or a set of files is. Only names and headers are read.

    `within`: folders that links in `source`, a folder, may not lead out of. Raises InvalidModel for anything
    else, with what to do instead: for pickles above all, which are never opened.
    """
    if isinstance(source, Path) and not source.is_dir():
        return _kind_of_file(source)
    files = _files(source, within)
    models = _named(files, ".gguf")
    if any(name.endswith(".safetensors") for name in files.names):
        if "config.json" in files.names:
            return Kind.CHECKPOINT
        if "adapter_config.json" in files.names:
            raise InvalidModel("That is a LoRA adapter, not a model; bring it in as an adapter of its base model.")
        raise InvalidModel("The checkpoint has no config.json; bring it with all of its files.")
    if models:
        return Kind.SPLIT if pieces_among(models) else _kind_of_file(next(iter(models.values())))
    if any(name.endswith(PICKLES) for name in files.names):
        raise InvalidModel(f"There are no safetensors files. {PICKLE_REMEDY}")
    raise InvalidModel("There is no model here: neither a .gguf file nor safetensors files with their config.json.")


def is_piece(path: Path) -> bool:
    """Whether a file is a piece of a split GGUF model; False for what is no GGUF file. Raises InvalidModel."""
    return _first_bytes(path) == MAGIC and bool(pieces_of(path))


def whole_file(source: Source) -> Path:
    """The one GGUF or old file that `source` is, or holds. For what `what_is` has found to be such."""
    if isinstance(source, Path) and not source.is_dir():
        return source
    return next(iter(_named(_files(source, ()), ".gguf").values()))


def make_gguf(
    source: Source,
    target: Path,
    convert_to: str | None,
    progress: Progress,
    *,
    name: str | None = None,
    within: Sequence[Path] = (),
) -> Taken:
    """Leave a GGUF file at `target`, which must not exist, fsynced and hashed; for everything but `Kind.GGUF`.

    `convert_to` is what floats of a checkpoint become, None as `convert.prepare` has it. `name` is the reference that
    the model is to have: its label is held against the result before the work.
    Raises InvalidModel, InvalidParameter, LabelMismatch, DiskFull, OSError.
    """
    kind = what_is(source, within)
    if kind is Kind.CHECKPOINT:
        return _converted(_files(source, within), target, convert_to, progress, name)
    if kind is Kind.LEGACY:
        path = whole_file(source)
        _make_room(target, path.stat().st_size)
        description = upgrade(path, target, _share(progress, 0.0, 1.0 - _HASHING))
        return Taken(*_hashed(target, progress), description)
    assert kind is Kind.SPLIT, "a current GGUF file needs no making"
    pieces = _pieces(source, within)
    _make_room(target, sum(piece.stat().st_size for piece in pieces))
    merge(pieces, target, _share(progress, 0.0, 1.0 - _HASHING))
    return Taken(*_hashed(target, progress), f"GGUF in {len(pieces)} pieces")


def check_unconverted(level: str, convert_to: str | None) -> None:
    """Raise NotSupported where a GGUF file of this level was to become another: only checkpoints are converted."""
    if convert_to not in (None, level):
        raise NotSupported(
            f"It is a GGUF file of {level} already, and only a checkpoint is converted to {convert_to}. Bring it in "
            f"without convert_to, then quantize it to {convert_to} (POST /v1/quantize).",
            param="convert_to",
        )


def _converted(files: Files, target: Path, convert_to: str | None, progress: Progress, name: str | None) -> Taken:
    conversion = prepare(files, convert_to)
    if name is not None:
        check_label(parse_ref(name), conversion.convert_to)
    _make_room(target, conversion.plan.size_bytes)
    written = conversion.plan.write(target, progress)
    return Taken(written.digest, written.size_bytes, conversion.description, conversion.packing is not None)


def _kind_of_file(path: Path) -> Kind:
    if is_legacy(path):
        return Kind.LEGACY
    if is_piece(path):
        return Kind.SPLIT
    read_header(path)  # which says what else it may be
    return Kind.GGUF


def _first_bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""  # the reader of headers tells why
    try:
        return os.pread(descriptor, len(MAGIC), 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _files(source: Source, within: Sequence[Path]) -> Files:
    if isinstance(source, Path):
        return Files.of_folder(source, tuple(within))
    return Files({file.name: Path(file.path) for file in source})


def _named(files: Files, ending: str) -> dict[str, Path]:
    found = ((name, files.path(name)) for name in files.names if name.endswith(ending))
    return {name: path for name, path in found if path is not None}


def _pieces(source: Source, within: Sequence[Path]) -> tuple[Path, ...]:
    if not isinstance(source, Path) or source.is_dir():
        return pieces_among(_named(_files(source, within), ".gguf"))
    pieces = pieces_of(source)
    bounds = [bound.resolve() for bound in within]
    if bounds and not all(any(piece.resolve().is_relative_to(bound) for bound in bounds) for piece in pieces):
        raise InvalidModel("A piece is a link to somewhere outside of the folders that may be imported from.")
    return pieces


def _make_room(target: Path, size_bytes: int) -> None:
    """Nothing is begun that the disk cannot hold, and no more is written than was planned."""
    limit_file_size(size_bytes)
    status = os.statvfs(target.parent)
    if status.f_bavail * status.f_frsize < size_bytes:
        raise DiskFull(f"The GGUF file will have {size_bytes} bytes, which the disk does not; free some space first.")


def _hashed(path: Path, progress: Progress) -> tuple[str, int]:
    """Digest and size of a file that was written in one go."""
    size, done = path.stat().st_size, 0
    hasher = hashlib.sha256()
    heard = _share(progress, 1.0 - _HASHING, 1.0)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            heard(done / max(1, size), "hashing")
    return f"sha256:{hasher.hexdigest()}", size


def _share(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction, detail: progress(start + (end - start) * fraction, detail)
