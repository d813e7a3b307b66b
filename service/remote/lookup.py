"""What lies at an address, whatever kind of address it is. In children."""

from __future__ import annotations

from dataclasses import dataclass

from service.domain.addresses import Address, FileAddress, HubAddress, RegistryAddress, parse_address
from service.domain.errors import ModelNotFound, RemoteFailed, RemoteRefused
from service.domain.reach import admit, shown
from service.domain.remote import RemoteFile, RemoteLevel, RemoteModel
from service.remote import hub, registry
from service.remote.guard import Dropped, Network
from service.remote.levels import chosen, level_in
from service.remote.patience import BUSY, Patience, insist


@dataclass(frozen=True, slots=True)
class Found:
    """What lies there, and the level that the address means."""

    model: RemoteModel
    level: RemoteLevel


def look_up(text: str, network: Network, *, memory_bytes: int = 0, patience: Patience | None = None) -> Found:
    """Look at an address. `memory_bytes` is what a recommended level should fit in, 0: nothing is known.

    Raises InvalidParameter, ModelNotFound, NotSupported, RemoteRefused, RemoteFailed, Forbidden.
    """
    address: Address = parse_address(text)
    patience = patience or Patience()
    if isinstance(address, HubAddress):
        model, files = hub.look_up(address, network, patience)
        return Found(model, chosen(model.levels, files, address.choice, memory_bytes))
    if isinstance(address, RegistryAddress):
        model = registry.look_up(address, network, patience)
    else:
        model = _files(address, network, patience)
    return Found(model, model.levels[0])


def _files(address: FileAddress, network: Network, patience: Patience) -> RemoteModel:
    files = tuple(_file(url, network, patience) for url in address.urls)
    name = files[0].name
    return RemoteModel(address.display, None, (RemoteLevel(level_in(name) or "UNKNOWN", name, files),))


def _file(url: str, network: Network, patience: Patience) -> RemoteFile:
    """How large a file is, by asking for its first byte; nobody says what its digest will be."""
    host = admit(url, network.access.hosts).host
    name = url.rpartition("/")[2]

    def ask() -> int | None:
        with network.get(url, {"Range": "bytes=0-0"}) as answer:
            if answer.status == 200:
                return answer.length
            if answer.status == 206:
                total = answer.headers.get("content-range", "").rpartition("/")[2]
                return int(total) if total.isdecimal() and len(total) < 19 else None
            if answer.status in BUSY:
                raise Dropped(f"it answers with status {answer.status}", answer.retry_after_seconds)
            if answer.status in (401, 403):
                raise RemoteRefused(f"{shown(host)} does not give {shown(name)} to everybody.")
            if answer.status in (404, 410):
                raise ModelNotFound(f"{shown(host)} has no {shown(name)}; check the address.", param="from")
            raise RemoteFailed(f"{shown(host)} answers with status {answer.status}; try again later.")

    return RemoteFile(name, url, insist(ask, patience, host))
