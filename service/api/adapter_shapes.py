"""Shapes of adapters: as requests name them, as they are added, as they are shown. pydantic, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from service.api.shapes import Listing, Name, ServerPath, Shape, Strict, UploadDigest, UploadedFiles
from service.domain.adapters import MAX_ADAPTERS, MAX_SCALE, NAME_PATTERN
from service.domain.addresses import MAX_ADDRESS
from service.domain.generation import AdapterUse

MAX_FILES = 64

AdapterName = Annotated[
    str,
    StringConstraints(pattern=f"^{NAME_PATTERN}$"),
    Field(description="1 to 80 letters, digits, `_`, `.` and `-`; without regard to case."),
]
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, description="How much of it is added to the weights.")]


class AdapterUseBody(Strict):
    """An adapter of the model, and how much of it."""

    name: AdapterName
    scale: Scale = 1.0


AdapterUses = Annotated[
    list[AdapterName | AdapterUseBody],
    Field(max_length=MAX_ADAPTERS, description="LoRA adapters of the model: names, or names with a scale."),
]


def adapter_uses(asked: Sequence[str | AdapterUseBody] | None) -> tuple[AdapterUse, ...]:
    """What a body names, as a domain value."""
    return tuple(AdapterUse(use) if isinstance(use, str) else AdapterUse(use.name, use.scale) for use in asked or ())


_SOURCES = ("path", "digest", "files", "from")
_NULL: dict[str, Any] = {"type": "null"}
_ONE_SOURCE: list[Any] = [
    {
        "required": [source],
        "properties": {source: {"type": "object" if source == "files" else "string"}}
        | {other: _NULL for other in _SOURCES if other != source},
    }
    for source in _SOURCES
]


class AdapterBody(Strict):
    """A LoRA adapter to take in for a model: one GGUF file, or the files of a PEFT adapter."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "gloss", "name": "tone", "digest": "sha256:" + "0" * 64}],
            "oneOf": _ONE_SOURCE,
        }
    )

    model: Name
    name: AdapterName
    path: ServerPath | None = Field(
        None, description="Absolute path on the server: a GGUF file, or the folder of a PEFT adapter."
    )
    digest: UploadDigest | None = Field(None, description="Digest of a GGUF file put under /v1/blobs.")
    files: Annotated[UploadedFiles, Field(min_length=1, max_length=MAX_FILES)] | None = Field(
        None, description="The files of a PEFT adapter: their names, and the digests they were put under."
    )

    source: Annotated[str, StringConstraints(min_length=1, max_length=MAX_ADDRESS)] | None = Field(
        None, alias="from", description="Address of an adapter elsewhere: hf.co/owner/repo, or of a GGUF file."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.path, self.digest, self.files, self.source)) != 1:
            raise ValueError("Send exactly one of path, digest, files and from.")
        return self


class AdapterShape(Shape):
    """A LoRA adapter of a model."""

    name: str
    object: Literal["adapter"] = "adapter"
    model: str
    digest: str
    size_bytes: int
    architecture: str
    rank: int = Field(description="The highest of its products.")
    alpha: float = Field(description="A product counts alpha / rank times the scale; 0 is the same as the rank.")
    tensors: int
    parameters: int
    general_name: str | None = Field(description="What the file calls itself.")
    corrupt: bool
    created_at: str


class AdapterListing(Listing[AdapterShape]):
    """Adapters."""


class GoneAdapterShape(Shape):
    """An adapter that has been deleted."""

    id: str
    object: Literal["adapter"] = "adapter"
    model: str
    deleted: Literal[True] = True
