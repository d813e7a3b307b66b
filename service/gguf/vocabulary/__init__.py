"""The tokenizer of a checkpoint as GGUF's key-value pairs: tokens, merges or scores, special tokens, chat templates.

Runs in job children, on files that a stranger chose. llama.cpp's own converter is what results are held against
(tests/integration/gguf/test_reference.py); nothing is tokenized here, and no model is known but by its files.
"""

from __future__ import annotations

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.vocabulary.byte_pair import byte_pair_fields
from service.gguf.vocabulary.definition import Definition, read_definition
from service.gguf.vocabulary.sentence_piece import merged_piece_fields, sentence_piece_fields
from service.gguf.vocabulary.special_tokens import normalizer_fields, special_token_fields
from service.gguf.vocabulary.tekken import tekken_definition, tekken_fields
from service.gguf.vocabulary.templates import template_fields
from service.gguf.vocabulary.tokens import Vocabulary
from service.gguf.vocabulary.unigram import MODEL_FILE, listed_unigram_fields, unigram_fields
from service.gguf.vocabulary.word_piece import listed_definition, word_piece_fields

__all__ = ["Vocabulary", "read_vocabulary"]

_CODE_LLAMA_SIZE = 32016
_CODE_LLAMA_END_OF_TURN = 32010
_NO_BEGIN_SIZE = 49152  # Granite's code models and SmolLM


def read_vocabulary(files: Files, architecture: str, vocab_size: int) -> Vocabulary:
    """The vocabulary of a checkpoint of a GGUF architecture ("llama", "gemma3", "bert").

    `vocab_size` is what config.json says, 0 when it says nothing; tokens that the tokenizer lacks are filled up to it.
    Raises InvalidModel for damaged files and for tokenizers that llama.cpp does not know.
    """
    definition = read_definition(files)
    tekken = None
    if definition is None and files.path("tokenizer.model") is None and architecture == "llama":
        definition = tekken = tekken_definition(files)
    if architecture == "bert":
        fields, size = _of_encoder(files, definition, vocab_size)
        definition = definition or listed_definition(files)
    else:
        fields, size = _of_decoder(files, definition, architecture, vocab_size)
    fields += special_token_fields(files, definition, size)
    if tekken is not None:
        fields += tekken_fields(tekken)
    if architecture in ("llama", "smollm3"):
        fields += _own_of_llama(files, vocab_size)
    fields += template_fields(files)
    fields += normalizer_fields(definition) if definition is not None else []
    return Vocabulary(_last_of_each(fields), size)


def _of_decoder(files: Files, definition: Definition | None, architecture: str, size: int) -> tuple[list[Field], int]:
    config = files.json("tokenizer_config.json") or {}
    byte_level = architecture == "phi3" and config.get("tokenizer_class") == "GPT2Tokenizer"  # Phi 4
    if files.path("tokenizer.model") is not None and not byte_level:
        fields, size = sentence_piece_fields(files, size, as_phi3=architecture == "phi3")
    elif definition is None:
        raise InvalidModel(
            "The checkpoint has no tokenizer that can be read: neither tokenizer.model nor tokenizer.json (nor, of "
            "Mistral's, tekken.json). Add one of them, or save the tokenizer with transformers: "
            "tokenizer.save_pretrained(folder)."
        )
    elif definition.model != "BPE":
        raise InvalidModel("tokenizer.json is no BPE tokenizer, which models of this kind have; check the files.")
    elif definition.byte_fallback:
        fields, size = merged_piece_fields(definition, size)
    else:
        fields, size = byte_pair_fields(definition, size)
    if architecture.startswith("gemma") and fields[0].value == "llama":
        fields.append(Field("tokenizer.ggml.add_space_prefix", "bool", False))
    return fields, size


def _of_encoder(files: Files, definition: Definition | None, size: int) -> tuple[list[Field], int]:
    if definition is None:
        listed = listed_unigram_fields(files, size)
        if listed is not None:
            return listed
        definition = listed_definition(files)
    if definition is None:
        raise InvalidModel(
            f"The checkpoint has neither tokenizer.json nor vocab.txt nor {MODEL_FILE}; add the tokenizer's files."
        )
    if definition.model == "WordPiece":
        return word_piece_fields(definition, size)
    if definition.model == "Unigram":
        return unigram_fields(definition, size)
    if not definition.byte_fallback:
        return byte_pair_fields(definition, size)
    raise InvalidModel("tokenizer.json is a BPE tokenizer with bytes as a fallback, which no encoder has; check it.")


def _own_of_llama(files: Files, size: int) -> list[Field]:
    """What llama.cpp's converter adds for single models that share Llama's architecture, told by their sizes."""
    fields = []
    prefix = (files.json("tokenizer_config.json") or {}).get("add_prefix_space")
    if isinstance(prefix, bool):
        fields.append(Field("tokenizer.ggml.add_space_prefix", "bool", prefix))
    if size == _CODE_LLAMA_SIZE:
        fields.append(Field("tokenizer.ggml.eot_token_id", "u32", _CODE_LLAMA_END_OF_TURN))
    if size == _NO_BEGIN_SIZE:
        fields.append(Field("tokenizer.ggml.add_bos_token", "bool", False))
    return fields


def _last_of_each(fields: list[Field]) -> tuple[Field, ...]:
    return tuple({field.key: field for field in fields}.values())
