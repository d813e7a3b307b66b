"""All 35 levels on the demo model and some on SmolLM2, made by llama.cpp for real.

What the plan says before is what lies on the disk after: types, size to the byte, and the reason of each refusal.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain.catalog import LevelPlan
from service.domain.errors import (
    DiskFull,
    ImportanceMatrixRequired,
    LossySource,
    QuantizationFailed,
    QuantizationNotApplicable,
)
from service.domain.quants import GGML_TYPES, QUANTIZATIONS
from service.domain.recipes import Recipe
from service.gguf.files import facts, read_header
from service.llama.quantizer import quantize_model
from service.quantization import quantize as quantize_module
from service.quantization.plan import plan_levels
from service.quantization.quantize import TensorProgress, quantize

ROOT = Path(__file__).resolve().parents[2]
GLOSS = ROOT / "demo" / "gloss-5m-f16.gguf"
NEEDS_MATRIX = {"IQ3_XS", "IQ3_XXS", "IQ2_M", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
NOT_APPLICABLE = {"MXFP4_MOE"}
K_QUANT_TYPES = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


def ignore(_: TensorProgress) -> None:
    pass


@pytest.fixture(scope="module")
def plans() -> dict[str, LevelPlan]:
    made = plan_levels(GLOSS, read_header(GLOSS), QUANTIZATIONS)
    assert [plan.quantization for plan in made] == list(QUANTIZATIONS)
    return {plan.quantization: plan for plan in made}


def test_there_are_35_levels_and_the_plan_tells_which_can_be_made(plans: dict[str, LevelPlan]) -> None:
    assert len(plans) == 35
    assert {label for label, plan in plans.items() if plan.needs_imatrix} == NEEDS_MATRIX
    assert {label for label, plan in plans.items() if plan.error} == NOT_APPLICABLE
    assert "mixture-of-experts" in (plans["MXFP4_MOE"].error or "")
    assert {label for label, level in QUANTIZATIONS.items() if level.needs_imatrix} == NEEDS_MATRIX


@pytest.mark.parametrize("label", QUANTIZATIONS)
def test_every_level_is_made_as_planned_or_refused_for_the_stated_reason(
    label: str, plans: dict[str, LevelPlan], tmp_path: Path
) -> None:
    plan, target = plans[label], tmp_path / "made.gguf"
    if label in NOT_APPLICABLE or label in NEEDS_MATRIX:
        expected = QuantizationNotApplicable if label in NOT_APPLICABLE else ImportanceMatrixRequired
        with pytest.raises(expected):
            quantize(GLOSS, target, Recipe(label), threads=2, progress=ignore)
        assert not target.exists()
        if label in NEEDS_MATRIX:
            with pytest.raises(QuantizationFailed, match="imatrix"):
                quantize_model(GLOSS, target, Recipe(label))
        return
    seen: list[TensorProgress] = []
    made = quantize(GLOSS, target, Recipe(label), threads=2, progress=seen.append)
    assert target.stat().st_size == plan.size_bytes == made.file_size
    found = facts(made)
    assert found.quantization == label
    assert found.types == plan.types
    assert found.bits_per_weight == pytest.approx(plan.bits_per_weight)
    assert found.parameters == facts(read_header(GLOSS)).parameters
    # Tensor by tensor: the matrices of the layers have the level's own type or the mix's, and no other.
    counted = dict(plan.types)
    assert counted[QUANTIZATIONS[label].base_type] >= 24
    if label.endswith(("_K", "_K_S", "_K_M", "_K_L")):
        assert set(counted) - {"F32"} <= K_QUANT_TYPES
        assert {tensor.type for tensor in made.tensors if ".attn_q." in tensor.name} == {QUANTIZATIONS[label].base_type}
    assert [step.index for step in seen] == [*range(1, 57), 56]
    assert [step.bytes_done for step in seen] == sorted(step.bytes_done for step in seen)
    assert seen[0].bytes_done == 0
    assert seen[-1].bytes_done == seen[-1].bytes_total == facts(read_header(GLOSS)).tensor_bytes


def test_small_medium_and_large_mixes_differ_as_their_names_say(plans: dict[str, LevelPlan]) -> None:
    for small, large in (("Q3_K_S", "Q3_K_M"), ("Q3_K_M", "Q3_K_L"), ("Q4_K_S", "Q4_K_M"), ("Q5_K_S", "Q5_K_M")):
        assert plans[small].size_bytes < plans[large].size_bytes


def test_the_file_types_of_the_table_are_llama_cpps_own() -> None:
    import llama_cpp

    for label, level in QUANTIZATIONS.items():
        prefix = "LLAMA_FTYPE_ALL_" if label == "F32" else "LLAMA_FTYPE_MOSTLY_"
        assert getattr(llama_cpp, prefix + label) == level.file_type, label
    writable = {name for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_MOSTLY_")}
    left_out = writable - {f"LLAMA_FTYPE_MOSTLY_{label}" for label in QUANTIZATIONS}
    # Read by llama.cpp, and refused by its quantizer (llama_ftype_get_default_type knows no type for it).
    assert left_out == {"LLAMA_FTYPE_MOSTLY_NVFP4"}


def test_the_tensor_types_of_the_table_are_ggmls_own() -> None:
    from llama_cpp import _ggml

    library = _ggml.libggml
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    for number in range(43):
        block = int(library.ggml_blck_size(number))
        ggml = GGML_TYPES.get(number)
        if ggml is None:
            assert block == 0, number  # left the format
            continue
        name = library.ggml_type_name(number).decode()
        assert (name.upper(), block, int(library.ggml_type_size(number))) == ggml


def test_the_tensor_types_of_the_table_are_those_of_gguf_py() -> None:
    import gguf

    agreed = 0
    for kind in gguf.GGMLQuantizationType:
        if kind.name == "Q8_1":
            continue  # gguf-py says 40 bytes, ggml 36; no file holds it
        if kind.value in GGML_TYPES:
            assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == GGML_TYPES[kind.value]
            agreed += 1
    assert agreed >= 30


@pytest.mark.parametrize("label", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_sizes_are_exact_where_shapes_force_other_types(label: str, smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 has rows of 576, which no k-quant fits, and is quantized already."""
    (plan,) = plan_levels(smollm2, read_header(smollm2), [label])
    target = tmp_path / "made.gguf"
    with pytest.raises(LossySource):
        quantize(smollm2, target, Recipe(label), threads=2, progress=ignore)
    made = quantize(smollm2, target, Recipe(label, allow_requantize=True), threads=2, progress=ignore)
    assert target.stat().st_size == plan.size_bytes
    assert facts(made).types == plan.types
    assert facts(made).quantization == label
    assert len(plan.fallbacks) == (0 if label == "Q8_0" else 181)
    assert len(set(plan.fallbacks)) == len(plan.fallbacks)


