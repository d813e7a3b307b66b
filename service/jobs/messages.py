"""What the server and a job's child say to each other over the child's pipes, as frames (service/frames.py).

Runs on both sides. The server sends one task and then keeps the pipe open: its end tells the child that the server is
gone. The child answers with any number of `Progress` and outcomes, and ends with `Done` or `Failed`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from service.domain.catalog import AdapterFacts, LevelPlan, RemoteOrigin
from service.domain.evaluation import Card, SearchReport, Target
from service.domain.importance import ImportanceFacts
from service.domain.jobs import Adoption, MadeFile
from service.domain.recipes import Recipe
from service.domain.remote import RemoteAccess
from service.domain.steps_back import Bound


class NamedPath(msgspec.Struct, frozen=True):
    """A file of a checkpoint: the name that it has there, and where it lies."""

    name: str
    path: str


class ImportTask(msgspec.Struct, frozen=True, tag="import"):
    """Validate and plan one model. With `digest` the file is a blob, used in place where it is a current GGUF file.

    Otherwise a GGUF file is left at `target`: copied, or converted from the file or folder `source`, or from `files`,
    floats to `convert_to`. `adopt` and `within` as in `ImportSpec`. `name` is the reference asked for; `niceness` is
    the scheduling priority of the child, 19 the lowest.
    """

    source: str
    target: str
    name: str
    digest: str | None
    niceness: int
    files: tuple[NamedPath, ...] = ()
    convert_to: str | None = None
    adopt: Adoption = Adoption.COPY
    within: tuple[str, ...] = ()


class PullTask(msgspec.Struct, frozen=True, tag="pull"):
    """Fetch the model at the address `source` by way of a folder in `transfers`; then as an import.

    That folder outlives the task, so that a later one goes on where it ended; the GGUF file is left at `target`, unless
    it is in the folder `blobs` already, and not one of those that are `damaged` (digests). Where the address names no
    level, the recommended one for `memory_bytes` is taken. What is still to come may take `room_bytes`.
    `niceness` holds while it fetches.
    """

    source: str
    transfers: str
    target: str
    name: str
    access: RemoteAccess
    niceness: int
    convert_to: str | None = None
    blobs: str = ""
    damaged: tuple[str, ...] = ()
    memory_bytes: int = 0
    room_bytes: int = 1 << 50


class AdapterTask(msgspec.Struct, frozen=True, tag="adapter"):
    """Check a LoRA adapter against the model at `base`, and leave its GGUF file at `target`.

    `source` is a path, or with `access` an address to fetch from as a `PullTask` does; with `digest` it is a blob, a
    GGUF file that is used in place. `files` are converted, as are those of a folder, which must lie `within` these
    folders.
    """

    source: str
    target: str
    base: str
    name: str
    digest: str | None
    niceness: int
    files: tuple[NamedPath, ...] = ()
    access: RemoteAccess | None = None
    transfers: str = ""
    room_bytes: int = 1 << 50
    within: tuple[str, ...] = ()


class PartKind(StrEnum):
    """What a file of a bundle is."""

    MODEL = "model"
    ADAPTER = "adapter"
    IMPORTANCE = "importance"


class BundlePart(msgspec.Struct, frozen=True):
    """A GGUF file in the archive of a `BundleTask`, from byte `offset` on, to be left at `target`.

    With `stored`, the path of a blob, that is only looked at. `name` is the reference that a model is to have. A model
    stays readable under `keep` until the job ends, "" keeps nothing; an adapter is tried beside the first of `bases`
    that it fits, paths of models that are there by its turn.
    """

    name: str
    digest: str
    size_bytes: int
    offset: int
    target: str
    stored: str = ""
    kind: PartKind = PartKind.MODEL
    keep: str = ""
    bases: tuple[str, ...] = ()


class BundleTask(msgspec.Struct, frozen=True, tag="bundle"):
    """Take files out of the tar file `source`, each checked as where it comes in alone: one `Made`, `AdapterMade` or
    `Calibrated` for each part, by its number.

    `archive_bytes` and `modified_ns` (since the epoch) say how the archive looked when the parts were found in it.
    """

    source: str
    archive_bytes: int
    modified_ns: int
    parts: tuple[BundlePart, ...]
    niceness: int


class BlobToRead(msgspec.Struct, frozen=True):
    """A blob of `size_bytes`, where its file lies (nothing need be there), and the step that it belongs to."""

    digest: str
    path: str
    size_bytes: int
    step: int


class VerifyTask(msgspec.Struct, frozen=True, tag="verify"):
    """Read these blobs and compare their digests, step by step."""

    blobs: tuple[BlobToRead, ...]
    niceness: int


class CalibrateStep(msgspec.Struct, frozen=True, tag="calibrate"):
    """Leave an importance matrix at `target`: computed on the text, merged with the files in `include`, or only those.

    `text` is a path, None for no computing. `checkpoint` is a path where the work so far is kept between runs. `keep`
    as in `LevelStep`.
    """

    target: str
    text: str | None
    dataset: str
    window: int
    chunks: int | None
    process_output: bool
    include: tuple[str, ...]
    checkpoint: str
    keep: str = ""


class LevelStep(msgspec.Struct, frozen=True, tag="level"):
    """Make one level at `target`. `expected_bytes` is the size from the plan, 0 where none was made.

    `importance` is the path of an importance matrix. The file made stays readable under `keep` until the job ends:
    later steps may read it there, wherever the server has put it meanwhile. "" keeps nothing.
    """

    target: str
    recipe: Recipe
    expected_bytes: int
    importance: str | None
    keep: str = ""


class TextWindows(msgspec.Struct, frozen=True):
    """A text at a path, cut into windows. `dataset` and `digest` go into the card."""

    path: str
    dataset: str
    digest: str
    window: int
    chunks: int | None


class TaskFile(msgspec.Struct, frozen=True):
    """A task to score, at a path."""

    path: str
    name: str
    digest: str


class EvaluateStep(msgspec.Struct, frozen=True, tag="evaluate"):
    """Measure the file `path`. `base` is the path of its source, None for the source itself; `logits` the path where
    the source's log-probabilities are, or will be put. Without `text`, neither is looked at. A file that breaks
    `bound` is the last thing that the task does.
    """

    path: str
    base: str | None
    base_name: str
    base_digest: str
    text: TextWindows | None
    logits: str
    tasks: tuple[TaskFile, ...]
    speed: bool
    bound: Bound | None = None


class SearchStep(msgspec.Struct, frozen=True, tag="search"):
    """Find the mix for `target`, make it at `made` and report. `known` is a path with sensitivities measured before;
    what is measured now is added to it as it comes. `recipe` holds the options that the mix starts from.
    """

    made: str
    recipe: Recipe
    target: Target
    text: TextWindows
    logits: str
    known: str
    types: tuple[str, ...]
    guide: str
    max_seconds: float
    importance: str | None
    keep: str = ""


class PlanStep(msgspec.Struct, frozen=True, tag="plan"):
    """Plan these recipes; nothing is made."""

    recipes: tuple[Recipe, ...]
    has_importance: bool


Step = CalibrateStep | LevelStep | EvaluateStep | SearchStep | PlanStep


class LaboratoryTask(msgspec.Struct, frozen=True, tag="laboratory"):
    """Steps on one source file, in this order. `threads` 0 means all cores; `niceness` as above."""

    source: str
    steps: tuple[Step, ...]
    threads: int
    niceness: int


Task = ImportTask | LaboratoryTask | PullTask | AdapterTask | BundleTask | VerifyTask


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far step number `step` is, 0 to 1. `detail` is for people, e.g. "tensor 12 of 56"."""

    step: int
    fraction: float
    detail: str | None = None


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    """The name of the folder, among the transfers, that the child fetches into: what is to become of it is the server's
    to say.
    """

    folder: str


