"""Registries that speak as Ollama's does: a manifest for each tag, blobs by their digest, read without an account.

In children. A manifest is small and bounded; a digest is one only in its full form; a realm that asks for a token is
followed at the registry's own origin alone.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import urlencode

import msgspec

from service.domain.addresses import RegistryAddress
from service.domain.errors import ModelNotFound, NotSupported, QuantryError, RemoteFailed, RemoteRefused
from service.domain.names import parse_digest, split_tag
from service.domain.quants import find_label
from service.domain.reach import admit, origin_of, shown
from service.domain.remote import RemoteFile, RemoteLevel, RemoteModel
from service.remote.guard import Answer, Dropped, Network, decoded
from service.remote.patience import BUSY, Patience, insist

_MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MAX_CONFIG_BYTES = 64 * 1024
_MODEL = "application/vnd.ollama.image.model"
_ALSO_NEEDED = {
    "application/vnd.ollama.image.adapter": "an adapter",
    "application/vnd.ollama.image.tensor": "tensors in files of their own",
}
_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
_CHALLENGE = re.compile(r'(realm|service|scope)="([^"]{1,500})"')


class _Layer(msgspec.Struct):
    digest: str
    size: int
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []
    config: Any = None  # a layer too, or what a registry thinks is one


class _Config(msgspec.Struct):
    file_type: str = ""


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def look_up(address: RegistryAddress, network: Network, patience: Patience) -> RemoteModel:
    """The one level that the tag means, with the digest of its manifest.

    Raises ModelNotFound, NotSupported for what is more than one GGUF file, RemoteRefused, RemoteFailed, Forbidden.
    """
    origin = origin_of(address, network.access)
    base = f"{origin}/v2/{address.key.namespace}/{address.key.model}"
    host = admit(origin, network.access.hosts).host
    body = insist(lambda: _manifest(base, address.digest or address.tag, address, network), patience, host)
    revision = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if address.digest not in (None, revision):
        raise RemoteFailed(f"{shown(host)} sends another manifest than was asked for; try again later.")
    place = admit(base, network.access.hosts)
    manifest: _Manifest = decoded(body, _Manifest, place)
    models = [layer for layer in manifest.layers if layer.media_type == _MODEL]
    for layer in manifest.layers:
        if layer.media_type in _ALSO_NEEDED:
            raise NotSupported(
                f"{address.display} consists of {_ALSO_NEEDED[layer.media_type]} beside its model; pull the model and "
                "the adapter from where they were made.",
                param="from",
            )
    if len(models) != 1:
        raise NotSupported(f"{address.display} is not one model file; pull it from the hub instead.", param="from")
    layer = models[0]
    try:
        digest = parse_digest(layer.digest)
    except Exception as error:
        raise RemoteFailed(f"{shown(host)} names a blob by what is no digest.") from error
    if not 0 < layer.size < 1 << 60:
        raise RemoteFailed(f"{shown(host)} gives a blob's size as {layer.size} bytes.")
    file = RemoteFile(digest, f"{base}/blobs/{digest}", layer.size, digest)
    label = split_tag(address.tag)[1] or _told_level(manifest.config, base, network)
    return RemoteModel(address.display, revision, (RemoteLevel(label or "UNKNOWN", address.tag, (file,)),))


def _told_level(config: Any, base: str, network: Network) -> str | None:
    """The level that the model's config names; None where it says nothing that is understood: the file does."""
    try:
        layer = msgspec.convert(config, _Layer)
        if not 0 < layer.size <= _MAX_CONFIG_BYTES:
            return None
        digest = parse_digest(layer.digest)
        with network.get(f"{base}/blobs/{digest}") as answer:
            body = answer.content(_MAX_CONFIG_BYTES) if answer.status == 200 else b""
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            return None
        return find_label(msgspec.json.decode(body, type=_Config).file_type)
    except (QuantryError, Dropped, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _manifest(base: str, reference: str, address: RegistryAddress, network: Network) -> bytes:
    url = f"{base}/manifests/{reference}"
    with network.get(url, {"Accept": _ACCEPT}, may_leave=False) as answer:
        if answer.status == 200:
            return answer.content(_MAX_MANIFEST_BYTES)
        challenge = answer.headers.get("www-authenticate", "") if answer.status == 401 else ""
        if not challenge:
            raise _meant(answer, address)
    network.permit(base, f"Bearer {_token(challenge, base, network)}")  # for the blobs as well
    with network.get(url, {"Accept": _ACCEPT}, may_leave=False) as answer:
        if answer.status != 200:
            raise _meant(answer, address)
        return answer.content(_MAX_MANIFEST_BYTES)


def _token(challenge: str, base: str, network: Network) -> str:
    """A token for everybody, from the realm that the registry names."""
    fields = dict(_CHALLENGE.findall(challenge))
    here = admit(base, network.access.hosts)
    realm = fields.pop("realm", "")
    if not realm or admit(realm, network.access.hosts).origin != here.origin or "?" in realm:
        raise RemoteRefused(f"{shown(here.host)} asks for an account elsewhere; only public models are pulled.")
    with network.get(f"{realm}?{urlencode(fields)}", may_leave=False) as answer:
        if answer.status != 200:
            raise RemoteRefused(f"{shown(here.host)} gives no token for public models (status {answer.status}).")
        found: _Token = decoded(answer.content(_MAX_MANIFEST_BYTES), _Token, here)
    token = found.token or found.access_token
    if not re.fullmatch(r"[\x21-\x7e]{1,8192}", token):
        raise RemoteRefused(f"{shown(here.host)} gives no token for public models.")
    return token


def _meant(answer: Answer, address: RegistryAddress) -> Exception:
    host, status = shown(answer.place.host), answer.status
    if status in BUSY:
        return Dropped(f"it answers with status {status}", answer.retry_after_seconds)
    if status in (401, 403):
        return RemoteRefused(f"{host} does not give {address.display} without an account.")
    if status == 404:
        return ModelNotFound(f"{host} has no {address.display}; check how it is written.", param="from")
    return RemoteFailed(f"{host} answers with status {status}; try again later.")
