"""What a name made by `create` adds to its variant: words, defaults and a template, and no bytes of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.domain.adapters import check_uses
from service.domain.errors import InvalidParameter
from service.domain.generation import AdapterUse, Message
from service.domain.names import DEFAULT_TAG, ModelRef

Parameter = bool | int | float | str | list[str]

MAX_TEMPLATE_CHARACTERS = 128 * 1024
_MAX_TOKENS = 1 << 20
_MAX_STOPS, _MAX_STOP_CHARACTERS = 16, 256
# Ollama's options with the least and the most that each may be; its bodies have the same (a test compares them).
_WHOLE = {
    "seed": (-(1 << 63), (1 << 63) - 1),
    "num_predict": (-2, _MAX_TOKENS),
    "num_ctx": (0, _MAX_TOKENS),
    "top_k": (-1, 1_000_000),
    "repeat_last_n": (-1, _MAX_TOKENS),
    "mirostat": (0, 2),
}
_REAL = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (math.ulp(0.0), 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """What is said before every conversation, and how it is sampled where a request does not say.

    `template` is a chat template in Jinja, in the place of the model's own. `parameters` have Ollama's names. `parent`
    is the name that it was made from. `owned` are the ids of variants that came with it, and go with it; so do the
    `adapters`, which are of the name's own model.
    """

    system: str | None = None
    template: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    parent: str | None = None
    owned: tuple[int, ...] = ()
    adapters: tuple[AdapterUse, ...] = ()


def preset_word(ref: ModelRef) -> str:
    """What stands for the tag of a name where presets are kept: lower case, `latest` for a bare name."""
    return (ref.canonical_tag or DEFAULT_TAG).lower()


def check_preset(preset: Preset) -> Preset:
    """The preset without parameters that nobody knows here, which are of no effect.

    Raises InvalidParameter for what `create` would have refused: a value out of bounds, a template that is too long, an
    adapter's scale.
    """
    if len(preset.template or "") > MAX_TEMPLATE_CHARACTERS:
        raise InvalidParameter(f"A template has at most {MAX_TEMPLATE_CHARACTERS} characters.", param="template")
    check_uses(preset.adapters)
    known = {
        name: _checked(name, value)
        for name, value in preset.parameters.items()
        if name in _WHOLE or name in _REAL or name == "stop"
    }
    return replace(preset, parameters=known)


def _checked(name: str, value: Parameter) -> Parameter:
    if name == "stop":
        stops = [value] if isinstance(value, str) else value if isinstance(value, list) else [""]
        if len(stops) <= _MAX_STOPS and all(0 < len(stop) <= _MAX_STOP_CHARACTERS for stop in stops):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, most = _WHOLE[name] if name in _WHOLE else _REAL[name]
        if least <= value <= most and (name in _REAL or value == int(value)):
            return value
    raise InvalidParameter(f"The parameter {name} has a value that it cannot have.", param=f"parameters.{name}")
