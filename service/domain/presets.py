"""What a name made by `create` adds to its variant: words, defaults and a template, and no bytes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.domain.generation import AdapterUse, Message
from service.domain.names import DEFAULT_TAG, ModelRef

Parameter = bool | int | float | str | list[str]


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
