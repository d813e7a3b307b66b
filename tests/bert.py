"""BERT and RoBERTa in numpy, float64, from the formulas of their papers: what our conversion is held against.

Reads the checkpoint's own file with a reader of its own, and its vocabulary: nothing of quantry and nothing of
llama.cpp is in the way.
"""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Bert:
    """An encoder read from a folder of safetensors in F32, as all-MiniLM-L6-v2's.

    RoBERTa's kind counts positions from behind the padding token's id.
    """

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        data = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        self.tensors: dict[str, Array] = {}
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                values = np.frombuffer(data[begin:end], "<f4").astype(np.float64)
                self.tensors[name.removeprefix("roberta.")] = values.reshape(entry["shape"])
        self.first_position = self.config["pad_token_id"] + 1 if "roberta" in self.config["model_type"] else 0
        self.tokens: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]

    def vector(self, text: str) -> Array:
        """The mean over all tokens of the last layer, of length 1."""
        mean = self.states(self.ids(text)).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def rank(self, ids: list[int]) -> float:
        """The one number of a head for classification: RoBERTa's, on the first token."""
        first = np.tanh(self._linear("classifier.dense", self.states(ids)[:1]))
        return float(self._linear("classifier.out_proj", first)[0, 0])

    def states(self, ids: list[int]) -> Array:
        """The last layer, one row a token."""
        states = self._embedded(ids)
        for layer in range(self.config["num_hidden_layers"]):
            states = self._layer(f"encoder.layer.{layer}", states)
        return states

    def ids(self, text: str) -> list[int]:
        """WordPiece, lower case, without accents: longest match first."""
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        words = "".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in plain).split()
        pieces = [piece for word in words for piece in self._pieces(word)]
        return [self.tokens[token] for token in ("[CLS]", *pieces, "[SEP]")]

    def _pieces(self, word: str) -> list[str]:
        pieces = []
        while word:
            start = "##" if pieces else ""
            end = next((end for end in range(len(word), 0, -1) if start + word[:end] in self.tokens), 0)
            if not end:
                return ["[UNK]"]
            pieces.append(start + word[:end])
            word = word[end:]
        return pieces

    def _embedded(self, ids: list[int]) -> Array:
        words, places = self.tensors["embeddings.word_embeddings.weight"], "embeddings.position_embeddings.weight"
        kinds = self.tensors["embeddings.token_type_embeddings.weight"]
        first = self.first_position
        return self._norm("embeddings", words[ids] + self.tensors[places][first : first + len(ids)] + kinds[0])

    def _layer(self, name: str, states: Array) -> Array:
        attended = self._linear(f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", states))
        states = self._norm(f"{name}.attention.output", states + attended)
        inner = self._linear(f"{name}.intermediate.dense", states)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        return self._norm(f"{name}.output", states + self._linear(f"{name}.output.dense", inner))

    def _attention(self, name: str, states: Array) -> Array:
        heads = self.config["num_attention_heads"]
        queries, keys, values = (
            self._linear(f"{name}.{part}", states).reshape(len(states), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = queries @ keys.swapaxes(1, 2) / math.sqrt(queries.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values).swapaxes(0, 1).reshape(states.shape)

    def _linear(self, name: str, states: Array) -> Array:
        return states @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _norm(self, name: str, states: Array) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return scaled * self.tensors[f"{name}.LayerNorm.weight"] + self.tensors[f"{name}.LayerNorm.bias"]
