"""PEFT's LoRA adapters (adapter_config.json, adapter_model.safetensors) written as GGUF adapters for a base model.

Runs in job children, on files that a stranger chose. What a GGUF adapter cannot say (other kinds of adapters, weights
that replace the model's, biases) is refused with the remedy, never left out in silence. Factors are written in F32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.domain.errors import InvalidModel
from service.gguf.adapted import module_name, rules_by_module
from service.gguf.adapters import ADAPTER_TYPE, ALPHA, EMBEDDING, KIND
from service.gguf.architectures.rules import Rule, Weights
from service.gguf.checkpoint_files import PICKLES, Files
from service.gguf.checkpoints import Tensor, open_tensors
from service.gguf.fields import Field
from service.gguf.header import Header
from service.gguf.writing import Plan, Written

CONFIG = "adapter_config.json"
STEM = "adapter_model"

_MERGE = "Merge it into its base model (PEFT's merge_and_unload), and import the result."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?P<weight>\.weight)?"
)
_PREFIX = re.compile(r"^(?:base_model\.model\.)?")
# Ways to begin the training that change the base model itself.
_CHANGES_BASE = ("pissa", "olora", "corda")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_UNSUPPORTED_KINDS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
    "invocation_string": "aLoRA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trained token embeddings",
}


@dataclass(frozen=True, slots=True)
class _Config:
    """What adapter_config.json says of the product's scale: alpha / r, by module where patterns say so."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    rank_stabilized: bool

    def scale(self, module: str, rank: int) -> float:
        """How many times the product of `module` counts, by PEFT's LoraLayer.update_layer."""
        alpha = _number(_matching(self.alpha_pattern, module, self.alpha), "alpha_pattern")
        expected = _matching(self.rank_pattern, module, self.rank)
        if expected != rank:
            raise InvalidModel(
                f"The factors for {module[:80]!a} have the rank {rank}, and {CONFIG} says {expected!a}; the files do "
                "not belong together."
            )
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank


def convert_adapter(files: Files, base: Header, target: Path, progress: Callable[[float, str], None]) -> Written:
    """Write the adapter in `files` for the model that `base` is the header of. Raises InvalidModel, OSError.

    Whether the shapes fit `base` is for `gguf.adapters` to see. Memory stays that of one factor.
    """
    config = _read_config(files)
    factors = []
    for pair in _pairs(_open(files), base):
        rank = pair.b.shape[1]
        # llama.cpp takes alpha / rank for every pair; what differs from it goes into B.
        factor = config.scale(pair.module, rank) / (config.alpha / rank)
        factors += [(_a(pair), "F32"), (_b(pair, np.float32(factor)), "F32")]
    fields = (
        Field("general.architecture", "str", base.architecture),
        Field(KIND, "str", "adapter"),
        Field(ADAPTER_TYPE, "str", "lora"),
        Field(ALPHA, "f32", config.alpha),
    )
    return Plan(fields, factors).write(target, progress)


def _open(files: Files) -> Mapping[str, Tensor]:
    if not any(name.endswith(".safetensors") for name in files.names) and any(
        name.endswith(PICKLES) for name in files.names
    ):
        raise InvalidModel(
            f"The adapter's weights are in a pickled file ({STEM}.bin), which runs code when it is read, so it never "
            "is. Save it again with PEFT: model.save_pretrained(folder, safe_serialization=True)."
        )
    return open_tensors(files, STEM)


