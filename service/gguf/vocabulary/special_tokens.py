"""Which tokens begin, end, pad and separate, and whether a text is given them: `tokenizer.ggml.*_token_id` and `add_*`.

Runs in job children. The order of precedence is that of llama.cpp's converter: how tokenizer.json finishes a text
(its post-processor), names in tokenizer_config.json, ids in config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.vocabulary import values
from service.gguf.vocabulary.definition import Definition

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # as GGUF spells it
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
_ADDED = ("bos", "eos", "sep")


@dataclass(slots=True)
class _Roles:
    """Names of tokens by role, from tokenizer_config.json, and what texts are given."""

    names: dict[str, str]
    adds: dict[str, bool] = field(default_factory=dict)

    @property
    def separators(self) -> tuple[str | None, str | None]:
        return self.names.get("sep"), self.names.get("eos")


def special_token_fields(files: Files, definition: Definition | None, size: int) -> list[Field]:
    """Fields in llama.cpp's spelling; ids outside of the vocabulary are left out. Raises InvalidModel."""
    config = files.json("tokenizer_config.json")
    model = files.json("config.json") or {}
    roles = _Roles(_names(config or {}))
    if definition is not None and config is not None:
        roles.names.setdefault("bos", roles.names.get("cls", ""))
        roles.names.setdefault("eos", roles.names.get("sep", ""))
    if definition is not None:
        for processor in definition.processors:
            _finish(roles, processor)
    for role in _ROLES:
        added = (config or {}).get(f"add_{role}_token")
        if isinstance(added, bool):
            roles.adds.setdefault(role, added)
    numbers: dict[str, int] = {}
    if definition is not None and config is not None:
        known = {token.text: token.number for token in reversed(definition.added)}
        numbers = {role: known[name] for role, name in roles.names.items() if name in known}
    for role in _ROLES:
        number = _model_number(model, f"{role}_token_id")
        if number is not None and number < size:
            numbers.setdefault(role, number)
    fields = [
        Field(f"tokenizer.ggml.{key}", "u32", numbers[role])
        for role, key in _KEYS.items()
        if role in numbers and numbers[role] < size
    ]
    fields += [
        Field(f"tokenizer.ggml.add_{role}_token", "bool", roles.adds[role]) for role in _ADDED if role in roles.adds
    ]
    return fields


def normalizer_fields(definition: Definition) -> list[Field]:
    """Whether texts are made lower case and lose their accents, where the tokenizer says so."""
    flags: dict[str, bool] = {}
    for step in definition.normalizers:
        match step.get("type"):
            case "Lowercase":
                flags["lowercase"] = True
            case "StripAccents":
                flags["strip_accents"] = True
            case "BertNormalizer":
                flags |= {
                    name: step[name] for name in ("lowercase", "strip_accents") if isinstance(step.get(name), bool)
                }
    return [Field(f"tokenizer.ggml.normalizer.{name}", "bool", value) for name, value in flags.items()]


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for role in _ROLES:
        entry = config.get(f"{role}_token")
        name = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(name, str):
            names[role] = name
    return names


def _model_number(model: Mapping[str, Any], key: str) -> int | None:
    number = model.get(key)
    if number is None and isinstance(model.get("text_config"), dict):
        number = model["text_config"].get(key)
    if key == "eos_token_id" and isinstance(number, list) and number:  # several end a text; llama.cpp knows the others
        number = number[0]
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    if number < 0:
        raise InvalidModel(f"config.json has a negative {key}; download it again.")
    return number


def _finish(roles: _Roles, processor: Mapping[str, Any]) -> None:
    """One step of a post-processor."""
    match processor.get("type"):
        case "ByteLevel":
            roles.adds.setdefault("bos", False)
            roles.adds.setdefault("eos", False)
        case "RobertaProcessing":
            roles.adds |= {"bos": True, "eos": True, "sep": True}
            for role in ("cls", "sep"):
                pair = processor.get(role)
                if not roles.names.get(role) and isinstance(pair, list) and pair and isinstance(pair[0], str):
                    roles.names[role] = pair[0]
        case "TemplateProcessing":
            _finish_by_template(roles, processor)


def _finish_by_template(roles: _Roles, processor: Mapping[str, Any]) -> None:
    """Tokens at both ends of the template for one text, and those between the two of the template for a pair."""
    single = values.sequence(processor.get("single"), "a template")
    first = last = None
    if len(single) > 1:
        first, last = _special(single[0]), _special(single[-1])
    if first:
        names = roles.names
        if first not in (names.get("bos"), names.get("cls")):
            names["bos"] = names.get("bos") or first
            names["cls"] = names.get("cls") or first
        roles.adds["bos"] = first in (names["bos"], names.get("cls"))
    if last:
        ended = roles.names.get("eos")
        if ended and last != ended:  # the end of a turn, then, and not of a text
            roles.names["eom" if "eot" in roles.names else "eot"] = ended
        roles.names["eos"] = last
        roles.adds["eos"] = True
    pair = values.sequence(processor.get("pair"), "a template")
    if first and pair and _special(pair[0]) == first:
        pair = pair[1:]
    if last and pair and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) > 2 and _sequence(pair[0]) == "A" and _sequence(pair[-1]) == "B":
        between = [_special(part) for part in pair[1:-1]]
        separates = between[0] in roles.separators and bool(between[0]) and not last
        if len(between) == 2 and between[1] and between[1] in roles.separators:
            separates = True
        roles.adds["sep"] = separates


def _special(part: object) -> str | None:
    name = values.mapping(values.mapping(part, "a template").get("SpecialToken"), "a template").get("id")
    return name if isinstance(name, str) else None


def _sequence(part: object) -> str | None:
    name = values.mapping(values.mapping(part, "a template").get("Sequence"), "a template").get("id")
    return name if isinstance(name, str) else None
