"""Recipes made by llama.cpp for real: what the plan says is what the file is, whatever the options and the threads.

Gloss loses most of its blocks here: what is left has all kinds of tensor and is quick to make.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.catalog import LevelPlan
from service.domain.errors import (
    ImportanceMatrixRequired,
    InvalidParameter,
    LossySource,
    QuantizationNotApplicable,
    QuantryError,
)
from service.domain.quants import QUANTIZATIONS
from service.domain.recipes import WRITABLE_TYPES, MetadataOverride, Recipe, TypeOverride, check
from service.gguf.files import label_of, read_header
from service.gguf.header import Header
from service.llama.model import Model
from service.llama.quantizer import quantize_model
from service.quantization.plan import plan_levels, plan_recipe
from service.quantization.quantize import TensorProgress, quantize
from tests import tiny_models
from tests.server import GLOSS

# More examples, and the types whose codebooks llama.cpp searches for 20 s in each process, when asked for.
EXAMPLES = int(os.environ.get("QUANTRY_TEST_EXAMPLES", "15"))
SLOW_TYPES = frozenset({"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_XS"} if "QUANTRY_TEST_EXAMPLES" not in os.environ else ())
SLOW_LEVELS = frozenset({*SLOW_TYPES, "IQ2_M", "IQ3_XXS"} if SLOW_TYPES else ())
TYPES = tuple(sorted(WRITABLE_TYPES - SLOW_TYPES))
SLOW_LEVELS_MADE = () if SLOW_LEVELS else ("IQ1_M", "IQ2_M", "IQ3_XXS")
LEVELS = tuple(label for label in QUANTIZATIONS if label not in SLOW_LEVELS)
ONE_BLOCK = (0, 1, 2, 3, 4)
# Pieces of names of the demo model and of the tiny ones; some find nothing.
PATTERNS = (
    "ffn_down",
    r"blk\.0\.",
    "attn_(k|v)",
    "token_embd",
    "^output",
    "norm",
    r"\.\d+\.ffn_.*weight$",
    "ssm_",
    "no",
)


def ignore(_: TensorProgress) -> None:
    pass


@cache
def importance_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Weights as a calibration would leave them: for the matrices of the blocks, not for embedding and output."""
    random = np.random.default_rng(0)
    return {
        tensor.name: random.gamma(0.5, size=tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)).astype(
            np.float32
        )
        for tensor in read_header(path).tensors
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def overrides() -> st.SearchStrategy[tuple[TypeOverride, ...]]:
    one = st.builds(TypeOverride, st.sampled_from(PATTERNS), st.sampled_from(TYPES))
    return st.lists(one, max_size=3, unique_by=lambda override: override.pattern).map(tuple)


def metadata() -> st.SearchStrategy[tuple[MetadataOverride, ...]]:
    keys = st.sampled_from(("general.name", "x", "quantry.mix"))
    values = st.one_of(
        st.booleans(), st.integers(0, 2**32 - 1), st.floats(-1e9, 1e9, width=32), st.sampled_from(("", "ä" * 60, "v 1"))
    )
    one = st.builds(MetadataOverride, keys, values)
    return st.lists(one, max_size=3, unique_by=lambda override: override.key).map(tuple)


def recipes(prune: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Recipe]:
    optional = st.none() | st.sampled_from(TYPES)
    return st.builds(
        Recipe,
        quantization=st.sampled_from(LEVELS),
        pure=st.booleans(),
        output_type=st.none() | st.none() | optional,
        token_embedding_type=st.none() | st.none() | optional,
        keep_output=st.just(False) | st.just(False) | st.booleans(),
        overrides=st.just(()) | overrides(),
        metadata=st.just(()) | metadata(),
        prune_layers=prune,
    ).filter(lambda recipe: not (recipe.keep_output and recipe.output_type))


def has_no_values_for_shared(plan: LevelPlan) -> bool:
    """The matrices of these tests leave embedding and output out, which some types cannot do without."""
    shared = {tensor.type for tensor in plan.tensors if not tensor.name.startswith("blk.")}
    return not shared.isdisjoint({"IQ2_XXS", "IQ2_XS", "IQ1_S"})


