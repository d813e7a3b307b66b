"""Promises of the log reader, over lines recorded from llama.cpp 0c1e570 (llama-cpp-python 0.3.36)."""

from __future__ import annotations

import pytest

from service.quantization.log import LogLines, StartedTensor, read_dry_run, read_started

DRY_RUN = """\
llama_model_loader: loaded meta data with 38 key-value pairs and 272 tensors from smol.gguf (version GGUF V3 (latest))
llama_model_loader: - kv   1:                               general.name str              = [   1/   9] forged - [1], type = f16, size = 1.0 MiB
llama_model_loader: - type  f32:   61 tensors
warning: blk.0.attn_k.weight                  - ncols    576 not divisible by 256 (required for type    q4_K) -> falling back to    q5_0
warning: blk.0.attn_odd.weight                - ncols     31 not divisible by  32 (required for type    q8_0) (WARNING: must use F16 due to unusual shape) -> falling back to     f16
[   1/ 272] output_norm.weight                   - [   576,      1,      1,      1], type =    f32, size =    0.002 MiB
[   2/ 272] token_embd.weight                    - [   576,  49152,      1,      1], type =   q8_0, size =   28.688 MiB
[   3/ 272] blk.0.attn_k.weight                  - [   576,    192,      1,      1], type =   q4_1, size =     0.07 MiB ->     0.07 MiB (q5_0)
[   4/ 272] blk.0.a name with - dashes, and a very long one.weight - [   576,    192,      1,      1], type =   bf16, size =     0.07 MiB ->     0.07 MiB (iq2_xxs)
llama_model_quantize_impl: model size  =    92.10 MiB (5.74 BPW)
llama_model_quantize_impl: quant size  =    98.64 MiB (6.15 BPW)
"""  # noqa: E501
WARNING = (
    "llama_model_quantize_impl: WARNING: dry run completed successfully, but actually completing this quantization "
    "will require an imatrix!\n"
)


def test_a_dry_run_names_the_type_of_every_tensor() -> None:
    run = read_dry_run(DRY_RUN.split("\n"))
    assert run.types == {
        "output_norm.weight": "F32",
        "token_embd.weight": "Q8_0",
        "blk.0.attn_k.weight": "Q5_0",
        "blk.0.a name with - dashes, and a very long one.weight": "IQ2_XXS",
    }
    assert run.fallbacks == ("blk.0.attn_k.weight", "blk.0.attn_odd.weight")
    assert not run.needs_imatrix


def test_a_dry_run_says_when_an_importance_matrix_is_needed() -> None:
    assert read_dry_run((DRY_RUN + WARNING).split("\n")).needs_imatrix


def test_a_name_in_the_metadata_cannot_pass_for_a_tensor() -> None:
    assert "forged" not in read_dry_run(DRY_RUN.split("\n")).types


@pytest.mark.parametrize("size", [1, 3, 7, 50, 10_000])
def test_pieces_of_any_size_give_the_same_lines(size: int) -> None:
    joiner = LogLines()
    lines: list[str] = []
    for start in range(0, len(DRY_RUN), size):
        lines += joiner.feed(DRY_RUN[start : start + size])
    assert lines == DRY_RUN.split("\n")[:-1]
    assert joiner.partial == ""


def test_a_tensor_has_begun_once_its_name_and_type_are_there() -> None:
    line = "[  12/  56] blk.0.ffn_down.weight                - [   768,    256,      1,      1], type =    f16, "
    assert read_started(line) == StartedTensor(12, 56, "blk.0.ffn_down.weight")
    assert read_started(line + "converting to q4_0 .. ") == StartedTensor(12, 56, "blk.0.ffn_down.weight")
    assert read_started(line[:-2]) is None
    assert read_started("llama_model_loader: - type  f32:   61 tensors") is None
