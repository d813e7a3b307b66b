"""Options of the quantizer on the command line, for `quantize` and `plan`, and the request's fields that they become.

Pure but for reading the file of `--recipe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.failures import CommandFailed, ExitCode

_PANEL = "Options of the quantizer"


def _option(name: str, about: str, **rules: Any) -> Any:
    return typer.Option(name, help=about, rich_help_panel=_PANEL, show_default=False, **rules)


# Name of the keyword argument -> annotation, for `options.command(added=...)`.
OPTIONS: dict[str, Any] = {
    "imatrix": Annotated[
        str | None,
        _option("--imatrix", "Importance matrix: auto, a digest, or the dataset to compute it on.", metavar="WHICH"),
    ],
    "recipe": Annotated[
        str | None, _option("--recipe", "A JSON file of options, or a variant to do as.", metavar="FILE|NAME")
    ],
    "flavour": Annotated[str | None, _option("--flavour", "Goes into the tag in front of the level.")],
    "pure": Annotated[bool | None, _option("--pure", "Every matrix gets the level's base type.")],
    "output_type": Annotated[str | None, _option("--output-type", "Type of output.weight.", metavar="TYPE")],
    "token_embedding_type": Annotated[
        str | None, _option("--token-embedding-type", "Type of token_embd.weight.", metavar="TYPE")
    ],
    "keep_output": Annotated[bool | None, _option("--keep-output", "Leave output.weight as it is.")],
    "override": Annotated[
        list[str] | None,
        _option("--override", "Type of the tensors that a pattern finds; may be given again.", metavar="PATTERN=TYPE"),
    ],
    "metadata": Annotated[
        list[str] | None, _option("--metadata", "A metadata key to set; may be given again.", metavar="KEY=VALUE")
    ],
    "prune_layers": Annotated[
        str | None, _option("--prune-layers", "Blocks to leave out, counted from 0.", metavar="N,N,...")
    ],
    "allow_requantize": Annotated[
        bool | None,
        _option("--allow-requantize", "Quantize a source that has lost precision already."),
    ],
}


def fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a quantize request for these options; those that were not given are left out.

    Raises CommandFailed.
    """
    body: dict[str, Any] = {}
    if options.get("imatrix"):
        body["imatrix"] = importance(options["imatrix"])
    if options.get("flavour"):
        body["flavour"] = options["flavour"]
    if options.get("allow_requantize"):
        body["allow_requantize"] = True
    recipe = _recipe(options)
    if recipe:
        body["recipe"] = recipe
    return body


def importance(which: str) -> str | dict[str, str]:
    """`auto` and digests as they are; anything else is the name of a dataset."""
    return which if which == "auto" or which.startswith("sha256:") else {"dataset": which}


def _recipe(options: Mapping[str, Any]) -> str | dict[str, Any]:
    given: dict[str, Any] = {
        name: options[name]
        for name in ("pure", "output_type", "token_embedding_type", "keep_output")
        if options.get(name)
    }
    if options.get("override"):
        given["overrides"] = [_override(text) for text in options["override"]]
    if options.get("metadata"):
        given["metadata"] = dict(_metadata(text) for text in options["metadata"])
    if options.get("prune_layers"):
        given["prune_layers"] = _layers(options["prune_layers"])
    base = options.get("recipe")
    if base is None:
        return given
    path = Path(base)
    if path.is_file():
        return {**_read(path), **given}
    if given:
        raise _usage("The recipe of a variant is taken as it is; leave the other options of the quantizer out.")
    return str(base)


def _read(path: Path) -> dict[str, Any]:
    """A recipe as a file: that of a request, or as `quantry show NAME --json` has it under `lineage`."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise _usage(f"{str(path)!r} is no JSON that can be read here.") from None
    if not isinstance(found, dict):
        raise _usage(f"{str(path)!r} holds no object of options.")
    return {name: value for name, value in found.items() if name not in _BESIDE_THE_RECIPE}


_BESIDE_THE_RECIPE = ("quantization", "allow_requantize", "importance_matrix")  # fields of the request itself


def _override(text: str) -> dict[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or not kind:
        raise _usage(f"--override {text!r} is not PATTERN=TYPE, as in ffn_down=Q6_K.")
    return {"pattern": pattern, "type": kind}


def _metadata(text: str) -> tuple[str, bool | int | float | str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise _usage(f"--metadata {text!r} is not KEY=VALUE, as in general.name=mine.")
    try:
        read = json.loads(value)
    except ValueError:
        return key, value
    return key, read if isinstance(read, bool | int | float | str) else value


def _layers(text: str) -> Sequence[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise _usage(f"--prune-layers {text!r} is not a list of numbers like 20,21.")
    return [int(part) for part in parts]


def _usage(message: str) -> CommandFailed:
    return CommandFailed("usage", message, remedy="see quantry quantize --help", exit_code=ExitCode.USAGE)
