"""What the store holds, as values: shapes, variants with their lineage, and what could be made from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.domain.evaluation import SearchReport
from service.domain.names import ModelKey
from service.domain.recipes import Recipe


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Facts of a GGUF header that size its memory. Counts; 0 where the file does not say."""

    architecture: str
    layers: int = 0
    embedding: int = 0  # width of the hidden state
    heads: int = 0
    kv_heads: int = 0  # heads of the key-value cache (grouped-query attention), summed over layers / layers
    key_length: int = 0  # of one head
    value_length: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    experts: int = 0
    context_length: int = 0  # the context the model was trained for, tokens
    sliding_window: int = 0
    cache_heads: int = 0  # heads of the key-value cache of all layers together; 0: layers x kv_heads
    expert_width: int = 0  # feed-forward of all experts that one token goes to
    state_values: int = 0  # recurrent state of one sequence, in all layers together
    generates: bool = True  # False: it looks ahead, keeps no cache and gives embeddings only


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. `shape` is in ggml's order: row length first."""

    name: str
    shape: tuple[int, ...]
    type: str  # ggml type name, e.g. "Q4_K"
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """What a recipe, or one level without options, would make of a file; by llama.cpp's own dry run.

    `size_bytes` is exact to the byte. `needs_imatrix`: some tensor's type asks for an importance matrix, whether one
    was given or not. `fallbacks` names the tensors whose shape forced another type. `types` counts tensors by ggml
    type. `error` is the reason when it cannot be made of this model. `tensors` is every tensor of the result, in
    the file's order, and `notes` what its owner should know first; both only in plans that were asked for, not in
    those that are kept of every file.
    """

    quantization: str
    size_bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    fallbacks: tuple[str, ...] = ()
    types: tuple[tuple[str, int], ...] = ()
    error: str | None = None
    tensors: tuple[TensorInfo, ...] = ()
    notes: tuple[str, ...] = ()


TEMPLATE_OK = "ok"
TEMPLATE_BROKEN = "broken: "
"""What a verdict on a chat template that is of no use begins with; the reason follows."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a validated GGUF file says of itself.

    `template_verdict` is what trying its chat template has shown: `ok`, `refuses` and what, or `broken: ` and why; None
    where it has none, or was not tried.
    """

    quantization: str  # label, e.g. "F16"; "UNKNOWN" when no label fits
    parameters: int
    bits_per_weight: float  # tensor bytes * 8 / parameters
    tensor_bytes: int
    shape: ModelShape
    general_name: str | None = None
    license: str | None = None
    has_chat_template: bool = False
    quantized_tensors: bool = False  # some tensor has a quantized type
    types: tuple[tuple[str, int], ...] = ()  # tensors by ggml type
    template_verdict: str | None = None

    @property
    def template_fault(self) -> str | None:
        """Why the chat template is of no use; None where it is of some, or nobody knows."""
        verdict = self.template_verdict
        broken = verdict is not None and verdict.startswith(TEMPLATE_BROKEN)
        return verdict.removeprefix(TEMPLATE_BROKEN) if verdict is not None and broken else None


@dataclass(frozen=True, slots=True)
class RemoteOrigin:
    """Where the bytes of a variant were fetched from: enough to fetch the same ones again.

    `revision` is what the address meant at the time (a commit of a hub, the digest of a manifest), None where there is
    no such thing.
    """

    address: str  # canonical, as `domain.addresses` writes it
    revision: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a variant comes from. `source_digest` None: it was imported. `lossy_source` stays true for ever."""

    origin: str  # "imported", "pulled" or "quantized"
    source_digest: str | None = None
    source_name: str | None = None
    recipe: Recipe | None = None
    llama_build: str | None = None
    duration_seconds: float | None = None
    lossy_source: bool = False
    search: SearchReport | None = None  # how the mix of a budget run was found
    job_id: str | None = None  # what made it
    remote: RemoteOrigin | None = None  # where it was pulled from
    converted_from: str | None = None  # what it was before it was this GGUF file, e.g. "safetensors, BF16"


@dataclass(frozen=True, slots=True)
class Outside:
    """A file that was adopted where it is: where it lies, and how it looked when its bytes were last hashed."""

    path: str  # absolute, without symbolic links
    size_bytes: int
    modified_ns: int  # since the epoch


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization of one model: a canonical name for one blob."""

    id: int
    model: ModelKey
    flavour: str  # "" or e.g. "135m-instruct"
    quantization: str
    digest: str  # "sha256:<64 hex>"
    size_bytes: int
    facts: FileFacts
    lineage: Lineage
    created_at: str  # RFC 3339, UTC
    corrupt: bool = False
    tags: tuple[str, ...] = field(default=())  # free words that point here ("latest", "prod")
    pinned: bool = False  # not to be pruned

    @property
    def tag(self) -> str:
        """Canonical tag: the label, after the flavour when there is one."""
        return f"{self.flavour}-{self.quantization}" if self.flavour else self.quantization

    @property
    def name(self) -> str:
        """Canonical name, e.g. `smollm2:Q4_K_M`; hosts and namespaces only where they are not the defaults."""
        return f"{self.model.display}:{self.tag}"

    @property
    def lossy(self) -> bool:
        """True when precision has already been lost: a quantized file, or anything made from one."""
        return self.lineage.lossy_source or self.facts.quantized_tensors


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a LoRA adapter's GGUF file says of itself."""

    architecture: str
    rank: int
    alpha: float
    tensors: int
    parameters: int
    general_name: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A named LoRA adapter of one model."""

    model: ModelKey
    name: str
    digest: str
    size_bytes: int
    facts: AdapterFacts
    created_at: str  # RFC 3339, UTC
    corrupt: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """A figure measured here, on this variant. `unit` is spelled out ("seconds", "tokens_per_second")."""

    name: str
    value: float
    unit: str
    created_at: str