class Made(msgspec.Struct, frozen=True, tag="made"):
    """Step number `step` is done and has left this file; `llama_build` is the library that made or checked it.

    A search says what it found: the recipe with its mix, and how it came to it.
    """

    step: int
    file: MadeFile
    llama_build: str
    recipe: Recipe | None = None
    search: SearchReport | None = None
    remote: RemoteOrigin | None = None
    converted_from: str | None = None
    lossy_source: bool = False  # precision was lost before the file came to be


class AdapterMade(msgspec.Struct, frozen=True, tag="adapter-made"):
    """Step number `step` has left the GGUF file of an adapter, hashed and fsynced, or found a blob to be one."""

    step: int
    path: str
    digest: str
    size_bytes: int
    facts: AdapterFacts


class Verified(msgspec.Struct, frozen=True, tag="verified"):
    """These blobs have been read. All steps up to number `step` are done by it; -1: none yet."""

    step: int
    intact: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


class Calibrated(msgspec.Struct, frozen=True, tag="calibrated"):
    """Step number `step` has left an importance matrix, hashed and fsynced."""

    step: int
    path: str
    digest: str
    size_bytes: int
    facts: ImportanceFacts


class Evaluated(msgspec.Struct, frozen=True, tag="evaluated"):
    """Step number `step` has measured a file."""

    step: int
    card: Card


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """The plans of a `PlanStep`, in its order."""

    step: int
    plans: tuple[LevelPlan, ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job cannot go on; `code` is one of the error tree's."""

    code: str
    message: str
    param: str | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Everything asked for is made."""


Outcome = Made | Calibrated | Evaluated | Planned | AdapterMade | Verified
Message = Progress | Transfer | Outcome | Failed | Done
