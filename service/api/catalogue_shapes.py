"""Shapes of plans, jobs, variants, models, blobs and workers. pydantic, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from service.api.laboratory_shapes import CardShape, RecipeShape, SearchShape
from service.api.shapes import (
    MAX_TOKENS,
    MODEL_PATTERN,
    WHOLE,
    Listing,
    Name,
    ServerPath,
    Shape,
    Strict,
    UploadDigest,
    UploadedFiles,
)
from service.domain.addresses import MAX_ADDRESS

CacheWord = Literal["auto", "f16", "q8_0", "q4_0"]


class TensorShape(Shape):
    """One tensor of a file. `shape` is in ggml's order: row length first."""

    name: str
    shape: list[int]
    type: str
    size_bytes: int


class PlanShape(Shape):
    """What one level of a model would be. `size_bytes` is exact."""

    quantization: str
    source: str = Field(description="Canonical name of the variant it would be made from.")
    size_bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    fallbacks: list[str] = Field(description="Tensors whose shape forces another type than the level's own.")
    types: dict[str, int] = Field(description="Tensors by ggml type.")
    estimated_seconds: float | None = Field(description="What making it may take on this machine.")
    memory_bytes: int = Field(description="What serving takes: one request of `context`, else what would be reserved.")
    fits: bool = Field(description="Whether one request, of `context` tokens if given, is within the memory budget.")
    fits_gpu: bool | None = Field(description="Whether that fits the GPU whole; None: there is none to use.")
    fits_disk: bool = Field(description="Whether the disk has room for the file beside what it must keep free.")
    notes: list[str] = Field(description="What to know before making it, e.g. that it is larger than its source.")
    tensors: list[TensorShape] | None = Field(None, description="Every tensor, where `tensors` asks for them.")
    error: str | None = Field(description="Why it cannot be made of this model.")


class StepShape(Shape):
    """One visible part of a job."""

    name: str
    status: str
    progress: float
    detail: str | None


class JobErrorShape(Shape):
    """Why a job failed."""

    code: str
    message: str


class JobShape(Shape):
    """A job. `progress` runs from 0 to 1; times are RFC 3339."""

    id: str
    object: Literal["job"] = "job"
    kind: Literal[
        "import", "quantize", "calibrate", "evaluate", "budget", "rebuild", "pull", "adapter", "bundle", "verify"
    ]
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    model: str = Field(description="The name to import under, or the variant that the job is about.")
    levels: list[str] = Field(description="Levels to make, or tags of the variants to measure.")
    progress: float
    steps: list[StepShape]
    eta_seconds: float | None
    result: list[str] = Field(description="Names of the variants made, found or measured; digests of matrices.")
    error: JobErrorShape | None
    attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None


class JobListing(Listing[JobShape]):
    """Jobs."""


class PlanListing(Listing[PlanShape]):
    """Plans, one for each level that was asked for."""


# --- the catalogue -----------------------------------------------------------------------------------------------


class ReferenceShape(Shape):
    """Published figures of a level, for one 7B model. Never mixed with what was measured here."""

    size_gib_7b: float
    perplexity_added_7b: float | None = Field(description="Added to F16; None: lossless.")
    source: str


class MeasurementShape(Shape):
    """A figure measured here, on this variant."""

    name: str
    value: float
    unit: str
    created_at: str


class RemoteOriginShape(Shape):
    """Where a variant was pulled from: enough to fetch the same bytes again."""

    address: str
    revision: str | None = Field(description="What the address meant: a commit, or the digest of a manifest.")
    files: list[str]


class LineageShape(Shape):
    """Where a variant comes from. `lossy_source` stays true for ever."""

    origin: str
    source: str | None
    source_digest: str | None
    recipe: RecipeShape | None
    llama_build: str | None
    duration_seconds: float | None
    lossy_source: bool
    search: SearchShape | None = Field(None, description="How the mix of a budget was found.")
    converted_from: str | None = Field(None, description="What it was before it was this GGUF file.")
    remote: RemoteOriginShape | None = Field(None, description="Where it was pulled from.")


class VariantShape(Shape):
    """One quantization of one model."""

    name: str
    aliases: list[str]
    model: str
    quantization: str
    bits_per_weight: float
    size_bytes: int
    digest: str
    parameters: int
    context_length: int
    recommended: bool
    advice: str | None
    reference: ReferenceShape | None
    measured: list[MeasurementShape]
    card: CardShape | None = Field(None, description="What the last evaluation measured.")
    memory_bytes: int = Field(
        description="What serving takes: one request of `context`, else what this server reserves."
    )
    loaded: bool
    lossy: bool
    corrupt: bool = Field(description="Its bytes are wrong or gone; it is not served until they are repaired.")
    pinned: bool = Field(False, description="Kept from being pruned or deleted.")
    lineage: LineageShape
    created_at: str
    license: str | None
    chat_template: str | None = Field(
        None, description="What trying the chat template has shown: `ok`, `refuses` and what, or `broken: ` and why."
    )


class AvailableShape(Shape):
    """A level that is not stored and could be made from a source that is."""

    model: str
    quantization: str
    source: str
    size_bytes: int
    bits_per_weight: float
    memory_bytes: int
    fits: bool
    needs_imatrix: bool
    lossy_source: bool = Field(description="The source has lost precision: quantize asks for allow_requantize.")
    error: str | None
    advice: str | None
    recommended: bool


class VariantListing(Listing[VariantShape]):
    """Every variant, and what could be made."""

    available: list[AvailableShape]


