"""The hub: what a repository holds at one commit, with the digests of its files. In children."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec

from service.domain.addresses import HubAddress, is_commit, quoted
from service.domain.errors import ModelNotFound, RemoteFailed, RemoteRefused
from service.domain.reach import shown
from service.domain.remote import RemoteFile, RemoteModel
from service.remote.guard import Dropped, Network, NotOk
from service.remote.levels import levels_of
from service.remote.patience import BUSY, Patience, insist

MAX_FILES = 20_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][^\x00-\x1f\x7f\\?#]{0,399}")


class _Lfs(msgspec.Struct):
    sha256: str | None = None
    size: int | None = None


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(name="blobId", default=None)
    lfs: _Lfs | None = None


class _Safetensors(msgspec.Struct):
    parameters: dict[str, int] = {}


class _Repository(msgspec.Struct):
    sha: str
    siblings: list[_Sibling] = []
    safetensors: _Safetensors | None = None
    config: Any = None  # of the model, whatever its repository says there


def look_up(address: HubAddress, network: Network, patience: Patience) -> tuple[RemoteModel, tuple[RemoteFile, ...]]:
    """What the repository holds, and all its files.

    Raises ModelNotFound, RemoteRefused for what is gated or private, RemoteFailed, Forbidden.
    """
    hub = network.access.hub
    revision = address.revision or "main"
    url = f"{hub}/api/models/{quoted(address.repo)}/revision/{quoted(revision).replace('/', '%2F')}?blobs=true"

    def ask() -> _Repository:
        try:
            found: _Repository = network.json(url, _Repository)
        except NotOk as refused:
            raise _meant(refused, address, has_token=network.access.hub_token is not None) from None
        return found

    found = insist(ask, patience, "the hub")
    is_another = is_commit(revision) and found.sha != revision
    if not is_commit(found.sha) or is_another or len(found.siblings) > MAX_FILES:
        raise RemoteFailed("The hub answers with something else than was asked for.")
    files = tuple(
        _file(entry, f"{hub}/{quoted(address.repo)}/resolve/{found.sha}/{quoted(entry.rfilename)}")
        for entry in found.siblings
        if is_plain(entry.rfilename)
    )
    parameters = found.safetensors.parameters if found.safetensors else {}
    level = "BF16" if parameters and max(parameters, key=lambda kind: parameters[kind]) == "BF16" else "F16"
    levels = levels_of(files, level)
    if _is_quantized(found.config):
        levels = tuple(replace(one, lossy_source=one.converts) for one in levels)
    return RemoteModel(address.display, found.sha, levels), files


def _is_quantized(config: Any) -> bool:
    """Whether the config of a checkpoint says that its weights are no floats any more: GPTQ, AWQ, NF4, FP8."""
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and bool(quantization.get("quant_method"))


def is_plain(name: str) -> bool:
    """Whether a name from the hub is a path below the repository, without tricks."""
    parts = name.split("/")
    return _NAME.fullmatch(name) is not None and all(part not in ("", ".", "..") for part in parts)


def _file(entry: _Sibling, url: str) -> RemoteFile:
    lfs = entry.lfs
    if lfs is not None and lfs.sha256 and _SHA256.fullmatch(lfs.sha256):
        size = lfs.size if lfs.size is not None else entry.size
        return RemoteFile(entry.rfilename, url, _size(size), f"sha256:{lfs.sha256}")
    oid = entry.blob_id if entry.blob_id and _SHA1.fullmatch(entry.blob_id) else None
    return RemoteFile(entry.rfilename, url, _size(entry.size), None, oid)


def _size(size: int | None) -> int | None:
    return size if size is not None and 0 <= size < 1 << 60 else None


def _meant(refused: NotOk, address: HubAddress, *, has_token: bool) -> Exception:
    status, repo = refused.answer.status, shown(address.repo)
    if status in BUSY:
        return Dropped(f"the hub answers with status {status}", refused.answer.retry_after_seconds)
    if status in (401, 403):
        remedy = (
            "accept its terms on its page with the account that QUANTRY_HUB_TOKEN belongs to"
            if has_token
            else "if it is there, accept its terms on its page and set QUANTRY_HUB_TOKEN on the server"
        )
        return RemoteRefused(f"The hub does not show {repo}: it is not there, private or gated; {remedy}.")
    if status == 404:
        at = f" at {shown(address.revision)}" if address.revision else ""
        return ModelNotFound(f"The hub has no {repo}{at}; check how it is written.", param="from")
    return RemoteFailed(f"The hub answers with status {status}; try again later.")
