"""Promise of domain/memory.py: within ten percent of what a worker then uses, whatever the shape, context and cache.

What it uses is its resident set (private and mapped pages) once every cell has been filled and every sequence has
generated: reserved pages that nobody touched are no memory, and mapped weights and libraries are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest

from service.domain.generation import EmbeddingRequest, Failed, Finished, GenerationRequest, SamplingParams
from service.domain.memory import CacheType, ContextOptions, MemoryNeed, Placement, embedding_bytes, memory_need
from service.gguf.files import facts, read_header
from service.workers.ladder import Rung
from service.workers.options import WorkerOptions
from service.workers.supervisor import Worker
from tests import tiny_models

F16, Q8_0, Q4_0 = CacheType.F16, CacheType.Q8_0, CacheType.Q4_0
OPTIONS = WorkerOptions(batch_tokens=512, threads=1, gpu_layers=0, load_timeout_seconds=60, hang_seconds=60)
_UNIT = " horse"
_ANSWER_TOKENS = 16
_QUANTIZE = """
import sys
from llama_cpp import llama_cpp as native
params = native.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
params.nthread = 2
sys.exit(native.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def write_wide(path: Path) -> Path:
    """Two layers, four query heads to a key-value head, a feed-forward of eight embeddings, 100,000 tokens; 80 MB."""
    layers, embedding, heads, kv_heads, head, feed_forward, vocabulary = 2, 256, 8, 2, 64, 2048, 100_000
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens, merges = _byte_pairs(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(1)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(embedding, dtype=np.float32))

    matrix("token_embd", vocabulary, embedding)
    ones("output_norm")
    for layer in range(layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", heads * head, embedding)
        matrix(f"{block}.attn_k", kv_heads * head, embedding)
        matrix(f"{block}.attn_v", kv_heads * head, embedding)
        matrix(f"{block}.attn_output", embedding, heads * head)
        ones(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", feed_forward, embedding)
        matrix(f"{block}.ffn_up", feed_forward, embedding)
        matrix(f"{block}.ffn_down", embedding, feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_pairs(vocabulary: int) -> tuple[list[str], list[str]]:
    """Bytes as GPT-2 writes them, then pairs and triples of them, each by a merge."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    tokens, merges = list(letters), []
    known = 0
    while len(tokens) < vocabulary:
        for letter in letters[: vocabulary - len(tokens)]:
            merges.append(f"{tokens[known]} {letter}")
            tokens.append(tokens[known] + letter)
        known += 1
    return tokens, merges


def quantized(source: Path, target: Path, level: str) -> Path:
    """In a process of its own, as everywhere."""
    file_type = gguf.LlamaFileType[f"MOSTLY_{level}"]
    subprocess.run([sys.executable, "-c", _QUANTIZE, str(source), str(target), str(int(file_type))], check=True)
    return target


async def started(path: Path, placement: Placement, rung: Rung = Rung.FULL) -> Worker:
    worker = Worker(
        name=path.stem,
        path=path,
        placement=placement,
        options=OPTIONS,
        rung=rung,
        on_death=lambda worker: pytest.fail(f"{worker.name} died"),
    )
    await worker.start()
    assert worker.rung is rung
    return worker


@asynccontextmanager
async def stopping(worker: Worker) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await worker.stop()


def resident(worker: Worker) -> int:
    assert worker.pid is not None
    return int(psutil.Process(worker.pid).memory_info().rss)


async def filled_worker(
    path: Path, context: int, parallel: int, keys: CacheType, values: CacheType, rung: Rung = Rung.FULL
) -> tuple[int, MemoryNeed]:
    """Resident bytes of a worker that has used all of its context, and what was predicted."""
    options = ContextOptions(
        cache_type_k=keys, cache_type_v=values, flash_attention=rung is not Rung.NO_FLASH_ATTENTION
    )
    need = memory_need(facts(read_header(path)), context * parallel, parallel, options)
    worker = await started(path, Placement(context, parallel, need, options), rung)

    async def prompt_tokens(units: int) -> int:
        request = GenerationRequest(
            prompt=_UNIT * units,
            max_tokens=_ANSWER_TOKENS,
            sampling=SamplingParams(seed=1),
            ignore_eos=True,
            cache_prompt=False,  # shared cells would leave others empty
        )
        streams = [worker.submit(request, 0.0) for _ in range(parallel)]
        ends = [[event async for event in stream][-1] for stream in streams]
        assert not [end for end in ends if isinstance(end, Failed)], ends
        assert isinstance(ends[0], Finished)
        return ends[0].usage.prompt_tokens

    async with stopping(worker):
        per_unit = (await prompt_tokens(30) - await prompt_tokens(10)) / 20
        used = await prompt_tokens(int((context - _ANSWER_TOKENS - 8) / per_unit))
        assert used > 0.9 * context
        return resident(worker), need


async def embedding_worker(path: Path, context: int, text_tokens: int) -> tuple[int, MemoryNeed]:
    """Resident bytes of a worker that has embedded texts of that length, and what was predicted."""
    shape = facts(read_header(path)).shape
    need = memory_need(facts(read_header(path)), context, 1)
    worker = await started(path, Placement(context, 1, need))
    async with stopping(worker):
        count = 80 if text_tokens < 100 else 2
        texts = tuple((index % 250 + 5,) * text_tokens for index in range(count))
        vectors = await worker.embed(EmbeddingRequest(inputs=texts))
        assert len(vectors.vectors) == len(texts)
        beside = embedding_bytes(shape, text_tokens) if shape.generates else 0
        return resident(worker), replace(need, compute_bytes=need.compute_bytes + beside)


def assert_near(taken: int, need: MemoryNeed, *, at_most: float = 1.1) -> None:
    ratio = need.total_bytes / taken
    print(f"resident {taken / 2**20:.1f} MiB, predicted {need.total_bytes / 2**20:.1f}, ratio {ratio:.3f}")
    assert 0.9 <= ratio <= at_most, (f"{ratio:.3f}", taken, need)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "wide.gguf")


@pytest.fixture(scope="session")
def gloss_q4(tmp_path_factory: pytest.TempPathFactory, gloss: Path) -> Path:
    return quantized(gloss, tmp_path_factory.mktemp("levels") / "gloss-q4_k_m.gguf", "Q4_K_M")


@pytest.fixture(scope="session")
def wide_q4_0(tmp_path_factory: pytest.TempPathFactory, wide: Path) -> Path:
    """Nearly all of it is repacked on this kind of machine: it would be resident twice."""
    return quantized(wide, tmp_path_factory.mktemp("levels") / "wide-q4_0.gguf", "Q4_0")


async def test_a_small_model_takes_what_was_predicted(gloss: Path) -> None:
    assert_near(*await filled_worker(gloss, 512, 4, F16, F16))


async def test_a_wide_model_with_a_quantized_cache_takes_what_was_predicted(wide: Path) -> None:
    assert_near(*await filled_worker(wide, 1024, 2, Q8_0, Q8_0))


MODELS = ("gloss", "gloss_q4", "wide", "wide_q4_0", "smollm2")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cache", [F16, Q8_0])
@pytest.mark.parametrize(("context", "parallel"), [(512, 4), (1024, 3)])
@pytest.mark.parametrize("model", MODELS)
async def test_every_shape_takes_what_was_predicted(
    request: pytest.FixtureRequest, model: str, context: int, parallel: int, cache: CacheType
) -> None:
    path: Path = request.getfixturevalue(model)
    if context > facts(read_header(path)).shape.context_length:
        context, parallel = 512, 12
    assert_near(*await filled_worker(path, context, parallel, cache, cache))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rung", [Rung.NO_EXTRA_BUFFERS, Rung.NO_FLASH_ATTENTION])
@pytest.mark.parametrize("model", ["gloss", "wide_q4_0", "smollm2"])
async def test_lower_rungs_take_what_was_predicted(request: pytest.FixtureRequest, model: str, rung: Rung) -> None:
    """Without flash attention the scores of a whole step are counted, and not all of them are always touched."""
    path: Path = request.getfixturevalue(model)
    context = min(1024, facts(read_header(path)).shape.context_length)
    at_most = 1.2 if rung is Rung.NO_FLASH_ATTENTION else 1.1
    assert_near(*await filled_worker(path, context, 1, F16, F16, rung), at_most=at_most)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_smallest_cache_takes_what_was_predicted(smollm2: Path) -> None:
    assert_near(*await filled_worker(smollm2, 1024, 2, Q8_0, Q4_0))


@pytest.fixture
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models whose states, experts and batches are no longer lost beside the interpreter."""
    for name, value in (("_SIZE", 768), ("_INNER", 1536), ("_STATE", 64)):
        monkeypatch.setattr(tiny_models, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("larger")
async def test_the_states_of_a_recurrent_model_are_predicted(tmp_path: Path) -> None:
    tiny_models.write_recurrent(tmp_path / "mamba.gguf")
    assert_near(*await filled_worker(tmp_path / "mamba.gguf", 256, 32, F16, F16))


@pytest.mark.slow
@pytest.mark.usefixtures("larger")
async def test_a_hybrid_has_a_cache_in_some_layers_and_states_in_others(tmp_path: Path) -> None:
    tiny_models.write_hybrid(tmp_path / "lfm2.gguf")
    assert_near(*await filled_worker(tmp_path / "lfm2.gguf", 1024, 16, F16, F16))


@pytest.mark.slow
@pytest.mark.usefixtures("larger")
async def test_the_experts_that_compute_at_once_are_predicted(tmp_path: Path) -> None:
    """A full micro-batch is counted; a busy machine computes prompts in smaller pieces."""
    tiny_models.write_mixture(tmp_path / "mixture.gguf")
    assert_near(*await filled_worker(tmp_path / "mixture.gguf", 512, 2, F16, F16), at_most=1.2)


@pytest.mark.slow
@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("text_tokens", [20, 250])
async def test_a_model_that_only_embeds_takes_what_was_predicted(tmp_path: Path, text_tokens: int) -> None:
    """It needs neither grammars nor a template, which are counted all the same."""
    tiny_models.write_bert(tmp_path / "bert.gguf")
    assert_near(*await embedding_worker(tmp_path / "bert.gguf", text_tokens, text_tokens), at_most=1.2)


@pytest.mark.slow
@pytest.mark.parametrize("text_tokens", [20, 800])
@pytest.mark.parametrize("model", ["wide", "smollm2"])
async def test_embeddings_beside_texts_take_what_was_predicted(
    request: pytest.FixtureRequest, model: str, text_tokens: int
) -> None:
    assert_near(*await embedding_worker(request.getfixturevalue(model), 1024, text_tokens))