class DeletedShape(Shape):
    """What is gone."""

    id: str
    object: Literal["variant", "model"]
    deleted: Literal[True] = True
    variants: list[str]
    orphaned: list[str] = Field(
        default_factory=list, description="What was made from it and stays, but cannot be made again without it."
    )


class VerifiedShape(Shape):
    """Whether a blob's bytes still match its digest."""

    name: str
    digest: str
    size_bytes: int
    intact: bool
    duration_seconds: float


def _one_of(*sources: str) -> Any:
    """Exactly one of them is sent, with a name; only for an address the name may be left out.

    And only what lies at a path is adopted.
    """
    return [
        {
            "required": [source] if source == "from" else [source, "name"],
            "properties": {
                source: {"not": {"type": "null"}},
                **({} if source == "from" else {"name": {"type": "string"}}),
                **({} if source == "path" else {"adopt": {"const": "copy"}}),
                **{other: {"type": "null"} for other in sources if other != source},
            },
        }
        for source in sources
    ]


IMPORT_SOURCES = ("path", "digest", "files", "from")
MAX_IMPORT_FILES = 4096


class ImportBody(Strict):
    """A model to bring into the store: uploaded before, lying on the server, or to be pulled from elsewhere."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "gloss", "digest": "sha256:" + "0" * 64}, {"from": "hf.co/owner/repo:Q4_K_M"}],
            "oneOf": _one_of(*IMPORT_SOURCES),
        }
    )

    name: Name | None = Field(None, description="What to call it; only with `from` it may be left out.")
    path: ServerPath | None = Field(
        None, description="Absolute path on the server: of a file, or of the folder of a checkpoint."
    )
    digest: UploadDigest | None = Field(None, description="Digest of a blob put under /v1/blobs.")
    files: Annotated[UploadedFiles, Field(min_length=1, max_length=MAX_IMPORT_FILES)] | None = Field(
        None, description="The files of a checkpoint or of a split: their names, and the digests put before."
    )
    source: Annotated[str, StringConstraints(min_length=1, max_length=MAX_ADDRESS)] | None = Field(
        None, alias="from", description="Address of a model elsewhere, as `GET /v1/remote/{address}` takes it."
    )

    convert_to: Literal["F32", "F16", "BF16"] | None = Field(
        None, description="What the floats of a checkpoint become; F16 where it is left out, BF16 for one in BF16."
    )
    adopt: Literal["copy", "link", "reference"] = Field(
        "copy", description="What becomes of the file at `path`: copied, linked into the store, or left where it is."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.path, self.digest, self.files, self.source)) != 1:
            raise ValueError("Send exactly one of path, digest, files and from.")
        if self.name is None and self.source is None:
            raise PydanticCustomError("missing_field", "The field 'name' is missing; send it.", {"param": "name"})
        if self.adopt != "copy" and self.path is None:
            raise ValueError("Only a file on the server is adopted; send its path.")
        return self


class BundleBody(Strict):
    """A bundle to take in: one uploaded before, or one that lies on the server."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"path": "/models/gloss.tar"}],
            "oneOf": [
                {"required": ["path"], "properties": {"path": {"type": "string"}, "digest": {"type": "null"}}},
                {"required": ["digest"], "properties": {"digest": {"type": "string"}, "path": {"type": "null"}}},
            ],
        }
    )

    path: ServerPath | None = Field(None, description="Absolute path of a file on the server.")
    digest: UploadDigest | None = Field(None, description="Digest of a blob put under /v1/blobs.")
    name: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=600), Field(json_schema_extra={"pattern": MODEL_PATTERN})
        ]
        | None
    ) = Field(None, description="The model's new name, without a tag; by default the one in the bundle.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.digest is None):
            raise ValueError("Send exactly one of path and digest.")
        return self


class CopyBody(Strict):
    """A second name for the same bytes."""

    source: Name
    destination: Name


class BlobShape(Shape):
    """A stored blob."""

    digest: str
    size_bytes: int


class PieceShape(Shape):
    """How far an upload in pieces is: its first `received_bytes` are here."""

    digest: str
    size_bytes: int
    received_bytes: int


# --- workers -----------------------------------------------------------------------------------------------------


class LoadBody(Strict):
    """What to load a variant with; what is left out is the server's."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"context_length": 8192, "cache_type_k": "q8_0"}]})

    context_length: Annotated[int, Field(ge=64, le=MAX_TOKENS), WHOLE] | None = Field(
        None, description="Tokens of context for each request."
    )
    parallel: Annotated[int, Field(ge=1, le=256), WHOLE] | None = Field(
        None, description="Requests that run at the same time."
    )
    cache_type_k: CacheWord | None = Field(None, description="Type of the cached keys.")
    cache_type_v: CacheWord | None = Field(None, description="Type of the cached values.")


class WorkerShape(Shape):
    """One worker process and the variant in it."""

    name: str
    digest: str
    state: str
    rung: str = Field(description="Which step of the launch ladder it runs on.")
    pid: int | None
    context_length: int
    parallel: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    adapters: list[str] = Field(default_factory=list, description="LoRA adapters beside the weights.")
    threads: int = Field(0, description="Threads that it computes with now.")
    free_cells: int = Field(0, description="Tokens of the cache that no running request holds.")
    cached_cells: int = Field(0, description="Those among them that are kept for prompts that begin alike.")
    memory_bytes: int
    active_requests: int
    queued_requests: int
    loaded_at: str | None
    expires_at: str | None
    last_error: str | None


class WorkerListing(Listing[WorkerShape]):
    """Every worker, and how many requests wait for one."""

    queue_depth: int
    draining: bool


class UnloadedShape(Shape):
    """A variant that is no longer in memory."""

    name: str
    loaded: Literal[False] = False
