"""Runs llama.cpp's own converter, and the tokenizers that models are published with, in an environment of their own.

A script for another Python, which has torch, transformers, tokenizers and sentencepiece; quantry is not imported.
`python run_reference.py LLAMA_CPP` reads a JSON list of jobs from its input and writes a JSON list of answers. Each job
has `checkpoint`, `outtype`, `target`, `texts` and `pre`, what the pre-tokenizer is called: the converter finds that by
the hash of a real vocabulary, and so not for tiny ones. Each answer has `tokens`, one list of ids a text.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Everything in one process, as torch takes seconds to load."""
    llama_cpp = Path(sys.argv[1])
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    logging.disable(logging.INFO)
    answers = []
    for job in json.load(sys.stdin):
        convert(job)
        answers.append({"tokens": tokens(Path(job["checkpoint"]), job["texts"])})
    packages = ("torch", "transformers", "tokenizers", "sentencepiece", "mistral-common", "numpy")
    json.dump({"versions": {name: version(name) for name in packages}, "answers": answers}, sys.stdout)


def convert(job: dict) -> None:
    """As convert_hf_to_gguf.py's main does."""
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    folder = Path(job["checkpoint"])
    TextModel.get_vocab_base_pre = lambda self, tokenizer: job["pre"]
    with torch.inference_mode():
        architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
        model = get_model_class(architecture)(folder, types[job["outtype"]], Path(job["target"]))
        model.write()


def tokens(folder: Path, texts: list[str]) -> list[list[int]]:
    """As the library that the tokenizer was made for cuts each text, with neither begin nor end."""
    if (folder / "tokenizer.model").exists():
        from sentencepiece import SentencePieceProcessor

        model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return [model.encode(text) for text in texts]
    if (folder / "sentencepiece.bpe.model").exists():  # whose tokens transformers gives other numbers
        from transformers import XLMRobertaTokenizer

        slow = XLMRobertaTokenizer.from_pretrained(folder)
        return [slow.encode(text, add_special_tokens=False) for text in texts]
    if (folder / "tekken.json").exists():
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        tekken = Tekkenizer.from_file(folder / "tekken.json")
        return [tekken.encode(text, bos=False, eos=False) for text in texts]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


if __name__ == "__main__":
    main()
