"""Which safetensors files make up a checkpoint: by its index, or by their names.

Runs in job children, on files that a stranger chose; nothing but the index is opened.
"""

from __future__ import annotations

import re

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import PICKLE_REMEDY, PICKLES, Files

MAX_SHARDS = 1024

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,180}\.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def shard_names(files: Files, stem: str = "model") -> tuple[str, ...]:
    """The safetensors files that make up the checkpoint, by its index or by their names.

    Raises InvalidModel when one is missing, when there is none, and when it is unclear which are meant.
    """
    found = [name for name in files.names if name.endswith(".safetensors") and "/" not in name]
    if f"{stem}.safetensors" in found:  # which goes before an index in transformers, too
        return (f"{stem}.safetensors",)
    index = _index_of(files, stem)
    if index is not None:
        return _indexed(files, index)
    numbered = [(match, name) for name in found if (match := _NUMBERED.fullmatch(name))]
    stems = {match["stem"] for match, _ in numbered}
    chosen = stem if stem in stems else next(iter(stems)) if len(stems) == 1 else None
    if chosen is not None:
        return _complete([(match, name) for match, name in numbered if match["stem"] == chosen])
    if len(found) == 1 and _SHARD.fullmatch(found[0]):
        return (found[0],)
    if found:
        raise InvalidModel(
            f"The checkpoint has {len(found)} safetensors files and no {stem}.safetensors.index.json that says which "
            "belong together; download it with its index."
        )
    if any(name.endswith(PICKLES) for name in files.names):
        raise InvalidModel(f"The checkpoint has no safetensors files. {PICKLE_REMEDY}")
    raise InvalidModel("The checkpoint has no safetensors files; download it with them.")


def _index_of(files: Files, stem: str) -> str | None:
    ending = ".safetensors.index.json"
    if f"{stem}{ending}" in files.names:
        return f"{stem}{ending}"
    others = [name for name in files.names if name.endswith(ending)]
    return others[0] if len(others) == 1 else None


def _indexed(files: Files, index: str) -> tuple[str, ...]:
    weight_map = (files.json(index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidModel(f"{index[:80]!a} has no weight_map; download it again.")
    named = weight_map.values()
    shards = sorted({name for name in named if isinstance(name, str) and _SHARD.fullmatch(name)})
    if len(shards) > MAX_SHARDS or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in named):
        raise InvalidModel(f"{index[:80]!a} names files that are no shards of a checkpoint; download it again.")
    missing = [name for name in shards if files.path(name) is None]
    if missing:
        raise InvalidModel(
            f"The checkpoint is incomplete: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ". Download the rest."
        )
    return tuple(shards)


def _complete(numbered: list[tuple[re.Match[str], str]]) -> tuple[str, ...]:
    counts = {int(match["count"]) for match, _ in numbered}
    numbers = {int(match["number"]) for match, _ in numbered}
    count = max(counts)
    if len(counts) != 1 or count > MAX_SHARDS:
        raise InvalidModel("The checkpoint's shards do not belong to one set; give the folder of one checkpoint.")
    missing = sorted(set(range(1, count + 1)) - numbers)
    if missing or len(numbers) != count:
        raise InvalidModel(f"The checkpoint is incomplete: shard {(missing or [0])[0]} of {count} is missing.")
    return tuple(sorted(name for _, name in numbered))