def test_levels_that_llama_cpp_refuses_say_why_and_name_no_path(smollm2: Path) -> None:
    (plan,) = plan_levels(smollm2, read_header(smollm2), ["Q1_0"])
    assert plan.error is not None
    assert "fallback" in plan.error
    assert str(smollm2) not in plan.error
    assert plan.size_bytes == 0


def test_an_alignment_that_the_quantizer_would_break_is_refused() -> None:
    header = replace(read_header(GLOSS), alignment=64)
    assert all("aligns" in (plan.error or "") for plan in plan_levels(GLOSS, header, ["Q8_0", "F16"]))


def test_an_error_of_the_listener_comes_through_after_the_work(tmp_path: Path) -> None:
    def fail(_: TensorProgress) -> None:
        raise BrokenPipeError("the parent is gone")

    target = tmp_path / "made.gguf"
    with pytest.raises(BrokenPipeError):
        quantize(GLOSS, target, Recipe("Q8_0"), threads=1, progress=fail)
    assert not target.exists()


def test_a_result_that_is_not_what_was_planned_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = quantize_module.quantize_model

    def other_level(source: Path, made: Path, recipe: Recipe, **kwargs: object) -> None:
        real(source, made, recipe.at("Q8_0"), **kwargs)

    monkeypatch.setattr(quantize_module, "quantize_model", other_level)
    target = tmp_path / "made.gguf"
    with pytest.raises(QuantizationFailed, match="not what was planned"):
        quantize(GLOSS, target, Recipe("Q4_0"), threads=1, progress=ignore)
    assert not target.exists()


@pytest.mark.parametrize("room_bytes", [1_000, 131_000, 2_000_000, 3_658_655])
def test_a_disk_that_fills_up_is_named_as_such(room_bytes: int, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Past the limit writes fail with EFBIG instead of ENOSPC; Python ignores SIGXFSZ.
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, before[1]))
    try:
        with pytest.raises(DiskFull, match="3658656 bytes"):
            quantize(GLOSS, target, Recipe("Q4_0"), threads=1, progress=ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not target.exists()


def test_reading_headers_needs_the_standard_library_alone() -> None:
    code = "import sys, service.gguf.files; print({'numpy', 'gguf', 'llama_cpp', 'pydantic'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "set()"
