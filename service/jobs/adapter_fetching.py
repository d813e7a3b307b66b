"""An adapter's files from elsewhere: which of those at an address they are, fetched as a pull's. In the job's child."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from service.domain.addresses import Address, FileAddress, HubAddress, parse_address
from service.domain.errors import ModelNotFound, NotSupported
from service.domain.reach import shown
from service.domain.remote import RemoteFile
from service.gguf.peft import CONFIG, STEM
from service.jobs.fetching import Landing, fetch_all, transfer_of
from service.jobs.limits import lift_file_limit
from service.jobs.messages import AdapterTask, NamedPath
from service.jobs.outbox import Outbox
from service.remote import hub
from service.remote.guard import Network
from service.remote.lookup import look_up
from service.remote.patience import Patience

_MAX_FILES = 64


@contextmanager
def fetched_adapter(task: AdapterTask, step: int, outbox: Outbox) -> Iterator[tuple[NamedPath, ...]]:
    """The files, there as long as the block runs: one of GGUF, or those of a PEFT adapter, by their names there.

    Raises what `look_up` and `fetch` raise, ModelNotFound for a place without an adapter, NotSupported, DiskFull.
    """
    assert task.access is not None
    network = Network(task.access)
    try:
        outbox.progress(step, 0.0)
        files = _wanted(parse_address(task.source), task.source, network)
        with transfer_of(Path(task.transfers), files, step, outbox) as folder:
            landing = Landing(folder, Path(task.target).parent, task.room_bytes, step)
            landed = fetch_all(files, landing, network, task.access, outbox)
            network.close()
            lift_file_limit()
            yield tuple(
                NamedPath(PurePosixPath(file.name).name, str(path))
                for file, (path, _) in zip(files, landed, strict=True)
            )
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
