"""What a repository says of its model in words: the front matter of README.md and generation_config.json, as fields.

Runs in job children, on files that a stranger chose. Nothing here may fail a conversion: what cannot be read is left
out. Of YAML the lines are read that model cards consist of, `key: value` and lists of strings; nothing is constructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field

_MAX_LINES = 1000
_MAX_ITEMS = 256
_MAX_CHARACTERS = 1000
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_-]{0,60}):(?:[ \t]+(.*))?")
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/(\w[\w.-]{0,95})", re.ASCII)
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")
# generation_config.json -> the end of the key, its type and what a value must be.
_SAMPLING: dict[str, tuple[str, str, Callable[[float], bool]]] = {
    "top_k": ("top_k", "i32", lambda value: 0 <= value < 2**31 and value == int(value)),
    "top_p": ("top_p", "f32", lambda value: 0 <= value <= 1),
    "min_p": ("min_p", "f32", lambda value: 0 <= value <= 1),
    "temperature": ("temp", "f32", lambda value: 0 <= value <= 100),
    "repetition_penalty": ("penalty_repeat", "f32", lambda value: 0 < value <= 100),
}


def card_fields(files: Files, config: Mapping[str, Any]) -> tuple[Field, ...]:
    """Name, licence, tags, languages, base models, sampling: what the card or `config`, config.json's, gives of them.

    The name that a model is imported under is not used: the same checkpoint is to give the same bytes.
    """
    card = _front_matter(files)
    fields = []
    name = _word(card, "model_name", "name") or _name_in(config)
    if name:
        fields.append(Field("general.name", "str", name))
    for key, words in (
        ("general.author", ("author", "model_author")),
        ("general.organization", ("organization", "model_creator", "creator")),
        ("general.description", ("description", "model_description")),
        ("general.license", ("license",)),
        ("general.license.name", ("license_name",)),
        ("general.license.link", ("license_link",)),
    ):
        value = _word(card, *words)
        if value:
            fields.append(Field(key, "str", value))
    for key, names, more in (
        ("general.tags", ("tags",), ("pipeline_tag",)),
        ("general.languages", ("language", "languages"), ()),
    ):
        values = [item for word in (*names, *more) for item in _words(card, word)]
        if values:
            fields.append(Field(key, "arr[str]", list(dict.fromkeys(values))))
    fields += _base_models(_words(card, "base_model"))
    return (*fields, *_sampling(files))


def _name_in(config: Mapping[str, Any]) -> str:
    """The model's name in a repository's, `owner/model`; a path of somebody's disk is none."""
    found = _REPOSITORY.fullmatch(str(config.get("_name_or_path") or ""))
    return "" if found is None else found[1].replace("-", " ")


def _base_models(names: list[str]) -> Iterator[Field]:
    owned = [name.split("/") for name in names if name.count("/") == 1]
    if not owned:
        return
    yield Field("general.base_model.count", "u32", len(owned))
    for number, (owner, model) in enumerate(owned):
        start = f"general.base_model.{number}"
        yield Field(f"{start}.name", "str", model.replace("-", " "))
        yield Field(f"{start}.organization", "str", owner)
        yield Field(f"{start}.repo_url", "str", f"https://huggingface.co/{owner}/{model}")


def _sampling(files: Files) -> Iterator[Field]:
    try:
        config = files.json("generation_config.json") or {}
    except InvalidModel:
        return
    for key, (end, kind, holds) in _SAMPLING.items():
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and holds(value):
            yield Field(f"general.sampling.{end}", kind, int(value) if kind == "i32" else float(value))


def _front_matter(files: Files) -> dict[str, str | list[str]]:
    """The pairs between the first two lines of `---`."""
    try:
        text = files.text("README.md") or ""
    except InvalidModel:
        return {}
    lines = text.splitlines()[:_MAX_LINES]
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    card: dict[str, str | list[str]] = {}
    key = ""
    for line in lines[1 : lines.index("---", 1)]:
        if (pair := _PAIR.fullmatch(line)) is not None:
            key = pair[1]
            card[key] = _value(pair[2] or "")
        elif key and (item := _ITEM.fullmatch(line)) is not None:
            items = card[key]
            if items == "":
                items = card[key] = []
            if isinstance(items, list) and len(items) < _MAX_ITEMS:
                items.append(_scalar(item[1]))
        elif line.strip() and not line.lstrip().startswith("#"):
            key = ""  # something deeper: left out
    return card


def _value(text: str) -> str | list[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(item) for item in text[1:-1].split(",")[:_MAX_ITEMS] if item.strip()]
    return _scalar(text)


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1][:_MAX_CHARACTERS]
    text = text.split(" #", 1)[0].strip()
    return "" if text.startswith(("{", "[", "&", "*", "|", ">", "!")) else text[:_MAX_CHARACTERS]


def _word(card: dict[str, Any], *keys: str) -> str:
    return next((value for key in keys if isinstance(value := card.get(key), str) and value), "")


def _words(card: dict[str, Any], key: str) -> list[str]:
    value = card.get(key, [])
    return [word for word in ([value] if isinstance(value, str) else value) if word]
