"""What is taken from model cards, and that nothing in one fails a conversion."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.gguf.card import card_fields
from service.gguf.checkpoint_files import Files

CARD = """---
license: apache-2.0  # as the weights
language:
- en
- "no"
tags: [chat, 'tiny']
pipeline_tag: text-generation
base_model:
- owner/Base-Model-1B
model_name: Tiny Chat
model-index:
- name: hidden
  results:
    - license: none
widget:
  - text: |
      license: not this
---
# Tiny
license: not this either
"""


def taken(folder: Path, card: str = CARD, generation: str = "{}", **config: str) -> dict[str, object]:
    (folder / "README.md").write_text(card)
    (folder / "generation_config.json").write_text(generation)
    return {field.key.removeprefix("general."): field.value for field in card_fields(Files.of_folder(folder), config)}


def test_a_card_gives_names_licence_tags_and_languages(tmp_path: Path) -> None:
    found = taken(tmp_path)
    assert (found["name"], found["license"]) == ("Tiny Chat", "apache-2.0")
    assert (found["languages"], found["tags"]) == (["en", "no"], ["chat", "tiny", "text-generation"])
    assert found["base_model.0.repo_url"] == "https://huggingface.co/owner/Base-Model-1B"


def test_a_repositorys_name_counts_and_a_path_does_not(tmp_path: Path) -> None:
    assert taken(tmp_path, "", _name_or_path="owner/Model-7B") == {"name": "Model 7B"}
    for path in ("/home/me/model", "./model", "../a/b", "model", "a/b/c"):
        assert taken(tmp_path, "", _name_or_path=path) == {}


def test_sampling_is_taken_where_it_can_be(tmp_path: Path) -> None:
    said = '{"top_k": 20, "temperature": 0.6, "top_p": 7, "repetition_penalty": "1", "do_sample": true}'
    assert taken(tmp_path, "", said) == {"sampling.top_k": 20, "sampling.temp": 0.6}
    assert taken(tmp_path, "", '{"temperature": 1e400, "top_k": NaN}') == {}
    assert taken(tmp_path, "", "nonsense") == {}


@given(st.text(alphabet="ab:-[]{}'\"#\n \t|&*", max_size=200))
def test_nothing_in_a_card_fails_a_conversion(tmp_path_factory, text: str) -> None:
    taken(tmp_path_factory.getbasetemp(), f"---\n{text}\n---\n")
