"""Packs small matrices with the libraries that make quantized checkpoints, for test_packed_by_libraries.py.

    python pack_with_libraries.py packed_by_libraries.npz

Not run by the tests: it needs torch, and GPTQModel, AutoAWQ, bitsandbytes and compressed-tensors with all that they
import. Each case is what the library itself stores, and what it reads back from that with its own code; the versions
are kept beside them. All on the CPU; of AutoAWQ only the two layers are imported, as the rest of its last release no
longer runs with current versions of transformers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 7
LIBRARIES = ("torch", "bitsandbytes", "gptqmodel", "autoawq", "compressed-tensors")


def linear(outputs: int, inputs: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.randn(outputs, inputs) / 8
    return layer


def grid(
    weight: torch.Tensor, bits: int, group_of: torch.Tensor, *, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros (outputs, groups) as the libraries' quantizers choose them: from the extremes of the group."""
    top = 2**bits - 1
    scales, zeros = [], []
    for group in range(int(group_of.max()) + 1):
        inside = weight[:, group_of == group]
        low, high = inside.amin(1).clamp(max=0), inside.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / top).half().float()
        scales.append(scale)
        zeros.append(torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round())
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def four_bits(kind: str, nested: bool, block: int) -> tuple[dict[str, Any], torch.Tensor, dict[str, Any]]:
    import bitsandbytes as bnb

    outputs, inputs = 16, 2 * block  # on the CPU rows shorter than a block are read back wrongly
    layer = bnb.nn.Linear4bit(
        inputs, outputs, bias=False, quant_type=kind, compress_statistics=nested, compute_dtype=torch.float16
    )
    layer.weight = bnb.nn.Params4bit(
        linear(outputs, inputs).weight.data,
        quant_type=kind,
        compress_statistics=nested,
        blocksize=block,
        requires_grad=False,
    )
    layer = layer.to("cpu")
    meant = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return dict(layer.state_dict()), meant, config


def eight_bits() -> tuple[dict[str, Any], torch.Tensor, dict[str, Any]]:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(64, 16, bias=False, has_fp16_weights=False)
    layer.load_state_dict(linear(16, 64).state_dict())
    layer = layer.to("cpu")
    state = dict(layer.state_dict())
    meant = bnb.functional.int8_vectorwise_dequant(state["weight"], state["SCB"])
    return state, meant, {"quant_method": "bitsandbytes", "load_in_8bit": True}


def gptq(bits: int, group: int, *, act_order: bool, symmetric: bool, version: int) -> Any:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    outputs, inputs = 32, 64
    source = linear(outputs, inputs)
    size = inputs if group == -1 else group
    group_of = torch.arange(inputs, dtype=torch.int32) // size
    if act_order:
        group_of = group_of[torch.randperm(inputs)]
    scales, zeros = grid(source.weight.data, bits, group_of, symmetric=symmetric)
    layer = TorchLinear(
        bits=bits, group_size=group, sym=symmetric, desc_act=act_order, in_features=inputs, out_features=outputs
    )
    layer.pack_original(source, scales, zeros, group_of)
    layer.post_init()
    meant = layer.dequantize_weight().T.float()
    if version == 1:
        config = types.SimpleNamespace(bits=bits, pack_dtype=torch.int32)
        convert_gptq_v2_to_v1_format_module(layer, config)  # type: ignore[arg-type]
    state = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    described = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": {1: "gptq", 2: "gptq_v2"}[version],
    }
    return state, meant, described


def awq(layout: str, group: int) -> Any:
    if "awq" not in sys.modules:
        root = Path(importlib.util.find_spec("awq").submodule_search_locations[0])  # type: ignore[union-attr,index]
        for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.utils.packing_utils import dequantize_gemm

    outputs, inputs = 32, 128
    source = linear(outputs, inputs)
    size = inputs if group == -1 else group
    group_of = torch.arange(inputs) // size
    scales, zeros = grid(source.weight.data, 4, group_of)
    # What is packed must lie on the grid: AutoAWQ has clipped the weights before, and these layers no longer do.
    codes = (source.weight.data / scales[:, group_of] + zeros[:, group_of]).round().clamp(0, 15)
    source.weight.data = (codes - zeros[:, group_of]) * scales[:, group_of]
    gemm = WQLinear_GEMM.from_linear(source, 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    meant = dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, size).T.float()
    layer = gemm
    if layout == "gemv":  # which has no code of its own to read back; the codes are the same
        layer = WQLinear_GEMV.from_linear(source, 4, size, scales=scales, zeros=zeros)
    state = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    described = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": layout}
    return state, meant, described


def compressed(bits: int, *, symmetric: bool) -> Any:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    outputs, inputs, group = 16, 64, 32
    weight = linear(outputs, inputs).weight.data
    scales, zeros = grid(weight, bits, torch.arange(inputs) // group, symmetric=symmetric)
    zeros = (zeros - 2 ** (bits - 1)).to(torch.int8)
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    state = {"weight": weight, "weight_scale": scales, "weight_zero_point": zeros}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    meant = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    described = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(arguments.model_dump_json())}},
    }
    return packed, meant, described


def main() -> None:
    cases: dict[str, Any] = {}
    for kind, nested, block in (("nf4", True, 64), ("nf4", False, 128), ("fp4", True, 64)):
        cases[f"{kind}-{'nested' if nested else 'plain'}-{block}"] = lambda k=kind, n=nested, b=block: four_bits(
            k, n, b
        )
    cases["llm-int8"] = eight_bits
    for bits, version in ((2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (8, 1)):
        cases[f"gptq-{bits}-v{version}"] = lambda b=bits, v=version: gptq(
            b, 32, act_order=v == 1, symmetric=False, version=v
        )
    cases["gptq-4-symmetric-whole"] = lambda: gptq(4, -1, act_order=False, symmetric=True, version=1)
    for layout, group in (("gemm", 64), ("gemm", 128), ("gemv", 64)):
        cases[f"awq-{layout}-{group}"] = lambda n=layout, g=group: awq(n, g)
    for bits, symmetric in ((4, True), (4, False), (8, True)):
        cases[f"compressed-{bits}-{'symmetric' if symmetric else 'zeros'}"] = lambda b=bits, s=symmetric: compressed(
            b, symmetric=s
        )
    arrays: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    for name, make in cases.items():
        torch.manual_seed(SEED)
        state, meant, config = make()
        configs[name] = config
        arrays[f"{name}/meant"] = meant.detach().float().numpy().astype(np.float16)
        for ending, tensor in state.items():
            arrays[f"{name}/{ending}"] = tensor.detach().numpy()
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    arrays["about"] = np.frombuffer(json.dumps({"versions": versions, "configs": configs}).encode(), np.uint8)
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
