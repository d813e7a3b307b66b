"""Shapes of models elsewhere. pydantic, and nothing else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.api.shapes import Shape


class RemoteFileShape(Shape):
    """A file elsewhere."""

    name: str = Field(description="Its path there.")
    size_bytes: int | None
    digest: str | None = Field(description="As the other server lists it; None: it does not.")


class RemoteLevelShape(Shape):
    """One level that can be pulled."""

    level: str
    address: str = Field(description="What to pull for this level, whatever is recommended later.")
    size_bytes: int = Field(description="Of all files: what a pull fetches.")
    files: list[RemoteFileShape]
    converts: bool = Field(description="A checkpoint, of which a GGUF file is made here.")
    lossy_source: bool = Field(False, description="The checkpoint is quantized itself: its floats have lost precision.")
    recommended: bool = Field(description="What the address means where it names no level.")
    fits: bool = Field(description="Whether it can be expected to run within the memory budget.")
    fits_disk: bool = Field(description="Whether the disk has room for it beside what it must keep free.")
    stored: list[str] = Field(description="Names of variants here that are this very file.")


class RemoteShape(Shape):
    """What lies at an address."""

    object: Literal["remote"] = "remote"
    address: str = Field(description="In canonical form.")
    name: str | None = Field(description="The name that a pull gives without one; None: none can be made of it.")
    revision: str | None = Field(description="What the address means now: a commit, or the digest of a manifest.")
    choice: str = Field(description="The level, or the file, that the address means.")
    levels: list[RemoteLevelShape]
