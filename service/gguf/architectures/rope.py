"""Rotary position embedding: what config.json says of it, as llama.cpp's keys and tensors.

Runs in job children. Both of transformers' spellings are read: `rope_theta` beside `rope_scaling`, and
`rope_parameters`, for one kind of layer or for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.domain.errors import InvalidModel
from service.gguf.architectures.config import Config, finite, finite_all
from service.gguf.architectures.rules import Weights, constant
from service.gguf.fields import Field

_PLAIN = frozenset({"", "default", "none", "dynamic"})  # dynamic: plain up to the length trained with


@dataclass(frozen=True, slots=True)
class Rope:
    """`kind` is "", "linear", "yarn", "llama3" or "longrope"; `parameters` are its own. `local_base` is the base of
    layers with a sliding window, where they have another.
    """

    kind: str
    base: float
    parameters: Mapping[str, Any]
    local_base: float | None = None

    def number(self, name: str, default: float | None = None) -> float:
        """One of the parameters. Raises InvalidModel when it is missing without a default, or no number."""
        value = self.parameters.get(name)
        if value is None and default is not None:
            return default
        return finite(f"rope_scaling.{name}", value)

    def whole(self, name: str, default: int) -> int:
        """As `number`, a positive whole one."""
        value = self.number(name, default)
        if not 1 <= value < 2**31:
            raise InvalidModel(f"config.json gives rope_scaling.{name} out of range; download it again.")
        return int(value)


def rope_of(config: Config, default_base: float = 10_000.0) -> Rope:
    """What the configuration says. Raises InvalidModel for a kind of scaling that is not known."""
    sections = config.section("rope_parameters", "rope_scaling")
    sliding = sections.get("sliding_attention")
    parameters = sections.get("full_attention", sections)
    if not isinstance(parameters, dict) or not isinstance(sliding, dict | None):
        raise InvalidModel("config.json gives rope_parameters that are no JSON object; download it again.")
    kind = parameters.get("rope_type", parameters.get("type", "")) or ""
    kind = {"su": "longrope"}.get(str(kind).lower(), str(kind).lower())
    kind = "" if kind in _PLAIN else kind
    if kind not in ("", "linear", "yarn", "llama3", "longrope"):
        raise InvalidModel(f"config.json scales positions by {kind[:40]!a}, which quantry does not convert.")
    base = parameters.get("rope_theta")
    local = None
    if sliding is not None and sliding.get("rope_theta") is not None:
        local = finite("rope_theta", sliding["rope_theta"])
    elif config.has("rope_local_base_freq"):
        local = config.number("rope_local_base_freq")
    return Rope(
        kind,
        config.number("rope_theta", default=default_base) if base is None else finite("rope_theta", base),
        parameters,
        local,
    )


def rope_fields(architecture: str, rope: Rope, context: int) -> tuple[Field, ...]:
    """Base and scaling. `context` is the length trained with where the scaling does not give it."""
    fields = [Field(f"{architecture}.rope.freq_base", "f32", rope.base)]
    if rope.local_base is not None:
        fields.append(Field(f"{architecture}.rope.freq_base_swa", "f32", rope.local_base))
    if rope.kind not in ("linear", "yarn"):
        return tuple(fields)
    scaling = f"{architecture}.rope.scaling"
    factor = rope.number("factor")
    if factor <= 0:
        raise InvalidModel(f"config.json gives rope_scaling.factor as {factor:g}, which cannot be; download it again.")
    fields += [Field(f"{scaling}.type", "str", rope.kind), Field(f"{scaling}.factor", "f32", factor)]
    if rope.kind == "yarn":
        original = rope.whole("original_max_position_embeddings", context)
        fields.append(Field(f"{scaling}.original_context_length", "u32", original))
        for key, names in _YARN.items():
            given = next((name for name in names if rope.parameters.get(name) is not None), None)
            if given is not None:
                fields.append(Field(f"{scaling}.{key}", "f32", rope.number(given)))
    return tuple(fields)


_YARN = {
    "yarn_ext_factor": ("extrapolation_factor",),
    "yarn_attn_factor": ("attention_factor", "attn_factor"),
    "yarn_beta_fast": ("beta_fast",),
    "yarn_beta_slow": ("beta_slow",),
}


def llama3_frequencies(rope: Rope, dimensions: int) -> Weights:
    """The divisors of the frequencies, rope_freqs.weight: Llama 3.1's scaling.

    Wavelengths up to L/high are left alone, those from L/low on are stretched by `factor`, and between them the two are
    blended linearly in L/wavelength, where L is the length trained with (meta-llama/llama-models, apply_scaling).
    """
    factor = rope.number("factor", 8.0)
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    length = rope.whole("original_max_position_embeddings", 8192)
    if not (factor > 0 and 0 < low < high and rope.base > 0):
        raise InvalidModel("config.json gives factors of rope_scaling that cannot be; download it again.")
    # float32 step by step, with reciprocals where llama.cpp's converter has them: the same numbers to the last bit.
    one, exponents = np.float32(1), np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    frequencies = one / np.power(rope.base, exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    smooth = (one / wavelengths * np.float32(length) - np.float32(low)) / np.float32(high - low)
    blended = one / ((one - smooth) / np.float32(factor) + smooth)
    divisors = np.where(wavelengths < length / high, one, blended)
    return constant("rope_freqs.weight", np.where(wavelengths > length / low, np.float32(factor), divisors))


def longrope_tensors(rope: Rope, dimensions: int) -> tuple[Weights, ...]:
    """The divisors for long and for short texts, one for each pair of `dimensions`. Raises InvalidModel."""
    tensors = []
    for name in ("long_factor", "short_factor"):
        factors = finite_all(f"rope_scaling.{name}", rope.parameters.get(name))
        if len(factors) != dimensions // 2:
            raise InvalidModel(
                f"config.json gives {len(factors)} numbers in rope_scaling.{name}, where {dimensions // 2} belong."
            )
        tensors.append(constant(f"rope_factors_{name.removesuffix('_factor')}.weight", list(factors)))
    return tuple(tensors)
