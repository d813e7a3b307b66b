"""Models that other programs keep on this disk: which files they are, and what each is called. Reads, never writes.

Knows plain folders of .gguf files (llama.cpp, LM Studio, the cache of the Hugging Face hub) and the store of Ollama,
whose manifests give names to files that are called by their digests.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from service.domain.addresses import FileAddress
from service.domain.errors import InvalidName
from service.domain.names import parse_ref

_MAX_FILES = 100_000
_MAX_MANIFEST_BYTES = 1 << 20
_MAGIC = b"GGUF"
_LATER_PIECE = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
_PIECE = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[-._])(mmproj|imatrix|lora)([-._]|$)", re.IGNORECASE)
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A GGUF file, and a name for it; the level in it the server finds out. `whole` False: a piece of several."""

    name: str
    path: Path
    size_bytes: int
    whole: bool = True


def find_models(folder: Path) -> list[FoundModel]:
    """The models below `folder`, by name. Raises OSError when the folder cannot be read."""
    is_ollamas = (folder / "manifests").is_dir() and (folder / "blobs").is_dir()
    found = _of_ollama(folder) if is_ollamas else _of_files(folder)
    first: dict[Path, FoundModel] = {}
    for model in found:
        first.setdefault(model.path, model)
    return sorted(first.values(), key=lambda model: (model.name.lower(), str(model.path)))


def name_of(path: Path) -> str | None:
    """The name of a file called `path`, without its level: `Llama-3.2-1B` for Llama-3.2-1B-Q4_K_M.gguf."""
    stem = _FOREIGN.sub("-", path.name[: -len(".gguf")]).strip("-.")
    try:
        return FileAddress(f"/{quote(stem)}.gguf").name
    except InvalidName:
        return None


def _of_files(folder: Path) -> Iterator[FoundModel]:
    os.stat(folder)  # one that is not there is told, one below that cannot be read is passed by
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.lower().endswith(".gguf") or name.startswith(".") or _LATER_PIECE.fullmatch(name):
                continue
            seen += 1
            if seen > _MAX_FILES:
                return
            path = Path(os.path.realpath(Path(parent) / name))
            called = None if _NO_MODEL.search(name[: -len(".gguf")]) else name_of(Path(name))
            if called is not None and _is_gguf(path):
                yield FoundModel(called, path, path.stat().st_size, whole=_PIECE.fullmatch(name) is None)


def _of_ollama(folder: Path) -> Iterator[FoundModel]:
    manifests = folder / "manifests"
    for _, manifest in zip(range(_MAX_FILES), sorted(manifests.rglob("*")), strict=False):
        parts = manifest.relative_to(manifests).parts
        if len(parts) != 4 or not manifest.is_file():
            continue
        host, namespace, model, tag = parts
        called = _ollama_name(host, namespace, model, tag)
        path = _model_of(manifest, folder / "blobs")
        if called is not None and path is not None and _is_gguf(path):
            yield FoundModel(called, path, path.stat().st_size)


def _ollama_name(host: str, namespace: str, model: str, tag: str) -> str | None:
    suffix = "" if tag == "latest" else f":{tag}"
    with suppress(InvalidName):
        return parse_ref(f"{host}/{namespace}/{model}{suffix}").display
    return None


def _model_of(manifest: Path, blobs: Path) -> Path | None:
    """The file of the model's layer; None for a manifest that names none that is there."""
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    for digest in digests:
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            continue
        for name in (f"sha256-{match[1]}", f"sha256:{match[1]}"):
            if (blobs / name).is_file():
                return Path(os.path.realpath(blobs / name))
    return None


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False
