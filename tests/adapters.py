"""LoRA adapters as PEFT saves them, with random factors for a llama model in GGUF; and that model with them merged in.

The names, the scale and the order of rows are worked out here by themselves, so that a mistake of service/gguf/peft.py
is not made twice. Needs numpy and gguf alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import write_safetensors

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Factors = dict[
    str, tuple[NDArray[np.float32], NDArray[np.float32]]
]  # module, e.g. "model.layers.0.mlp.up_proj" -> A, B


def factors(base: Path, *, seed: int = 0, rank: int = 4, strength: float = 0.5, only: str = "") -> Factors:
    """Factors for the modules of every layer of `base` whose names hold `only`, with `strength` times the spread of
    the weights; sizes as torch has them: A (rank, inputs), B (outputs, rank)."""
    random = np.random.default_rng(seed)
    shapes = {
        tensor.name: (tensor.data.shape, float(np.std(tensor.data.astype(np.float32))))
        for tensor in gguf.GGUFReader(base).tensors
    }
    found: Factors = {}
    for layer in range(_number(base, "block_count")):
        for module, name in MODULES.items():
            (outputs, inputs), spread = shapes[f"blk.{layer}.{name}.weight"]
            if only not in module:
                continue
            a = random.standard_normal((rank, inputs), dtype=np.float32)
            b = random.standard_normal((outputs, rank), dtype=np.float32) * np.float32(
                spread * strength / np.sqrt(rank)
            )
            found[f"model.layers.{layer}.{module}"] = (a, b)
    return found


def write_peft(folder: Path, found: Factors, *, dtype: str = "F32", **config: Any) -> Path:
    """An adapter's folder; `config` replaces what would be in adapter_config.json, where alpha is twice the rank."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in found.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    rank = next(iter(found.values()))[0].shape[0]
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "gloss",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted({module.rpartition(".")[2] for module in found}),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    write_safetensors(folder / "adapter_model.safetensors", tensors, dtype)
    return folder


def write_merged(target: Path, base: Path, changes: Mapping[str, NDArray[np.float32]] | None = None) -> Path:
    """`base` in F32 with `changes`, by torch's names of modules, added to its weights."""
    added = {_gguf_name(module): change for module, change in (changes or {}).items()}
    reader = gguf.GGUFReader(base)
    heads, kv_heads = _number(base, "attention.head_count"), _number(base, "attention.head_count_kv")
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        item = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], item)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = np.asarray(tensor.data, dtype=np.float32)
        change = added.pop(tensor.name, None)
        if change is not None:
            if ".attn_q." in tensor.name:
                change = _interleaved(change, heads)
            elif ".attn_k." in tensor.name:
                change = _interleaved(change, kv_heads)
            values = values + change
        writer.add_tensor(tensor.name, values)
    assert not added
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def products(found: Factors, scale: float) -> dict[str, NDArray[np.float32]]:
    """What an adapter adds to the weights of each module."""
    return {module: np.float32(scale) * (b @ a) for module, (a, b) in found.items()}


def _interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Row i and row i + half of a head next to each other, where torch has one half behind the other."""
    arranged = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        start = head * size
        for row in range(size // 2):
            arranged[start + 2 * row] = rows[start + row]
            arranged[start + 2 * row + 1] = rows[start + size // 2 + row]
    return arranged


def _gguf_name(module: str) -> str:
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{MODULES[rest]}.weight"


def _number(base: Path, key: str) -> int:
    return int(gguf.GGUFReader(base).fields[f"llama.{key}"].contents())