def _read_config(files: Files) -> _Config:
    found = files.json(CONFIG)
    if found is None:
        raise InvalidModel(f"There is no {CONFIG}, which says how much the adapter counts; bring it along.")
    kind = found.get("peft_type")
    if kind != "LORA":
        raise InvalidModel(f"The adapter is of PEFT's kind {str(kind)[:40]!a}, and only LORA is carried out. {_MERGE}")
    for key, name in _UNSUPPORTED_KINDS.items():
        if found.get(key):
            raise InvalidModel(f"The adapter uses {name} ({key}), which llama.cpp does not carry out. {_MERGE}")
    if found.get("modules_to_save"):
        raise InvalidModel(f"The adapter replaces whole modules (modules_to_save), not only adds to them. {_MERGE}")
    if (found.get("bias") or "none") != "none" or found.get("lora_bias"):
        raise InvalidModel(f"The adapter changes biases, which llama.cpp does not carry out. {_MERGE}")
    start = found.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InvalidModel(
            f"The adapter was begun with {start[:40]!a}, which changes the base model too; save it again with PEFT's "
            "path_initial_model_for_weight_conversion."
        )
    rank, alpha = found.get("r"), found.get("lora_alpha", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InvalidModel(f"{CONFIG} gives no rank (r) of at least 1; get the adapter again.")
    number = _number(alpha, "lora_alpha")
    patterns = {key: found.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    if not all(isinstance(pattern, dict) for pattern in patterns.values()):
        raise InvalidModel(f"The patterns of {CONFIG} are no objects; get the adapter again.")
    return _Config(rank, number, **patterns, rank_stabilized=bool(found.get("use_rslora")))


def _number(value: Any, key: str) -> float:
    # GGUF has 32-bit floats for it, and so far from their ends no quotient of two leaves them.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-12 < abs(value) < 1e12:
        raise InvalidModel(f"{key} in {CONFIG} is no number, or out of range; get the adapter again.")
    return float(value)


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first value whose key is the end of the module's name, whole parts, as PEFT has it without expressions."""
    for key, value in pattern.items():
        if re.search(r"[^\w.^$\\-]", key):
            raise InvalidModel(f"{key[:80]!a} in {CONFIG} is an expression, and only names are read. {_MERGE}")
        name = key.replace("\\.", ".").removesuffix("$")
        if name.startswith("^"):
            if name[1:] == module:
                return value
        elif module == name or module.endswith(f".{name}"):
            return value
    return default


@dataclass(frozen=True, slots=True)
class _Pair:
    """The factors of one module: `b` @ `a` is added to the weights that `rule` makes of it."""

    module: str
    rule: Rule
    a: Tensor
    b: Tensor


def _pairs(tensors: Mapping[str, Tensor], base: Header) -> list[_Pair]:
    """In the order of the base's own tensors. Raises InvalidModel."""
    rules = rules_by_module(base)
    sides: dict[str, dict[str, Tensor]] = {}
    modules = {}
    for full, tensor in tensors.items():
        name = _PREFIX.sub("", full)
        if name.endswith(".base_layer.weight"):
            continue  # the base model's own, which PEFT saves along with adapted embeddings
        part = _FACTOR.fullmatch(name)
        if part is None or bool(part["embedding"]) == bool(part["weight"]):
            raise InvalidModel(
                f"The adapter has a tensor {full[:120]!a}, which is no factor of a low-rank product; DoRA, biases and "
                f"whole modules are not carried out. {_MERGE}"
            )
        if len(tensor.shape) != 2 or not all(tensor.shape):
            raise InvalidModel(f"The tensor {full[:120]!a} of the adapter is no matrix; it is corrupt, get it again.")
        if tensor.dtype not in _FLOATS:
            raise InvalidModel(f"The tensor {full[:120]!a} of the adapter holds whole numbers; get it again.")
        rule = rules.get(module_name(part["module"]) or "")
        if rule is None:
            raise InvalidModel(
                f"The adapter changes the module {part['module'][:120]!a}, which is not known of {base.architecture} "
                f"models here. {_MERGE}",
                param="model",
            )
        modules[rule.target] = (part["module"], rule)
        sides.setdefault(rule.target, {})[part["side"]] = tensor
    if not sides:
        raise InvalidModel("The adapter has no factors of low-rank products; get it again.")
    order = {tensor.name: index for index, tensor in enumerate(base.tensors)}
    found = []
    for target in sorted(sides, key=lambda name: (order.get(name, len(order)), name)):
        pair = sides[target]
        if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise InvalidModel(
                f"The factors for {modules[target][0][:120]!a} do not belong together; get the adapter again."
            )
        found.append(_Pair(*modules[target], pair["A"], pair["B"]))
    return found


def _a(pair: _Pair) -> Weights:
    """A as llama.cpp reads it: that of an embedding by its rows, one for each token."""
    name = f"{pair.rule.target}.lora_a"
    if pair.rule.target != EMBEDDING:
        return Weights(name, pair.a.shape, pair.a.read)
    return Weights(name, pair.a.shape[::-1], lambda start, stop: pair.a.all()[:, start:stop].T)


def _b(pair: _Pair, factor: np.float32) -> Weights:
    """B times `factor`, with its rows in the order that those of the weights have in GGUF."""
    rule = pair.rule
    b = Weights(f"{rule.target}.lora_b", pair.b.shape, pair.b.read)
    if rule.change is not None:
        if b.rows != rule.shape[0]:
            raise InvalidModel(
                f"The factors for {rule.target!a} have {b.rows} rows, and the model's weights {rule.shape[0]}; name "
                "the model that it was trained on.",
                param="model",
            )
        b = rule.change(b)
    if factor == 1:
        return b
    read = b.read
    return replace(b, read=lambda start, stop: read(start, stop) * factor)
