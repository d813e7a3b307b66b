"""Models elsewhere as values: how they may be reached, what lies there. Where is `addresses.py`, whether `reach.py`."""

from __future__ import annotations

from dataclasses import dataclass

from service.domain.names import DEFAULT_HOST
from service.domain.secrets import Secret

DEFAULT_HUB_URL = "https://huggingface.co"
DEFAULT_REGISTRY_URL = f"https://{DEFAULT_HOST}"
DEFAULT_HOSTS = (
    "huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co",
    DEFAULT_HOST, "dd20bb891979d25aebc8bec07b2b3bbc.r2.cloudflarestorage.com",
)  # fmt: skip
"""The hub and Ollama's registry, and where they keep their files.

The hub sends on to storage by region, under its own two domains, and its documents ask to allow both whole. The
registry's blobs lie in one account of a storage that anybody can rent: that account's host alone is allowed.
"""

CHECKPOINT = "safetensors"
"""The choice that means a repository's checkpoint and none of its GGUF files."""


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """What a child may do on the network. Handed over with its task, never through its environment.

    `hosts` are patterns of names (`hf.co`, `*.hf.co`) that are reached over HTTPS at public addresses only, or whole
    origins (`http://127.0.0.1:8900`) that the operator trusts as they are. `hub` and `registry` are origins.
    """

    hosts: tuple[str, ...] = DEFAULT_HOSTS
    hub: str = DEFAULT_HUB_URL
    registry: str = DEFAULT_REGISTRY_URL
    hub_token: Secret | None = None
    connections: int = 4  # at the same time
    bytes_per_second: int = 0  # 0: no limit
    stall_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file elsewhere. `digest` is "sha256:<64 hex>", `git_oid` the SHA-1 of git's own object; None: nobody says."""

    name: str  # its path there
    url: str
    size_bytes: int | None
    digest: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteLevel:
    """What makes one variant. `choice` is what an address says to mean it.

    `converts`: a checkpoint, of which a GGUF file is made here; `size_bytes` is what is fetched. `lossy_source`: it
    is quantized itself (GPTQ, AWQ, NF4, FP8), as far as its listing says.
    """

    level: str
    choice: str
    files: tuple[RemoteFile, ...]
    converts: bool = False
    lossy_source: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all files; those of unknown size count nothing."""
        return sum(file.size_bytes or 0 for file in self.files)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What lies at an address, as of `revision`: a commit of the hub, the digest of a manifest, or nothing."""

    address: str  # as asked for
    revision: str | None
    levels: tuple[RemoteLevel, ...]


# What serving takes beside the weights, roughly: caches and buffers of a small context.
_MEMORY_SHARE = 1.2


def fits(level: RemoteLevel, memory_bytes: int) -> bool:
    """Whether a level can be expected to run in so much memory; 0: nothing is known of it."""
    return memory_bytes <= 0 or level.size_bytes * _MEMORY_SHARE <= memory_bytes
