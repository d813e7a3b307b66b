"""The files of a checkpoint in the layout of `transformers`, by name.

Runs in job children, on files that a stranger chose: names are looked up and never joined to a path, sizes are bounded,
pickles are never opened. Knows texts and JSON, nothing of what they say, and nothing of tensors.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from service.domain.errors import InvalidModel

MAX_FILES = 4096
MAX_JSON_BYTES = 64 * 1024 * 1024  # Gemma's tokenizer.json has 33 MB
MAX_JSON_DEPTH = 64
MAX_TEXT_BYTES = 16 * 1024 * 1024
_MAX_JSON_CONTAINERS = 4_000_000

TEMPLATES_FOLDER = "additional_chat_templates/"
"""Where chat templates beside chat_template.jinja lie."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""How the names of files end that only running the code inside them could read."""

PICKLE_REMEDY = (
    "PyTorch's pickled files (.bin, .pt, .pth, .ckpt) run code when they are read, so they never are. Take the "
    "repository's safetensors files, or save the model again with transformers: model.save_pretrained(folder)."
)


class Files:
    """The files of a checkpoint by name: "config.json", and one folder further down "1_Pooling/config.json"."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """`paths` is taken as it is; nothing is opened. Raises InvalidModel when there are too many."""
        if len(paths) > MAX_FILES:
            raise InvalidModel(f"A checkpoint has at most {MAX_FILES} files; this one has {len(paths)}.")
        self._paths = dict(sorted(paths.items()))

    @classmethod
    def of_folder(cls, folder: Path, within: tuple[Path, ...] = ()) -> Files:
        """The regular files of `folder`, symlinks followed, the `config.json` of its folders, and chat templates.

        With `within`, what lies in none of these folders is an error. Raises InvalidModel, OSError.
        """
        paths: dict[str, Path] = {}
        for path in _listed(folder):
            if path.is_file():
                paths[path.name] = path
            elif path.name == TEMPLATES_FOLDER.rstrip("/") and path.is_dir():
                paths |= {TEMPLATES_FOLDER + each.name: each for each in _listed(path) if each.is_file()}
            elif path.is_dir() and (path / "config.json").is_file():
                paths[f"{path.name}/config.json"] = path / "config.json"
        bounds = [bound.resolve() for bound in within]
        if bounds:
            for name, path in paths.items():
                real = path.resolve()
                if not any(real.is_relative_to(bound) for bound in bounds):
                    raise InvalidModel(
                        f"{name[:80]!a} is a link to somewhere outside of the folders that may be imported from; "
                        "put the file itself there."
                    )
                paths[name] = real
        return cls(paths)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._paths)

    def path(self, name: str) -> Path | None:
        """Where a file lies; None when there is none of that name."""
        return self._paths.get(name)

    def size_bytes(self) -> int:
        """Of all files together. Raises OSError."""
        return sum(path.stat().st_size for path in self._paths.values())

    def content(self, name: str, most_bytes: int = MAX_TEXT_BYTES) -> bytes | None:
        """All bytes of a file; None when there is none of that name. Raises InvalidModel when it has too many."""
        path = self.path(name)
        if path is None:
            return None
        try:
            descriptor = open_regular(path)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise unreadable(name, error) from None
        if len(data) > most_bytes:
            raise InvalidModel(f"{name[:80]!a} has more than {most_bytes} bytes, which is too much for such a file.")
        return data

    def text(self, name: str) -> str | None:
        """A text; None when there is none of that name. Raises InvalidModel when it is too long or no UTF-8."""
        data = self.content(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidModel(f"{name[:80]!a} is no UTF-8 text; download it again.") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None when there is no file of that name. Raises InvalidModel when it holds anything else."""
        data = self.content(name, MAX_JSON_BYTES)
        if data is None:
            return None
        if data.count(b"[") + data.count(b"{") > _MAX_JSON_CONTAINERS:
            raise InvalidModel(f"{name[:80]!a} holds more than a model's file would; download it again.")
        try:
            value = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError, MemoryError):  # ValueError: no JSON, no UTF-8, a number of 5,000 digits
            raise InvalidModel(f"{name[:80]!a} is no valid JSON; download it again.") from None
        if not isinstance(value, dict):
            raise InvalidModel(f"{name[:80]!a} is no JSON object; download it again.")
        if _depth_exceeds(value, MAX_JSON_DEPTH):
            raise InvalidModel(f"{name[:80]!a} is nested more than {MAX_JSON_DEPTH} deep; download it again.")
        return value


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, by name. Raises InvalidModel for more than a checkpoint has, OSError."""
    with os.scandir(folder) as entries:
        found = sorted(Path(entry.path) for entry in islice(entries, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise InvalidModel(f"A checkpoint has at most {MAX_FILES} files; give the checkpoint's own folder.")
    return found


def open_regular(path: Path) -> int:
    """Raises OSError, also for what is no regular file; a named pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file")
    return descriptor


def _depth_exceeds(value: object, most: int) -> bool:
    level: list[Any] = [value]
    for _ in range(most):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def unreadable(name: str, error: OSError) -> InvalidModel:
    """What is said of a file that cannot be read."""
    reason = error.strerror or "it is no regular file"
    return InvalidModel(f"{name[:80]!a} cannot be read: {reason}. Check that it is there and readable.")
