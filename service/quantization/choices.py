"""Which types each tensor of a model may have in a mix, what they take, and the recipe that makes a mix.

Child processes. llama.cpp's own dry runs say what fits which tensor, so a mix that is chosen can be made, to the byte.
Knows nothing of losses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from service.domain.catalog import LevelPlan, TensorInfo
from service.domain.errors import InvalidParameter, QuantizationNotApplicable
from service.domain.quants import GGML_TYPES, QUANTIZATIONS, UNQUANTIZED_TYPES, Family
from service.domain.recipes import Recipe, TypeOverride
from service.gguf.header import DEFAULT_ALIGNMENT, Header, padded, tensor_bytes, weights
from service.quantization.plan import plan_recipe

LONG_BLOCKS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""What a mix is made of when nothing else is asked for: k-quants, and IQ4_XS in the gap between 3.4 and 4.5 bits."""
SHORT_BLOCKS = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What takes their place where rows do not fill their blocks of 256."""

# Types that llama.cpp refuses, or aborts on, for a tensor without importance.
_NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
_BLOCK_WEIGHTS = {ggml.name: ggml.block_weights for ggml in GGML_TYPES.values()}
_PROBES = ("Q8_0", "Q4_0")  # a tensor that is the same in both is no matrix, or pinned
_FAIR_SHARE = 0.05  # of the weights, for a mix to bear a type's name
_SPECIAL = frozenset({"Q2_K_S"})  # asks for importance for types that elsewhere need none


@dataclass(frozen=True, slots=True)
class Choices:
    """The tensors that a mix decides on, each with its types and their padded bytes, smallest first.

    `rest_bytes` is what the file takes beside them, `rest` the types of the other tensors. `kept` holds, for a source
    that is quantized already, the type that each tensor may keep at no loss.
    """

    options: Mapping[str, Mapping[str, int]]
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]
    rest: Mapping[str, str]
    rest_bytes: int
    rest_data_bytes: int
    rest_weights: int

    def file_bytes(self, types: Mapping[str, str]) -> int:
        """Exact size of the file with these types."""
        return self.rest_bytes + sum(self.options[name][kind] for name, kind in types.items())


def find_choices(
    source: Path, header: Header, recipe: Recipe, types: Iterable[str], importance: frozenset[str]
) -> Choices:
    """Try each type on the whole model. `types` empty: k-quants, and short blocks where those do not fit.

    `importance` names the tensors that the importance matrix knows. What the recipe pins is no choice. Raises
    InvalidParameter for a type that is no level's, QuantizationNotApplicable when nothing is left to choose.
    """
    if recipe.prune_layers:
        raise InvalidParameter(
            "A mix is searched on the model as it is: make the pruned model first and search on that one.",
            param="recipe.prune_layers",
        )
    asked = tuple(dict.fromkeys(types))
    wanted = asked or LONG_BLOCKS + SHORT_BLOCKS
    plans = {
        kind: _uniform(source, header, recipe, kind, has_importance=bool(importance))
        for kind in dict.fromkeys(wanted + _PROBES)
    }
    made = {kind: plan for kind, plan in plans.items() if plan.error is None}
    if not made:
        raise QuantizationNotApplicable(next(iter(plans.values())).error or "", param="search.types")
    types_of = {kind: {tensor.name: tensor.type for tensor in plan.tensors} for kind, plan in made.items()}
    any_plan = next(iter(made.values()))
    sources = {tensor.name: tensor for tensor in header.tensors}
    options: dict[str, dict[str, int]] = {}
    kept: dict[str, str] = {}
    for tensor in any_plan.tensors:
        if len({planned[tensor.name] for planned in types_of.values()}) == 1:
            continue  # pinned by the recipe, or no matrix at all
        fitting = [
            kind
            for kind in wanted
            if kind in made
            and types_of[kind][tensor.name] == kind
            and not (kind in _NEED_IMPORTANCE and tensor.name not in importance)
        ]
        if not asked and any(_BLOCK_WEIGHTS[kind] == 256 for kind in fitting):
            fitting = [kind for kind in fitting if kind in LONG_BLOCKS]
        # Where none fits there is still what llama.cpp falls back to.
        fitting = fitting or [types_of[kind][tensor.name] for kind in made]
        found = {kind: _bytes(tensor, kind) for kind in fitting}
        was = sources[tensor.name]
        if was.type not in UNQUANTIZED_TYPES:
            stays = _bytes(was, was.type)
            found = {kind: size for kind, size in found.items() if size < stays} | {was.type: stays}
            kept[tensor.name] = was.type
        options[tensor.name] = dict(sorted(found.items(), key=lambda item: (item[1], item[0])))
    if not any(len(found) > 1 for found in options.values()):
        raise QuantizationNotApplicable(
            "There is nothing to choose: no tensor of this model can have two of the types. Allow others.",
            param="search.types",
        )
    chosen = [tensor for tensor in any_plan.tensors if tensor.name in options]
    rest = {tensor.name: tensor.type for tensor in any_plan.tensors if tensor.name not in options}
    return Choices(
        options=options,
        shapes={tensor.name: tensor.shape for tensor in chosen},
        kept=kept,
        rest=rest,
        rest_bytes=any_plan.size_bytes - sum(padded(tensor.size_bytes, DEFAULT_ALIGNMENT) for tensor in chosen),
        rest_data_bytes=sum(tensor.size_bytes for tensor in any_plan.tensors if tensor.name in rest),
        rest_weights=sum(weights(tensor.shape) for tensor in any_plan.tensors if tensor.name in rest),
    )


def mix_recipe(
    source: Path, header: Header, recipe: Recipe, choices: Choices, types: Mapping[str, str], *, has_importance: bool
) -> tuple[Recipe, LevelPlan]:
    """The recipe that gives each tensor its type, at the level whose name fits best, and its plan.

    The level is the one with the nearest stock size among those made of a type that enough weights have. Raises
    QuantizationNotApplicable when llama.cpp would make something else.
    """
    patterns = tuple(TypeOverride(f"^{_literal(name)}$", kind) for name, kind in sorted(types.items()))
    mixed = replace(recipe, pure=False, overrides=recipe.overrides + patterns)
    wanted = choices.file_bytes(types)
    counts = Counter[str]()
    for name, kind in types.items():
        counts[kind] += weights(choices.shapes[name])
    stock: list[tuple[int, str]] = []
    for kind, count in counts.items():
        for label in _labels(kind) if count >= _FAIR_SHARE * counts.total() else ():
            plan, _ = plan_recipe(source, header, Recipe(label, allow_requantize=True), has_importance=has_importance)
            stock.append((abs(plan.size_bytes - wanted) if plan.error is None else wanted, label))
    refusal = "There is no level to file this mix under."
    for _, label in sorted(stock):
        plan, planned = plan_recipe(source, header, mixed.at(label), has_importance=has_importance)
        if plan.error is not None:
            refusal = plan.error
        elif plan.size_bytes == wanted and all(planned[name] == wish for name, wish in types.items()):
            return mixed.at(label), plan
    raise QuantizationNotApplicable(refusal, param="target")


def _uniform(source: Path, header: Header, recipe: Recipe, kind: str, *, has_importance: bool) -> LevelPlan:
    labels = _labels(kind)
    if not labels:
        known = sorted({level.base_type for level in QUANTIZATIONS.values() if level.family is not Family.FLOAT})
        raise InvalidParameter(f"No level is made of {kind!r}; types are {', '.join(known)}.", param="search.types")
    pure = replace(recipe, quantization=labels[0], pure=True, allow_requantize=True)
    return plan_recipe(source, header, pure, has_importance=has_importance)[0]


def _labels(kind: str) -> list[str]:
    return [
        level.label
        for level in QUANTIZATIONS.values()
        if level.base_type == kind and level.family is not Family.FLOAT and level.label not in _SPECIAL
    ]


def _bytes(tensor: TensorInfo, kind: str) -> int:
    return padded(tensor_bytes(tensor.shape, kind), DEFAULT_ALIGNMENT)


def level_of(kind: str) -> str:
    """A level that is made of this type; every type of a choice has one."""
    return _labels(kind)[0]


def _literal(name: str) -> str:
    """A pattern for this name alone. Python's own escape also escapes what llama.cpp's expressions do not know."""
    return re.sub(r"([.^$|()\[\]{}*+?\\])", r"\\\1", name)
