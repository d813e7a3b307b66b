"""The architectures that checkpoints are converted from: which family a config.json belongs to.

Runs in job children. Each family is a function in a small file: it checks the configuration and gives a `Layout`, the
fields and the rules for tensors that llama.cpp's loader of that architecture wants. A new one is one more such file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from service.domain.errors import InvalidModel
from service.gguf.architectures.bert import bert, roberta, roberta_reranker
from service.gguf.architectures.config import Config
from service.gguf.architectures.decoder import OUTPUT
from service.gguf.architectures.gemma import gemma, gemma2, gemma3
from service.gguf.architectures.llama import llama, smollm3
from service.gguf.architectures.phi import phi3
from service.gguf.architectures.qwen import qwen2, qwen3, qwen3moe
from service.gguf.architectures.rules import Layout, Rule
from service.gguf.checkpoint_files import Files

FAMILIES: dict[str, Callable[[Config, Files], Layout]] = {
    "LlamaForCausalLM": llama,
    "LlamaModel": llama,
    "MistralForCausalLM": llama,
    "MixtralForCausalLM": llama,
    "SmolLM3ForCausalLM": smollm3,
    "Qwen2ForCausalLM": qwen2,
    "Qwen2Model": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3Model": qwen3,
    "Qwen3MoeForCausalLM": qwen3moe,
    "GemmaForCausalLM": gemma,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3,
    "Phi3ForCausalLM": phi3,
    "BertModel": bert,
    "BertForMaskedLM": bert,
    "RobertaModel": roberta,
    "RobertaForSequenceClassification": roberta_reranker,
    "XLMRobertaModel": roberta,
    "XLMRobertaForSequenceClassification": roberta_reranker,
}
"""By the class in transformers that `architectures` of config.json names."""


def layout_of(config: Config, files: Files) -> Layout:
    """What the checkpoint becomes. Raises InvalidModel for an architecture that is not known, naming those that are."""
    family = FAMILIES.get(config.model_class)
    if family is None:
        named = f"{config.model_class[:80]!a}" if config.model_class else "no architecture"
        raise InvalidModel(
            f"config.json names {named}; known are {', '.join(FAMILIES)}. Convert others with llama.cpp's "
            "convert_hf_to_gguf.py and import the GGUF file."
        )
    layout = family(config, files)
    if config.values.get("tie_word_embeddings") is False and not config.model_class.endswith("Model"):
        layout = replace(layout, rules=tuple(map(_needed_output, layout.rules)))
    return layout


def _needed_output(rule: Rule) -> Rule:
    """Without its output matrix llama.cpp would take the embedding for it, and nothing would say so."""
    return replace(rule, optional=False) if rule.target == OUTPUT else rule
