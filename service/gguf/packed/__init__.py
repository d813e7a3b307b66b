"""Quantized checkpoints as the floats they stand for: GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors.

Runs in job children. A packed tensor becomes one that reads as an unquantized one would, some rows at a time, so that
no more than those is in memory. Knows nothing of architectures, and nothing of what is made of the floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import Tensor
from service.gguf.packed import awq, bitsandbytes, compressed, fp8, gptq
from service.gguf.packed.parts import Unpacked

_METHODS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], Unpacked]] = {
    "gptq": gptq.unpack,
    "awq": awq.unpack,
    "bitsandbytes": bitsandbytes.unpack,
    "fp8": fp8.unpack,
    "fbgemm_fp8": fp8.unpack,
    "compressed-tensors": compressed.unpack,
}
_REMEDY = (
    "GPTQ, AWQ, bitsandbytes (NF4, FP4, LLM.int8), FP8 and compressed-tensors (4 and 8 bits, FP8) are read. Take the "
    "checkpoint that it was made from, or a GGUF file of the model."
)
# Tensors that only quantized checkpoints have.
_TELLTALES = (".qweight", ".weight_packed", ".SCB", *bitsandbytes.STATES)


def with_quantization(config: dict[str, Any], files: Files) -> dict[str, Any]:
    """`config`, of config.json, with the `quantization_config` that AutoGPTQ and AutoAWQ put into their own files."""
    if "quantization_config" in config or "compression_config" in config:
        return config
    for name in ("quantize_config.json", "quant_config.json"):
        found = files.json(name)
        if found is not None:
            return {**config, "quantization_config": found}
    return config


def unpacked(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> tuple[Mapping[str, Tensor], str | None]:
    """The tensors that the checkpoint would have if it were not quantized; and what it is, for people.

    That is None for one that is not. `config` is config.json's, as `with_quantization` completes it. Only headers and
    small tensors are read. Raises InvalidModel, as reading the tensors does.
    """
    quantization = _quantization(config)
    if quantization is None:
        if any(name.endswith(_TELLTALES) for name in tensors):
            raise InvalidModel(
                "The checkpoint has packed tensors, and nothing says how: config.json has no quantization_config, and "
                "there is no quantize_config.json or quant_config.json. Download it with these files."
            )
        return tensors, None
    method = _method(quantization)
    if method not in _METHODS:
        raise InvalidModel(f"The checkpoint is quantized with {ascii(method)[:80]}, which is not read. {_REMEDY}")
    found = _METHODS[method](tensors, quantization)
    return found.tensors, found.description


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for holder in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(found, dict) and found:
                return found
    return None


def _method(quantization: Mapping[str, Any]) -> str:
    """What `quant_method` says, and what is meant by the files of libraries from before there was one."""
    method = quantization.get("quant_method") or quantization.get("quant_type")
    if isinstance(method, str):
        return method.lower()
    if "load_in_4bit" in quantization or "load_in_8bit" in quantization:
        return "bitsandbytes"
    if "w_bit" in quantization or "zero_point" in quantization:
        return "awq"
    if "bits" in quantization and "group_size" in quantization:
        return "gptq"
    return "an unnamed method"
