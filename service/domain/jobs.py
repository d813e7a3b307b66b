"""Slow work as values: what a job is asked to do, how far it is, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.domain.catalog import FileFacts, LevelPlan
from service.domain.datasets import DatasetRef
from service.domain.evaluation import Target
from service.domain.recipes import STOCK, Recipe
from service.domain.steps_back import Bound


class JobKind(StrEnum):
    """What a job does."""

    IMPORT = "import"
    QUANTIZE = "quantize"
    CALIBRATE = "calibrate"
    EVALUATE = "evaluate"
    BUDGET = "budget"  # the best mix of tensor types within a budget
    REBUILD = "rebuild"  # make a variant again and compare
    PULL = "pull"  # fetch a model from elsewhere, then as an import
    ADAPTER = "adapter"  # take in a LoRA adapter for a model
    BUNDLE = "bundle"  # take in the variants of a bundle
    VERIFY = "verify"  # read blobs again and compare their digests


class JobStatus(StrEnum):
    """Where a job stands.

    queued ──> running ──> succeeded
      │          │ ├─────> failed
      │          │ └─────> cancelled
      │          └───────> queued      (the server went down; at most `max_attempts` times)
      └──────────────────> cancelled
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({*ENDED, JobStatus.QUEUED}),
    **{status: frozenset() for status in ENDED},
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A variant as a job's spec names it: its canonical name, and the blob that it was when asked for."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """An upload, under the file name that it has in its checkpoint."""

    name: str  # e.g. "model-00001-of-00002.safetensors"; never a path
    digest: str


class Adoption(StrEnum):
    """What becomes of a file that is imported by its path."""

    COPY = "copy"  # its bytes are copied into the store
    LINK = "link"  # a hard link to it is the blob
    REFERENCE = "reference"  # it stays where it is, and the blob refers to it


@dataclass(frozen=True, slots=True)
class ImportSpec:
    """Bring one model into the store under `name`. Exactly one of `path`, `digest` and `files` is set.

    What is no current GGUF file (a checkpoint, a split or an old file) is converted on the way, floats to `convert_to`.
    Links in a folder may lead to the folders `within` alone; to anywhere where there are none.
    """

    name: str  # canonical reference as asked for
    path: str | None = None  # a file, or the folder of a checkpoint, on the server
    digest: str | None = None  # a blob already uploaded
    files: tuple[NamedBlob, ...] = ()  # the files of a checkpoint, already uploaded
    convert_to: str | None = None  # "F32", "F16" or "BF16"; None: F16, or BF16 where the checkpoint is in BF16
    adopt: Adoption = Adoption.COPY
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullSpec:
    """Fetch a model from `source` and bring it into the store under `name`."""

    name: str  # canonical reference as asked for
    source: str  # canonical address, as `domain.addresses` writes it
    convert_to: str | None = None  # as in `ImportSpec`


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Take in a LoRA adapter of `base` under `name`. Exactly one of `path`, `digest`, `files` and `source` is set.

    The files of a folder at `path` must lie in one of the folders `within`, wherever links lead; none: anywhere.
    """

    name: str
    base: StoredFile
    path: str | None = None  # a GGUF file, or the folder of a PEFT adapter, on the server
    digest: str | None = None  # a blob already uploaded
    files: tuple[NamedBlob, ...] = ()  # the files of a PEFT adapter, already uploaded
    source: str | None = None  # canonical address, as `domain.addresses` writes it
    within: tuple[str, ...] = ()  # absolute paths


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """Take in the variants of a bundle, a tar file in OCI's layout. Exactly one of `path` and `digest` is set.

    `name` is the model's new name; None: the one in the bundle.
    """

    path: str | None = None
    digest: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class VerifySpec:
    """Read blobs again and compare their digests: those of `models` and those in `digests`; all when both are empty.

    A model's name means all of its variants. With `repair` each that is damaged is then made or fetched again by a job
    of its own, where its lineage says how.
    """

    models: tuple[str, ...] = ()
    repair: bool = False
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What to measure. `text` None: no perplexity and no divergence. `chunks` None: the whole text."""

    text: DatasetRef | None
    window: int = 512  # tokens
    chunks: int | None = None
    tasks: tuple[DatasetRef, ...] = ()
    speed: bool = True


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How an importance matrix is computed."""

    text: DatasetRef
    window: int = 512  # tokens
    chunks: int | None = None
    process_output: bool = False  # output.weight as well


@dataclass(frozen=True, slots=True)
class StepsBack:
    """How far down the levels go: to the first that breaks `bound`. `keep` is "last" (of those within it) or "all"."""

    bound: Bound
    keep: str = "last"


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """Make `levels` of the variant with blob `source_digest`, in the order given.

    `recipe` holds the options that all levels share. With `calibrate` an importance matrix is computed first, unless an
    equal one is stored, and used for all of them. `flavour` None: the source's own. With `until` the levels are made
    from the largest down, and `evaluate` has a text; no levels: those of the ladder that apply.
    """

    source_name: str
    source_digest: str
    levels: tuple[str, ...]
    threads: int | None = None
    recipe: Recipe = STOCK
    calibrate: CalibrateOptions | None = None
    evaluate: EvaluateOptions | None = None
    flavour: str | None = None
    until: StepsBack | None = None


@dataclass(frozen=True, slots=True)
class CalibrateSpec:
    """An importance matrix for a model: computed, read from stored files (`include`, digests of blobs), or both merged.

    `options` None: nothing is computed, only `include` is read, checked and merged.
    """

    source_name: str
    source_digest: str
    options: CalibrateOptions | None
    include: tuple[str, ...] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """Measure variants of one model, each against `base`. `base` None: none is stored that they could be held to."""

    variants: tuple[StoredFile, ...]
    base: StoredFile | None
    options: EvaluateOptions
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a mix is searched. `types` are the ggml types that may be used; empty: the k-quants', IQ4_XS, Q8_0.

    `guide` "measured" measures every tensor at every type, "estimated" some of them, "auto" as `max_seconds` allows.
    """

    text: DatasetRef
    window: int = 512  # tokens
    chunks: int | None = None
    types: tuple[str, ...] = ()
    guide: str = "auto"
    max_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """Find, make and measure the mix of tensor types with the least loss within `target`."""

    source_name: str
    source_digest: str
    target: Target
    search: SearchOptions
    recipe: Recipe = STOCK
    calibrate: CalibrateOptions | None = None
    evaluate: EvaluateOptions | None = None
    flavour: str = "mix"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class RebuildSpec:
    """Make a variant again from its recipe and compare the digests; one whose blob is damaged is mended by it."""

    variant: StoredFile
    threads: int | None = None


