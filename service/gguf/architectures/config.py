"""The hyper-parameters of a checkpoint: its config.json, each value checked when it is asked for.

Runs in job children, on a file that a stranger chose. Knows no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from service.domain.errors import InvalidModel

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_WIDTH = 2**24
MAX_VOCABULARY = 2**20  # as the validator of GGUF headers has it
_MAX_WHOLE = 2**31 - 1


class Config:
    """config.json; what `text_config` says of the language model of a larger one goes first.

    Every getter takes several names for one value, the first that is there counts (null is not there), and raises
    InvalidModel when the value is of another kind or out of range, or missing without a default.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values` is the JSON object as it was read."""
        text = values.get("text_config")
        self._values: dict[str, Any] = {**values, **(text if isinstance(text, dict) else {})}
        self._top = values

    @property
    def values(self) -> dict[str, Any]:
        """Everything, unchecked."""
        return self._values

    @property
    def model_class(self) -> str:
        """The name of the model's class in transformers; "" when there is none."""
        for values in (self._values, self._top):
            classes = values.get("architectures")
            if isinstance(classes, list) and classes and isinstance(classes[0], str):
                return classes[0]
        return ""

    def has(self, name: str) -> bool:
        """Whether there is a value that is not null."""
        return self._values.get(name) is not None

    def whole(self, *names: str, default: int | None = None, least: int = 1, most: int = _MAX_WHOLE) -> int:
        """A whole number within `least` and `most`."""
        value = self._first(names, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(names[0], value, f"a whole number from {least} to {most}")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A finite number."""
        return finite(names[0], self._first(names, default))

    def flag(self, *names: str, default: bool) -> bool:
        """true or false."""
        value = self._first(names, default)
        if not isinstance(value, bool):
            raise _wrong(names[0], value, "true or false")
        return value

    def section(self, *names: str) -> dict[str, Any]:
        """A JSON object; empty when it is missing."""
        value = self._first(names, {})
        if not isinstance(value, dict):
            raise _wrong(names[0], value, "a JSON object")
        return value

    def _first(self, names: tuple[str, ...], default: Any) -> Any:
        for name in names:
            if self._values.get(name) is not None:
                return self._values[name]
        if default is None:
            raise InvalidModel(f"config.json does not give {names[0]}; download it again.")
        return default


def finite(name: str, value: object) -> float:
    """A number that is neither infinite nor NaN. Raises InvalidModel."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -3.4e38 < value < 3.4e38:
        raise _wrong(name, value, "a number")
    return float(value)


def finite_all(name: str, values: object, most: int = MAX_WIDTH) -> tuple[float, ...]:
    """A list of such numbers, at most `most` of them. Raises InvalidModel."""
    if not isinstance(values, list) or len(values) > most:
        raise _wrong(name, values, "a list of numbers")
    return tuple(finite(name, value) for value in values)


def _wrong(name: str, value: object, wanted: str) -> InvalidModel:
    if isinstance(value, str):
        shown = ascii(value[:40])
    elif isinstance(value, int | float):
        shown = f"{value:g}" if math.isfinite(value) and abs(value) < 1e300 else "a number out of range"
    else:
        shown = f"a {type(value).__name__}"
    return InvalidModel(f"config.json gives {name} as {shown}, where {wanted} belongs; download it again.")
