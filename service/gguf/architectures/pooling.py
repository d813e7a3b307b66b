"""How an embedding model makes one vector of many: what the files of sentence-transformers say.

Runs in job children.
"""

from __future__ import annotations

import json
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field

_MEAN, _CLS, _LAST = 1, 2, 3  # llama_pooling_type
RANK = 4
"""The kind of a model that gives no vectors, but one number for a pair of texts."""

_SWITCHES = {"pooling_mode_mean_tokens": _MEAN, "pooling_mode_cls_token": _CLS, "pooling_mode_lasttoken": _LAST}
_MODES = {"mean": _MEAN, "cls": _CLS, "lasttoken": _LAST}
_KNOWN = ("Transformer", "Pooling", "Normalize")


def pooling_fields(architecture: str, files: Files) -> tuple[Field, ...]:
    """The kind of pooling; none when modules.json is not there. Raises InvalidModel for one llama.cpp does not have."""
    modules = _modules(files)
    if not modules:
        return ()
    foreign = [kind for kind, _ in modules if not kind.endswith(_KNOWN)]
    if foreign:
        raise InvalidModel(
            f"The model passes its vectors through {foreign[0][:80]!a} (modules.json), which llama.cpp would leave "
            "out, so it cannot be converted; take a model without it."
        )
    folder = next((path for kind, path in modules if kind.endswith("Pooling")), None)
    if folder is None:
        return ()
    pooling = files.json(f"{folder}/config.json") if folder else None
    if pooling is None:
        missing = f"{folder[:80]}/config.json"
        raise InvalidModel(f"The checkpoint has no {missing!a}, which modules.json names; download it.")
    kinds = [kind for switch, kind in _SWITCHES.items() if pooling.get(switch) is True]
    kinds = kinds or [kind for mode, kind in _MODES.items() if pooling.get("pooling_mode") == mode]
    others = [
        key for key in pooling if key.startswith("pooling_mode_") and pooling[key] is True and key not in _SWITCHES
    ]
    if len(kinds) != 1 or others:
        raise InvalidModel("The model pools in a way that llama.cpp does not have: mean, cls and last token alone.")
    return (Field(f"{architecture}.pooling_type", "u32", kinds[0]),)


def _modules(files: Files) -> list[tuple[str, str]]:
    """(type, path) of each module."""
    text = files.text("modules.json")
    if text is None:
        return []
    try:
        modules: Any = json.loads(text)
    except (ValueError, RecursionError):
        modules = None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InvalidModel("modules.json is no list of modules; download it again.")
    return [(str(module.get("type", "")), str(module.get("path", ""))) for module in modules]