JobSpec = (
    ImportSpec
    | QuantizeSpec
    | CalibrateSpec
    | EvaluateSpec
    | BudgetSpec
    | RebuildSpec
    | PullSpec
    | AdapterSpec
    | BundleSpec
    | VerifySpec
)

SPECS: dict[JobKind, type[JobSpec]] = {
    JobKind.IMPORT: ImportSpec,
    JobKind.QUANTIZE: QuantizeSpec,
    JobKind.CALIBRATE: CalibrateSpec,
    JobKind.EVALUATE: EvaluateSpec,
    JobKind.BUDGET: BudgetSpec,
    JobKind.REBUILD: RebuildSpec,
    JobKind.PULL: PullSpec,
    JobKind.ADAPTER: AdapterSpec,
    JobKind.BUNDLE: BundleSpec,
    JobKind.VERIFY: VerifySpec,
}
"""What the spec of a job of each kind is."""


@dataclass(frozen=True, slots=True)
class Step:
    """One visible part of a job, e.g. one level. `status` uses the words of `JobStatus`."""

    name: str
    status: JobStatus = JobStatus.QUEUED
    progress: float = 0.0  # 0 to 1
    detail: str | None = None  # e.g. "tensor 12 of 56"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: code and message of a `QuantryError`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the job table. Times are RFC 3339, UTC; durations are seconds."""

    id: str
    kind: JobKind
    status: JobStatus
    spec: JobSpec
    progress: float
    steps: tuple[Step, ...]
    eta_seconds: float | None
    result: tuple[str, ...]  # canonical names of the variants made or found; digests of importance matrices
    error: JobError | None
    attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job. `id` counts up within the job; None for progress that is not stored."""

    id: int | None
    kind: str  # "status", "progress", "level"
    job: Job
    created_at: str


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file a job child has written to the store's incoming folder, hashed, validated and fsynced."""

    path: str
    digest: str
    size_bytes: int
    facts: FileFacts
    plans: tuple[LevelPlan, ...] = ()
    duration_seconds: float = 0.0
