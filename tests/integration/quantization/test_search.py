"""The search for a mix with real llama.cpp: what is measured is what files would do, and targets are kept to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from service.domain.errors import InvalidParameter, LossySource, QuantizationNotApplicable
from service.domain.evaluation import SearchReport, Target
from service.domain.recipes import STOCK, Recipe, TypeOverride
from service.gguf.files import facts, read_header
from service.gguf.header import Header
from service.jobs.messages import SearchStep, TextWindows
from service.jobs.searching import search
from service.llama.model import Model
from service.llama.weights import dequantize_rows
from service.quantization import speed
from service.quantization.choices import find_choices, mix_recipe
from service.quantization.evaluate import Evaluator
from service.quantization.patches import Patches
from service.quantization.plan import plan_recipe
from service.quantization.quantize import quantize
from service.quantization.sensitivity import Bench
from tests import tiny_models

_WINDOW = 64
_TEXT = " ".join(f"The {number} kings of Israel went up against the city, and it was so." for number in range(60))


@dataclass(frozen=True)
class Result:
    """What a search gave."""

    header: Header
    recipe: Recipe
    report: SearchReport


class Searcher:
    """Runs small searches in a folder."""

    def __init__(self, folder: Path) -> None:
        self.text = folder / "text"
        self.text.write_text(_TEXT)
        self.made = folder / "mix.gguf"
        self.known = folder / "known"
        self.told: list[tuple[float, str]] = []

    def step(
        self, target: Target, types: tuple[str, ...] = ("Q4_0", "Q5_0", "Q8_0"), recipe: Recipe = STOCK
    ) -> SearchStep:
        """A step that measures two short windows and has time for little."""
        return SearchStep(
            made=str(self.made),
            recipe=recipe,
            target=target,
            text=TextWindows(str(self.text), "text", "sha256:0", _WINDOW, 2),
            logits="",
            known=str(self.known),
            types=types,
            guide="estimated",
            max_seconds=0.5,
            importance=None,
        )

    def run(self, step: SearchStep, source: Path) -> Result:
        """Search."""
        self.told.clear()
        return Result(
            *search(step, source, threads=1, progress=lambda share, detail: self.told.append((share, detail)))
        )


@pytest.fixture
def searcher(tmp_path: Path) -> Searcher:
    """A searcher in a folder of its own."""
    return Searcher(tmp_path)


def _ignore(*_: object) -> None:
    pass


def test_a_tensor_is_patched_with_the_bytes_that_the_quantizer_writes(gloss: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    header = quantize(gloss, made, Recipe("Q3_K_M"), threads=1, progress=_ignore)
    patches = Patches(gloss, read_header(gloss), None, threads=1)
    data = made.read_bytes()
    for tensor, offset in zip(header.tensors, header.offsets, strict=True):
        if len(tensor.shape) < 2:
            continue
        start = header.data_offset + offset
        stored = np.frombuffer(data[start : start + tensor.size_bytes], dtype=np.uint8).reshape(tensor.shape[1], -1)
        expected = dequantize_rows(tensor.type, stored, tensor.shape[0])
        patched = np.concatenate([rows for _, rows in patches.slabs(tensor.name, tensor.type)])
        np.testing.assert_array_equal(patched, expected)
    patches.close()


def test_the_patched_model_diverges_as_the_file_does(gloss: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    header = quantize(gloss, made, Recipe("Q3_K_M"), threads=1, progress=_ignore)
    source = read_header(gloss)
    patches = Patches(gloss, source, None, threads=1)
    bench = Bench(gloss, source, patches, window=256, threads=1)
    try:
        windows = bench.cut(_TEXT, 4)
        for window in windows:
            bench.add_reference(window)
        types = {tensor.name: tensor.type for tensor in header.tensors if len(tensor.shape) > 1}
        assert bench.measurable >= types.keys()
        assert bench.measure({}).value < 1e-9
        patched = bench.measure(types).value
        assert bench.measure({}).value < 1e-9  # and everything was put back
        reference = bench.reference()
    finally:
        bench.close()
        patches.close()
    assert patched == pytest.approx(_divergence(made, windows, reference), rel=0.1)


def _divergence(path: Path, windows: np.ndarray, reference: list[np.ndarray]) -> float:
    """Mean KL divergence of a file's model from logits of the source, the plain way."""
    model = Model(path, gpu_layers=0, use_extra_buffers=False)
    evaluator = Evaluator(model, window=windows.shape[1], threads=1)
    found = []
    for window, base in zip(windows, reference, strict=True):
        evaluator._context.decode([window], windows.shape[1] // 2)
        p = base.astype(np.float64)
        q = evaluator._context.logits().astype(np.float64)
        p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
        q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
        found.append((np.exp(p) * (p - q)).sum(axis=1))
    evaluator.close()
    model.close()
    return float(np.concatenate(found).mean())


def test_a_mix_keeps_to_the_bytes_and_is_what_was_planned(gloss: Path, searcher: Searcher) -> None:
    stock, _ = plan_recipe(gloss, read_header(gloss), Recipe("Q3_K_M"), has_importance=False)
    result = searcher.run(searcher.step(Target(size_bytes=stock.size_bytes), ("Q2_K", "Q4_K", "Q8_0")), gloss)
    assert searcher.made.stat().st_size == result.report.size_bytes == result.header.file_size <= stock.size_bytes
    assert result.report.size_bytes > stock.size_bytes * 0.98
    plan, types = plan_recipe(gloss, read_header(gloss), result.recipe, has_importance=False)
    assert plan.size_bytes == result.report.size_bytes
    assert types == {tensor.name: tensor.type for tensor in result.header.tensors}
    assert facts(result.header).quantization == result.recipe.quantization
    assert 0 < result.report.predicted_kld < 1
    assert result.report.guide == "estimated"
    shares = [share for share, _ in searcher.told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_search_goes_on_where_it_was_cut_off(tiny: dict[str, Path], searcher: Searcher) -> None:
    step = searcher.step(Target(bits_per_weight=5.5))
    first = searcher.run(step, tiny["llama"])
    step = msgspec.structs.replace(step, max_seconds=0.0)  # no time to measure anything that is not known
    second = searcher.run(step, tiny["llama"])
    assert second.report.predicted_kld <= first.report.predicted_kld * 1.5
    assert searcher.known.read_bytes().count(b'"windows"') == 1


def test_a_bound_on_the_divergence_is_kept_with_few_bytes(tiny: dict[str, Path], searcher: Searcher) -> None:
    even = searcher.run(searcher.step(Target(bits_per_weight=5.5)), tiny["llama"]).report.predicted_kld
    loose = searcher.run(searcher.step(Target(max_kld=2 * even)), tiny["llama"])
    tight = searcher.run(searcher.step(Target(max_kld=even / 2)), tiny["llama"])
    assert loose.report.predicted_kld <= 2 * even
    assert tight.report.predicted_kld <= even / 2
    assert loose.report.size_bytes < tight.report.size_bytes


def test_tensors_of_a_lossy_source_may_stay_as_they_are(
    tiny: dict[str, Path], searcher: Searcher, tmp_path: Path
) -> None:
    source = tmp_path / "lossy.gguf"
    quantize(tiny["llama"], source, Recipe("Q5_1"), threads=1, progress=_ignore)
    with pytest.raises(LossySource):
        searcher.run(searcher.step(Target(bits_per_weight=5.7)), source)
    allowed = replace(STOCK, allow_requantize=True)
    result = searcher.run(searcher.step(Target(bits_per_weight=5.7), recipe=allowed), source)
    assert {tensor.type for tensor in result.header.tensors} >= {"Q5_1", "Q4_0"}
    with pytest.raises(InvalidParameter, match="nothing to make"):
        searcher.run(searcher.step(Target(bits_per_weight=9.0), recipe=allowed), source)
    assert not list(tmp_path.glob("*.f16"))


def test_targets_that_cannot_be_kept_say_what_can(tiny: dict[str, Path], searcher: Searcher) -> None:
    with pytest.raises(InvalidParameter, match=r"the smallest of these types takes \d+ bytes"):
        searcher.run(searcher.step(Target(size_bytes=10_000)), tiny["llama"])
    with pytest.raises(InvalidParameter, match="the best measures"):
        searcher.run(searcher.step(Target(max_kld=1e-12)), tiny["llama"])
    assert not searcher.made.exists()


def test_a_speed_that_no_type_has_here_is_refused_with_the_fastest(
    tiny: dict[str, Path], searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_KIND_SECONDS", 0.05)
    step = searcher.step(Target(bits_per_weight=6.0, min_speed=1e9), ("Q4_0", "Q8_0"))
    with pytest.raises(InvalidParameter, match=r"the fastest makes about \d+"):
        searcher.run(step, tiny["llama"])
    assert not list(searcher.made.parent.glob("*.speed"))


def test_a_recipe_pins_tensors_and_leaves_the_others_to_the_search(gloss: Path) -> None:
    header = read_header(gloss)
    recipe = Recipe(overrides=(TypeOverride("attn_v", "Q6_K"),), token_embedding_type="Q8_0")
    choices = find_choices(gloss, header, recipe, (), frozenset())
    assert "token_embd.weight" not in choices.options
    assert not any("attn_v" in name for name in choices.options)
    types = dict.fromkeys(choices.options, "Q4_K")
    mixed, plan = mix_recipe(gloss, header, recipe, choices, types, has_importance=False)
    assert plan.size_bytes == choices.file_bytes(types)
    assert mixed.quantization in {"Q4_K_S", "Q4_K_M"}
    made = {tensor.name: tensor.type for tensor in plan.tensors}
    assert made["blk.0.attn_v.weight"] == "Q6_K"
    assert made["blk.0.attn_q.weight"] == "Q4_K"


def test_types_that_need_importance_are_offered_only_with_it(gloss: Path) -> None:
    header = read_header(gloss)
    name = "blk.0.attn_q.weight"
    without = find_choices(gloss, header, STOCK, ("IQ2_XS", "Q4_K", "Q8_0"), frozenset())
    with_it = find_choices(gloss, header, STOCK, ("IQ2_XS", "Q4_K", "Q8_0"), frozenset({name}))
    assert list(without.options[name]) == ["Q4_K", "Q8_0"]
    assert list(with_it.options[name]) == ["IQ2_XS", "Q4_K", "Q8_0"]
    with pytest.raises(InvalidParameter, match="No level is made of 'Q9_K'"):
        find_choices(gloss, header, STOCK, ("Q9_K",), frozenset())
    with pytest.raises(QuantizationNotApplicable, match="nothing to choose"):
        find_choices(gloss, header, STOCK, ("Q4_K",), frozenset())


def test_experts_are_patched_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "mixture.gguf"
    tiny_models.write_mixture(path)
    header = read_header(path)
    name = "blk.0.ffn_down_exps.weight"
    shape = next(tensor.shape for tensor in header.tensors if tensor.name == name)
    columns = np.random.default_rng(1).random((shape[2], shape[0]), dtype=np.float32) + 0.1
    patches = Patches(path, header, {name: columns.ravel()}, threads=1)
    bench = Bench(path, header, patches, window=16, threads=1)
    try:
        for window in bench.cut(_TEXT, 2):
            bench.add_reference(window)
        assert name in bench.measurable
        fine, coarse = bench.measure({name: "Q8_0"}).value, bench.measure({name: "Q4_0"}).value
        assert 0 < fine < coarse
        assert patches.error(name, "Q8_0") < patches.error(name, "Q4_0")
        assert len(list(patches.slabs(name, "Q4_0"))) == shape[2]
    finally:
        bench.close()
        patches.close()
