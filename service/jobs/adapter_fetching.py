"""An adapter's files from elsewhere: which of those at an address they are, fetched into a folder. In the job's child.

What came earlier and broke off goes on in the same folder. Knows the room that fetches, and no more of the network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from service.domain.errors import DiskFull, ModelNotFound, NotSupported
from service.domain.remote import Address, FileAddress, HubAddress, RemoteFile, parse_address, shown
from service.gguf.peft import CONFIG, STEM
from service.jobs.limits import limit_file_size
from service.jobs.messages import AdapterTask, NamedPath
from service.jobs.outbox import Outbox
from service.remote import hub
from service.remote.guard import Network
from service.remote.lookup import look_up
from service.remote.patience import Limiter, Patience
from service.remote.transfer import Pace, fetch

_MAX_FILES = 64


def fetch_adapter(task: AdapterTask, step: int, outbox: Outbox) -> tuple[NamedPath, ...]:
    """The files: one of GGUF, or those of a PEFT adapter, by their names there.

    Raises what `look_up` and `fetch` raise, ModelNotFound for a place without an adapter, NotSupported, DiskFull.
    """
    assert task.access is not None
    access = task.access
    network = Network(access)
    try:
        outbox.progress(step, 0.0)
        files = _wanted(parse_address(task.source), task.source, network)
        total = sum(file.size_bytes or 0 for file in files)
        if total > task.room_bytes:
            raise DiskFull(f"{total} bytes are to come and {task.room_bytes} are free beside the reserve; make room.")
        limit_file_size(max(file.size_bytes or task.room_bytes for file in files))
        limiter = Limiter(access.bytes_per_second)
        landed, done = [], 0
        for file in files:
            pace = Pace(
                connections=access.connections,
                stall_seconds=access.stall_seconds,
                limiter=limiter,
                limit_bytes=task.room_bytes,
            )

            def told(there: int, size: int | None, before: int = done) -> None:
                share = (before + there) / (total or size or 1)
                outbox.progress(step, min(share, 0.999), f"{before + there} of {total or size or '?'} bytes")

            path = Path(task.folder) / _local_name(file)
            done += fetch(network, file, path, pace, told).size_bytes
            landed.append(NamedPath(PurePosixPath(file.name).name, str(path)))
        return tuple(landed)
    finally:
        network.close()


def _wanted(address: Address, text: str, network: Network) -> tuple[RemoteFile, ...]:
    if isinstance(address, FileAddress):
        return look_up(text, network).level.files
    if not isinstance(address, HubAddress):
        raise NotSupported(
            "Adapters are fetched from the hub (hf.co/owner/repo) and from HTTPS addresses of files, not from "
            "registries; download it, and add the file.",
            param="from",
        )
    _, files = hub.look_up(address, network, Patience())
    return adapter_files(files, address.choice)


def adapter_files(files: tuple[RemoteFile, ...], choice: str | None) -> tuple[RemoteFile, ...]:
    """Those of a repository's files that are its adapter: the one that is named, else PEFT's, else its one GGUF file.

    Raises ModelNotFound. Pure.
    """
    top = [file for file in files if "/" not in file.name]
    if choice is not None:
        found = [file for file in top if file.name.lower() in (choice.lower(), f"{choice.lower()}.gguf")]
    else:
        weights = [file for file in top if file.name.startswith(STEM) and file.name.endswith((".safetensors", ".json"))]
        config = [file for file in top if file.name == CONFIG]
        found = [*config, *weights] if config and weights else []
        if not found:
            found = [file for file in top if file.name.lower().endswith(".gguf")]
            if len(found) > 1:
                names = ", ".join(shown(file.name) for file in found[:5])
                raise ModelNotFound(
                    f"The repository has several GGUF files; name one (…:FILE) of {names}.", param="from"
                )
    if not found or len(found) > _MAX_FILES:
        raise ModelNotFound(
            f"The repository has no adapter there: neither {CONFIG} with {STEM}.safetensors, nor a GGUF file. Check "
            "the address.",
            param="from",
        )
    return tuple(found)


def _local_name(file: RemoteFile) -> str:
    """A name that only these bytes have: nothing of it is the other server's to choose."""
    known = (file.digest or "").removeprefix("sha256:") or file.git_oid
    return known or hashlib.sha256(file.url.encode()).hexdigest()[:40]