def hold_to_the_plan(source: Path, target: Path, recipe: Recipe, *, with_importance: bool) -> Header | None:
    """Plan, make, compare; None when the plan says no, and then nothing is made."""
    recipe = check(recipe)
    header = read_header(source)
    importance = importance_of(source) if with_importance else None
    plan, types = plan_recipe(source, header, recipe, has_importance=with_importance)
    reason: type[QuantryError] | None = None
    if plan.error is not None:
        assert (plan.size_bytes, dict(types)) == (0, {})
        reason = QuantizationNotApplicable
    elif plan.needs_imatrix and (importance is None or has_no_values_for_shared(plan)):
        reason = ImportanceMatrixRequired
    if reason is not None:
        with pytest.raises(reason):
            quantize(source, target, recipe, importance=importance, threads=2, progress=ignore)
        assert not target.exists()
        return None
    made = quantize(source, target, recipe, importance=importance, threads=2, progress=ignore)
    assert target.stat().st_size == plan.size_bytes == made.file_size
    assert {tensor.name: tensor for tensor in plan.tensors} == {tensor.name: tensor for tensor in made.tensors}
    assert dict(types) == {tensor.name: tensor.type for tensor in made.tensors}
    assert [tensor.name for tensor in plan.tensors] == [tensor.name for tensor in made.tensors]
    for override in recipe.metadata:
        value = made.metadata[override.key]
        assert value == (np.float32(override.value) if isinstance(override.value, float) else override.value)
    asked = {override.key for override in recipe.metadata}
    changed = {key for key, value in header.metadata.items() if made.metadata.get(key) != value}
    block_count = {f"{header.architecture}.block_count"} if recipe.prune_layers else set()
    assert changed <= asked | block_count | {"general.file_type", "general.quantization_version"}
    if recipe.overrides and not plan.fallbacks:
        assert label_of(made) == recipe.quantization
    return made


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows, of 256 weights as k-quants want them and of 64; without a vocabulary."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    random = np.random.default_rng(8)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 64,
        "embedding_length": 256,
        "block_count": 2,
        "feed_forward_length": 256,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    for key, value in {"head_count": 4, "head_count_kv": 2, "key_length": 16, "value_length": 16}.items():
        writer.add_uint32(f"llama.attention.{key}", value)
    writer.add_uint32("llama.vocab_size", 40)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_name("wide")
    writer.add_string("tokenizer.ggml.model", "no_vocab")

    def add(name: str, *shape: int, kind: type[np.floating[Any]] = np.float16) -> None:
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32).astype(kind))

    add("token_embd", 40, 256)
    add("output", 40, 256)
    add("output_norm", 256, kind=np.float32)
    for block in ("blk.0", "blk.1"):
        add(f"{block}.attn_norm", 256, kind=np.float32)
        add(f"{block}.ffn_norm", 256, kind=np.float32)
        add(f"{block}.attn_q", 64, 256)
        add(f"{block}.attn_k", 32, 256)
        add(f"{block}.attn_v", 32, 256)
        add(f"{block}.attn_output", 256, 64)
        for part in ("gate", "up", "down"):
            add(f"{block}.ffn_{part}", 256, 256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def odd(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models, and a mixture of experts."""
    mixture = tmp_path_factory.mktemp("mixture") / "mixture.gguf"
    tiny_models.write_mixture(mixture)
    return tiny | {"mixture": mixture}


held = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@held
@given(recipes(st.sampled_from(((0,), (1,), (1,), ()))), st.booleans())
def test_a_recipe_is_made_as_planned(wide: Path, tmp_path: Path, recipe: Recipe, with_importance: bool) -> None:
    hold_to_the_plan(wide, tmp_path / "made.gguf", recipe, with_importance=with_importance)
    (tmp_path / "made.gguf").unlink(missing_ok=True)


@held
@given(
    recipes(st.just(()) | st.just((0,))),
    st.sampled_from(("mixture", "llama", "sliding-window", "recurrent", "bert")),
    st.booleans(),
)
def test_a_recipe_is_made_as_planned_where_rows_are_short_or_odd(
    odd: dict[str, Path], tmp_path: Path, recipe: Recipe, kind: str, with_importance: bool
) -> None:
    hold_to_the_plan(odd[kind], tmp_path / "made.gguf", recipe, with_importance=with_importance)
    (tmp_path / "made.gguf").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("Q3_K_M", output_type="Q8_0", prune_layers=ONE_BLOCK),
        Recipe("IQ4_XS", overrides=(TypeOverride("ffn_down", "Q6_K"),), prune_layers=(1, 3)),
        Recipe("Q5_K_M", pure=True, token_embedding_type="F16"),
        Recipe("BF16", token_embedding_type="Q6_K", metadata=(MetadataOverride("general.name", "other"),)),
    ],
    ids=["output", "overrides", "pure", "float"],
)
def test_a_recipe_of_the_demo_model_is_made_as_planned(recipe: Recipe, tmp_path: Path) -> None:
    assert hold_to_the_plan(GLOSS, tmp_path / "made.gguf", recipe, with_importance=True) is not None


@pytest.mark.parametrize("label", ["Q2_K_S", "IQ3_XS", *SLOW_LEVELS_MADE])
def test_levels_that_need_an_importance_matrix_are_made_with_one(label: str, wide: Path, tmp_path: Path) -> None:
    recipe = Recipe(label, prune_layers=(0,))
    assert hold_to_the_plan(wide, tmp_path / "without.gguf", recipe, with_importance=False) is None
    made = hold_to_the_plan(wide, tmp_path / "made.gguf", recipe, with_importance=True)
    assert made is not None
    assert label_of(made) == label
    plan, _ = plan_recipe(wide, read_header(wide), recipe, has_importance=True)
    assert plan.needs_imatrix  # the level does, whether one was given or not


def test_an_importance_matrix_changes_types_and_bytes(tmp_path: Path) -> None:
    header = read_header(GLOSS)
    without, types = plan_recipe(GLOSS, header, Recipe("IQ4_XS"), has_importance=False)
    given, weighted = plan_recipe(GLOSS, header, Recipe("IQ4_XS"), has_importance=True)
    assert (types == weighted) == (without.size_bytes == given.size_bytes)
    recipe = Recipe("Q4_K_M", prune_layers=ONE_BLOCK)
    plain, fitted = tmp_path / "plain.gguf", tmp_path / "fitted.gguf"
    assert hold_to_the_plan(GLOSS, plain, recipe, with_importance=False)
    assert hold_to_the_plan(GLOSS, fitted, recipe, with_importance=True)
    assert digest(plain) != digest(fitted)


def every_type() -> Recipe:
    """Another type for each matrix of the blocks: all that the quantizer can write."""
    matrices = [
        tensor.name for tensor in read_header(GLOSS).tensors if ".ffn_" in tensor.name and "norm" not in tensor.name
    ]
    names = [*matrices, *(f"blk.{block}.attn_{part}.weight" for block in range(6) for part in ("q", "output"))]
    pairs = zip(names, [*TYPES, "Q4_K"], strict=False)
    mine = tuple(TypeOverride("^" + name.replace(".", r"\.") + "$", kind) for name, kind in pairs)
    return check(Recipe("Q4_K_S", overrides=mine, metadata=(MetadataOverride("general.name", "mix"),)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("mixed") / "one.gguf"
    quantize(GLOSS, target, every_type(), importance=importance_of(GLOSS), threads=1, progress=ignore)
    return target


def test_every_type_can_be_had_by_override_and_is_loaded(mixed: Path) -> None:
    made = read_header(mixed)
    assert {tensor.type for tensor in made.tensors} == WRITABLE_TYPES - SLOW_TYPES
    assert made.text("general.name") == "mix"
    Model(mixed, gpu_layers=0, use_extra_buffers=False).close()


@pytest.mark.parametrize("threads", [2, 5])
def test_the_bytes_do_not_depend_on_the_threads(threads: int, mixed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    quantize(GLOSS, again, every_type(), importance=importance_of(GLOSS), threads=threads, progress=ignore)
    assert digest(again) == digest(mixed)


def test_the_bytes_do_not_depend_on_the_buffers(tmp_path: Path) -> None:
    paths = []
    for buffer_bytes in (0, 40_000):
        paths.append(tmp_path / f"{buffer_bytes}.gguf")
        quantize_model(GLOSS, paths[-1], Recipe("Q4_K_M", prune_layers=ONE_BLOCK), threads=2, buffer_bytes=buffer_bytes)
    assert digest(paths[0]) == digest(paths[1])


def test_blocks_left_out_are_gone_and_the_rest_still_runs(tmp_path: Path) -> None:
    seen: list[TensorProgress] = []
    target = tmp_path / "made.gguf"
    recipe = Recipe("Q8_0", prune_layers=(2, 3))
    made = quantize(GLOSS, target, recipe, importance=importance_of(GLOSS), threads=2, progress=seen.append)
    assert made.whole("llama.block_count") == 4
    assert {step.count for step in seen} == {56 - 18}
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert [step.bytes_done for step in seen] == sorted(step.bytes_done for step in seen)


def test_an_importance_matrix_of_another_model_is_refused_by_its_tensors(tmp_path: Path) -> None:
    importance = importance_of(GLOSS)
    strange = importance | {
        "blk.9.ffn_up.weight": np.ones(256, np.float32),
        "blk.0.attn_q.weight": np.ones(8, np.float32),
    }
    with pytest.raises(InvalidParameter, match=r"2 of its 43 .* blk\.0\.attn_q\.weight, blk\.9\.ffn_up\.weight"):
        quantize(GLOSS, tmp_path / "made.gguf", Recipe("Q4_0"), importance=strange, threads=1, progress=ignore)
    short = {name: values for name, values in importance.items() if "blk.5.ffn_up" not in name}
    with pytest.raises(ImportanceMatrixRequired, match=r"no values for 1 tensors .*blk\.5\.ffn_up\.weight"):
        quantize(GLOSS, tmp_path / "made.gguf", Recipe("IQ2_XS"), importance=short, threads=1, progress=ignore)
    assert not list(tmp_path.iterdir())


def test_types_that_llama_cpp_would_end_on_are_refused(smollm2: Path, tmp_path: Path) -> None:
    """It looks at the rows only where it chose the type itself, and asserts later."""
    recipe = Recipe("Q8_0", token_embedding_type="Q6_K", allow_requantize=True)
    plan, _ = plan_recipe(smollm2, read_header(smollm2), recipe, has_importance=False)
    assert "rows of 576" in (plan.error or "")
    embedding = Recipe("Q8_0", token_embedding_type="IQ2_XXS", prune_layers=ONE_BLOCK)
    assert hold_to_the_plan(GLOSS, tmp_path / "a.gguf", embedding, with_importance=False) is None
    assert hold_to_the_plan(GLOSS, tmp_path / "a.gguf", embedding, with_importance=True) is None


def test_a_level_that_gains_nothing_says_so(smollm2: Path) -> None:
    header = read_header(GLOSS)
    same, _ = plan_recipe(GLOSS, header, Recipe("F16"), has_importance=False)
    assert len(same.notes) == 2
    larger, _ = plan_recipe(GLOSS, header, Recipe("F32"), has_importance=False)
    assert "larger than its source" in larger.notes[0]
    assert plan_recipe(GLOSS, header, Recipe("Q8_0"), has_importance=False)[0].notes == ()
    lossy, _ = plan_recipe(smollm2, read_header(smollm2), Recipe("Q8_0"), has_importance=False)
    assert "larger than its source" in lossy.notes[0]
    with pytest.raises(LossySource):
        quantize(smollm2, Path("/nonexistent"), Recipe("Q8_0"), threads=1, progress=ignore)


def test_the_plans_kept_of_every_file_are_short() -> None:
    (plan,) = plan_levels(GLOSS, read_header(GLOSS), ["Q4_K_M"])
    full, _ = plan_recipe(GLOSS, read_header(GLOSS), Recipe("Q4_K_M"), has_importance=False)
    assert plan == replace(full, tensors=(), notes=())
    assert len(full.tensors) == 56
    assert sum(tensor.size_bytes for tensor in full.tensors) < full.size_bytes


@pytest.mark.skipif(
    not (Path(os.environ.get("QUANTRY_TEST_LLAMA_TOOLS", "/nonexistent")) / "llama-quantize").exists(),
    reason="QUANTRY_TEST_LLAMA_TOOLS names no folder with llama-quantize",
)
def test_the_bytes_are_those_of_llama_quantize(tmp_path: Path) -> None:
    tool = Path(os.environ["QUANTRY_TEST_LLAMA_TOOLS"]) / "llama-quantize"
    recipe = Recipe(
        "Q4_K_M",
        token_embedding_type="Q8_0",
        overrides=(TypeOverride("ffn_down", "Q5_K"), TypeOverride(r"blk\.1\.attn_(k|v)", "IQ4_NL")),
        metadata=(
            MetadataOverride("general.name", "mix"),
            MetadataOverride("x.count", 7),
            MetadataOverride("x.half", 0.5),
        ),
        prune_layers=(1, 4),
    )
    arguments = [
        "--token-embedding-type", "q8_0", "--tensor-type", "ffn_down=q5_k",
        "--tensor-type", r"blk\.1\.attn_(k|v)=iq4_nl",
        "--override-kv", "general.name=str:mix", "--override-kv", "x.count=int:7", "--override-kv", "x.half=float:0.5",
        "--prune-layers", "1,4",
    ]  # fmt: skip
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    subprocess.run([tool, *arguments, GLOSS, theirs, "Q4_K_M", "2"], check=True, capture_output=True, timeout=120)
    quantize(GLOSS, ours, recipe, threads=2, progress=ignore)
    assert digest(ours) == digest(theirs)
