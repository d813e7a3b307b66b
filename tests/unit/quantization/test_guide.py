"""The guide on a model whose divergences are known: what it measures, and how well it tells the rest."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from service.quantization.guide import estimate, role, roles

_TYPES = {"Q2_K": 16.0, "Q3_K": 4.0, "Q4_K": 1.0, "Q6_K": 0.05}
_ROLES = ("attn_q", "ffn_down")
_NAMES = [f"blk.{block}.{kind}.weight" for block in range(8) for kind in _ROLES]


def _errors(name: str, kind: str) -> float:
    return _TYPES[kind] * (3.0 if "ffn" in name else 1.0) * (1 + 0.1 * int(name.split(".")[1]))


class _Model:
    """Divergence: each tensor's error times how much the model minds it, which falls with depth."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power
        self.measured: list[Mapping[str, str]] = []

    def loss(self, name: str, kind: str) -> float:
        minds = (5.0 if "ffn" in name else 1.0) / (1 + int(name.split(".")[1])) ** 2
        return minds * (_errors(name, kind) ** self.power) * 1e-3

    def measure(self, types: Mapping[str, str]) -> float:
        self.measured.append(types)
        return sum(self.loss(name, kind) for name, kind in types.items())


def _estimate(model: _Model, measurements: int) -> dict[str, dict[str, float]]:
    probes, coarse = dict.fromkeys(_NAMES, "Q4_K"), dict.fromkeys(_NAMES, "Q2_K")
    found = estimate(_NAMES, probes, coarse, _errors, model.measure, lambda: len(model.measured) < measurements)
    return found.losses({name: list(_TYPES) for name in _NAMES}, _errors)


def test_roles_are_names_without_their_numbers_in_the_order_of_the_blocks() -> None:
    assert role("blk.12.ffn_down.weight") == "blk.#.ffn_down.weight"
    assert roles(["blk.10.a", "blk.2.a", "b"]) == [("b",), ("blk.2.a", "blk.10.a")]


def test_every_role_is_measured_even_without_time() -> None:
    model = _Model()
    losses = _estimate(model, 0)
    assert len(model.measured) == len(_ROLES)
    assert losses.keys() == set(_NAMES)


def test_groups_that_matter_most_are_split_first() -> None:
    model = _Model()
    _estimate(model, 6)
    assert all("ffn_down" in name for types in model.measured[4:] for name in types)


def test_with_time_enough_every_tensor_is_told_by_itself() -> None:
    model = _Model()
    losses = _estimate(model, 1000)
    for name in _NAMES:
        for kind in _TYPES:
            assert losses[name][kind] == pytest.approx(model.loss(name, kind), rel=0.02)


def test_two_types_of_a_role_tell_the_power_of_the_error() -> None:
    model = _Model(power=1.3)
    losses = _estimate(model, 1000)
    ratio = losses[_NAMES[0]]["Q2_K"] / losses[_NAMES[0]]["Q4_K"]
    assert ratio == pytest.approx(16**1.3, rel=0.02)
