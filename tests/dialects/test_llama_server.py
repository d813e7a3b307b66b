"""llama-server's routes against a running server with real models.

The expected values are what llama-server itself answered for the same files (llama.cpp of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests import tiny_models
from tests.server import Server, stocked

FILL_TOKENS = {"pre": 3900, "suf": 3901, "mid": 3902, "rep": 3903, "sep": 3904}
PREFIX, SUFFIX = "def f(a):\n    ", "\n    return a\n"
PANDA = {
    "query": "what is a panda",
    "documents": ["hi", "it is a bear", "the giant panda is a bear species"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """gloss, a model that fills holes, and one that ranks; both tiny and of random weights."""
    folder: Path = tmp_path_factory.mktemp("llama-server")
    tiny_models.write_llama(folder / "filler.gguf", infill_tokens=FILL_TOKENS)
    tiny_models.write_bert(folder / "ranker.gguf", pooling=gguf.PoolingType.RANK)
    server = Server(stocked(folder / "home", gloss_home), {}).start()
    for name in ("filler", "ranker"):
        server.json("POST", "/v1/models", 201, {"name": name, "path": str(folder / f"{name}.gguf")})
    yield server
    server.close()


def ask(server: Server, path: str, status: int = 200, *, model: str | None = "gloss", **body: Any) -> Any:
    return server.json("POST", path, status, body if model is None else {"model": model, **body})


def test_words_become_tokens_and_tokens_words(server: Server) -> None:
    found = ask(server, "/tokenize", content="The word <|im_end|> wörld")
    assert ask(server, "/detokenize", tokens=found["tokens"]) == {"content": "The word <|im_end|> wörld"}
    special = ask(server, "/tokenize", content="<|im_end|>")["tokens"]
    assert len(special) == 1
    assert len(ask(server, "/tokenize", content="<|im_end|>", parse_special=False)["tokens"]) > 1
    assert ask(server, "/tokenize", content=["The", 5, " word"])["tokens"][1] == 5
    assert ask(server, "/tokenize") == {"tokens": []}
    assert ask(server, "/detokenize") == {"content": ""}


def test_pieces_are_texts_or_bytes_where_they_are_no_whole_characters(server: Server) -> None:
    found = ask(server, "/tokenize", content="a日", with_pieces=True)["tokens"]
    assert found[0]["piece"] == "a"
    rest = [piece["piece"] for piece in found[1:]]
    assert (
        bytes(byte for piece in rest for byte in (piece if isinstance(piece, list) else piece.encode()))
        == "日".encode()
    )
    assert any(isinstance(piece, list) for piece in rest)


def test_the_template_shows_what_a_conversation_becomes_and_its_length(server: Server) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    prompt = ask(server, "/apply-template", messages=chat)["prompt"]
    assert "Hello" in prompt
    counted = ask(server, "/v1/chat/completions/input_tokens", messages=chat)
    answer = ask(server, "/v1/chat/completions", messages=chat, max_tokens=1)
    assert counted == {"object": "response.input_tokens", "input_tokens": answer["usage"]["prompt_tokens"]}


def test_a_completion_has_all_of_llama_servers_fields(server: Server) -> None:
    answer = ask(server, "/completion", prompt="It was a truth", n_predict=5, temperature=0, n_probs=2)
    assert set(answer) == {
        "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated",
        "generation_settings", "prompt", "has_new_line", "truncated", "stop_type", "stopping_word", "tokens_cached",
        "timings", "completion_probabilities",
    }  # fmt: skip
    assert (answer["stop_type"], answer["tokens_predicted"], answer["prompt"]) == ("limit", 5, "It was a truth")
    assert answer["tokens_cached"] == answer["tokens_evaluated"] + 4
    first = answer["completion_probabilities"][0]
    assert set(first) == {"id", "token", "bytes", "logprob", "top_logprobs"}
    assert ask(server, "/detokenize", tokens=[first["id"]])["content"] == first["token"]
    assert len(first["top_logprobs"]) == 2
    ended = ask(server, "/completions", prompt="It was a truth", n_predict=40, temperature=0, stop=[" of"])
    assert (ended["stop_type"], ended["stopping_word"]) == ("word", " of")


def test_a_streamed_completion_is_the_same_text_and_ends_with_the_figures(server: Server) -> None:
    body = {"model": "gloss", "prompt": "It was a truth", "n_predict": 12, "temperature": 0}
    whole = ask(server, "/completion", **body)
    with server.client.stream("POST", "/completion", json={**body, "stream": True}) as answer:
        pieces = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert [piece["stop"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece["tokens_evaluated"] == whole["tokens_evaluated"] for piece in pieces)
    for field in ("tokens_predicted", "stop_type", "prompt", "has_new_line"):
        assert pieces[-1][field] == whole[field]


def test_a_prompt_of_tokens_is_the_prompt_of_their_text(server: Server) -> None:
    text = "It was a truth"
    tokens = ask(server, "/tokenize", content=text, add_special=True)["tokens"]
    by_text = ask(server, "/completion", prompt=text, n_predict=8, temperature=0)
    by_tokens = ask(server, "/completion", prompt=tokens, n_predict=8, temperature=0)
    assert by_tokens["content"] == by_text["content"]
    assert by_tokens["tokens_evaluated"] == by_text["tokens_evaluated"]
    beyond = ask(server, "/completion", 400, prompt=[1, 1 << 30], n_predict=8)["error"]
    assert beyond["type"] == "invalid_request_error"


def test_no_token_only_fills_the_cache_and_fields_can_be_chosen(server: Server) -> None:
    body = {"prompt": "A truth that nobody else asks about here", "temperature": 0}
    filled = ask(server, "/completion", **body, n_predict=0)
    assert (filled["content"], filled["tokens_predicted"]) == ("", 0)
    fields = ["content", "generation_settings/n_predict", "timings/cache_n", "no/such"]
    chosen = ask(server, "/completion", **body, n_predict=2, response_fields=fields)
    assert set(chosen) == set(fields[:3])
    assert chosen["generation_settings/n_predict"] == 2
    assert chosen["timings/cache_n"] > 0


def test_the_hole_between_two_texts_is_put_to_the_model_as_llama_server_does(server: Server) -> None:
    body = {"model": "filler", "input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 6, "temperature": 0}
    words = {
        kind: ask(server, "/detokenize", model="filler", tokens=[token])["content"]
        for kind, token in FILL_TOKENS.items()
    }
    here = f"{words['rep']}myproject\n{words['sep']}filename\n"
    hole = f"{words['pre']}{PREFIX}{words['suf']}{SUFFIX}{words['mid']}"
    bare = ask(server, "/infill", **body)
    assert bare["prompt"] == here + hole
    assert (bare["tokens_evaluated"], bare["content"]) == (31, " quotATATATATming")
    begun = ask(server, "/infill", **body, prompt="b = ")
    assert begun["prompt"] == here + hole.replace(PREFIX, f"{PREFIX}b = ")
    assert begun["tokens_evaluated"] == 34
    extra = [{"text": "x = 1\n", "filename": "a.py"}, {"text": "y"}]
    more = ask(server, "/infill", **body, input_extra=extra)
    files = f"{words['sep']}a.py\nx = 1\n{words['sep']}tmp\ny"
    assert more["prompt"] == here.replace(words["sep"], f"{files}{words['sep']}") + hole
    assert more["tokens_evaluated"] == 46


def test_a_hole_that_does_not_fit_keeps_what_is_near(server: Server) -> None:
    far = {"input_prefix": "far " * 4000 + "near", "input_suffix": "behind " + "far " * 4000, "n_predict": 6}
    answer = ask(server, "/infill", model="filler", temperature=0, **far)
    assert answer["tokens_predicted"] == 6
    assert "near" in answer["prompt"]
    assert "behind" in answer["prompt"]
    refused = ask(server, "/infill", 400, input_prefix="a", input_suffix="b")["error"]
    assert refused["type"] == "not_supported_error"


def test_a_reranker_ranks_as_under_llama_server(server: Server) -> None:
    answer = ask(server, "/v1/rerank", model="ranker", **PANDA)
    assert answer["usage"] == {"prompt_tokens": 51, "total_tokens": 51}
    assert [result["index"] for result in answer["results"]] == [2, 1, 0]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx([-0.4551408886909485, -0.7683029174804688, -1.1951322555541992], abs=1e-3)
    assert ask(server, "/rerank", model="ranker", **PANDA, top_n=1)["results"] == answer["results"][:1]
    listed = ask(server, "/reranking", model="ranker", query=PANDA["query"], texts=PANDA["documents"], return_text=True)
    assert listed[0] == {"index": 2, "score": scores[0], "text": PANDA["documents"][2]}
    assert ask(server, "/v1/rerank", 400, **PANDA)["error"]["type"] == "not_supported_error"
    assert ask(server, "/v1/embeddings", 400, model="ranker", input="a")["error"]["code"] == "not_supported"


def test_the_server_tells_what_it_is(server: Server) -> None:
    props = server.json("GET", "/props?model=gloss", 200)
    assert props["model_alias"] == "gloss:F16"
    assert props["default_generation_settings"]["n_ctx"] > 0
    assert "message" in props["chat_template"]
    assert props["eos_token"]
    slots = server.json("GET", "/slots?model=gloss", 200)
    assert len(slots) == props["total_slots"]
    assert {slot["is_processing"] for slot in slots} == {False}
    assert server.json("GET", "/lora-adapters", 200) == []


def test_without_a_name_the_one_in_memory_is_meant(server: Server) -> None:
    for name in ("gloss", "filler", "ranker"):
        server.json("POST", f"/v1/workers/{name}/unload", 200)
    refused = ask(server, "/tokenize", 400, model=None, content="a")["error"]
    assert (refused["code"], refused["param"], refused["reason"]) == (400, "model", "invalid_parameter")
    assert server.json("GET", "/props", 200)["role"] == "router"
    server.json("POST", "/v1/workers/gloss/load", 200)
    assert ask(server, "/tokenize", model=None, content="a")["tokens"]
    assert server.json("GET", "/props", 200)["model_alias"] == "gloss:F16"
    assert ask(server, "/apply-template", model=None, messages=[{"role": "user", "content": "Hi"}])["prompt"]


def test_errors_have_llama_servers_shape(server: Server) -> None:
    missing = ask(server, "/completion", 404, model="glos", prompt="a")["error"]
    assert (missing["code"], missing["type"]) == (404, "not_found_error")
    long = ask(server, "/completion", 400, prompt="word " * 9000)["error"]
    assert (long["code"], long["type"]) == (400, "exceed_context_size_error")
    tokens = ask(server, "/completion", 400, prompt="a", return_tokens=True)["error"]
    assert (tokens["type"], tokens["param"]) == ("not_supported_error", "return_tokens")
