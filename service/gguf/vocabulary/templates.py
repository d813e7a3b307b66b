"""Chat templates of a checkpoint: `tokenizer.chat_template` and, where there are several, one by name each.

Runs in job children. They are carried over as texts; nothing is rendered here.
"""

from __future__ import annotations

from string import ascii_letters, digits

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import TEMPLATES_FOLDER, Files
from service.gguf.fields import Field
from service.gguf.vocabulary.tokens import encoded

_ENDING = ".jinja"
MAX_TEMPLATES = 16
MAX_TEMPLATE_CHARACTERS = 128 * 1024
"""As many as the engine renders."""


def template_fields(files: Files) -> list[Field]:
    """From tokenizer_config.json, else chat_template.jinja, else chat_template.json. Raises InvalidModel."""
    config = files.json("tokenizer_config.json") or {}
    found = config.get("chat_template")
    if found is None:
        found = _of_files(files)
    if found is None:
        found = (files.json("chat_template.json") or {}).get("chat_template")
    if isinstance(found, str):
        return [_field("tokenizer.chat_template", found)]
    if isinstance(found, list):
        return _named(found)
    return []


def _of_files(files: Files) -> object:
    """chat_template.jinja, and as named ones beside it those of its folder. Raises InvalidModel."""
    default = files.text("chat_template.jinja")
    others = [name for name in files.names if name.startswith(TEMPLATES_FOLDER) and name.endswith(_ENDING)]
    if default is None or not others:
        return default
    entries: list[object] = [{"name": "default", "template": default}]
    for name in others[: MAX_TEMPLATES + 1]:
        bare = name.removeprefix(TEMPLATES_FOLDER).removesuffix(_ENDING)
        entries.append({"name": bare, "template": files.text(name)})
    return entries


def _named(entries: list[object]) -> list[Field]:
    templates: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            name = "".join(letter if letter in ascii_letters + digits else "_" for letter in entry["name"])
            if name:
                templates[name[:64]] = entry["template"]
    if len(templates) > MAX_TEMPLATES:
        raise InvalidModel(f"The model has more than {MAX_TEMPLATES} chat templates; leave the needed ones.")
    default = templates.pop("default", None)
    fields = [_field(f"tokenizer.chat_template.{name}", text) for name, text in templates.items()]
    if templates:
        fields.append(Field("tokenizer.chat_templates", "arr[str]", [encoded(name) for name in templates]))
    return fields if default is None else [*fields, _field("tokenizer.chat_template", default)]


def _field(key: str, template: str) -> Field:
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidModel(
            f"The model's chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters; give it a shorter one."
        )
    encoded(template)
    return Field(key, "str", template)
