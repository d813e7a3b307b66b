"""The official `ollama` client against a running server with real models: every method of it works here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.server import GLOSS, MakeServer, Server, until

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
QUESTION = {"role": "user", "content": 'What does "horse" mean?'}
GREEDY = {"temperature": 0}


@pytest.fixture
def client(gloss_server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=gloss_server.url) as client:
        yield client


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Server]:
    """A server with SmolLM2, whose template knows systems and tools."""
    server = Server(tmp_path_factory.mktemp("chatty") / "home", {}).start()
    server.json("POST", "/v1/models", 201, {"name": "smollm2", "path": str(smollm2)})
    yield server
    server.close()


# --- text --------------------------------------------------------------------------------------------------------


def test_chat_answers_whole_with_its_figures(client: ollama.Client) -> None:
    answer = client.chat("gloss:q4_K", [QUESTION], options=GREEDY)
    assert (answer.model, answer.done, answer.done_reason) == ("gloss:q4_K", True, "stop")
    assert (answer.message.role, answer.message.content) == ("assistant", HORSE)
    assert answer.prompt_eval_count is not None
    assert answer.eval_count is not None
    assert answer.eval_count > 10
    assert answer.total_duration is not None
    assert answer.eval_duration is not None
    assert answer.total_duration > answer.eval_duration > 1000
    assert abs(datetime.now(UTC) - datetime.fromisoformat(str(answer.created_at))).total_seconds() < 60


def test_a_streamed_chat_gives_the_same_text_and_counts(client: ollama.Client) -> None:
    whole = client.chat("gloss:F16", [QUESTION], options=GREEDY)
    parts = list(client.chat("gloss:F16", [QUESTION], options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == HORSE == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert (last.done_reason, last.prompt_eval_count, last.eval_count) == (
        "stop",
        whole.prompt_eval_count,
        whole.eval_count,
    )


def test_generate_says_the_same_as_chat_and_raw_has_no_template(client: ollama.Client) -> None:
    assert client.generate("gloss:F16", QUESTION["content"], options=GREEDY).response == HORSE
    parts = list(client.generate("gloss:F16", QUESTION["content"], options=GREEDY, stream=True))
    assert "".join(part.response or "" for part in parts) == HORSE
    raw = client.generate("gloss:F16", "It was a truth", raw=True, options={**GREEDY, "num_predict": 3})
    assert (raw.done_reason, raw.eval_count, raw.context) == ("length", 3, None)
    with pytest.raises(ollama.ResponseError, match="raw mode does not support"):
        client.generate("gloss:F16", "It", raw=True, system="Be brief.")


def test_the_context_of_an_answer_goes_on_where_it_ended(client: ollama.Client) -> None:
    first = client.generate("gloss:F16", QUESTION["content"], options=GREEDY)
    assert first.context is not None
    assert first.prompt_eval_count is not None
    second = client.generate(
        "gloss:F16", 'What does "ship" mean?', context=first.context, options={**GREEDY, "num_predict": 5}
    )
    assert second.prompt_eval_count is not None
    assert second.prompt_eval_count > first.prompt_eval_count + (first.eval_count or 0) - 2
    assert second.context is not None
    assert list(second.context[: len(first.context)]) == list(first.context)
    streamed = list(client.generate("gloss:F16", QUESTION["content"], options=GREEDY, stream=True))
    assert streamed[-1].context == first.context


def test_options_end_and_seed_a_text(client: ollama.Client) -> None:
    stopped = client.generate("gloss:F16", "It was a truth", raw=True, options={**GREEDY, "stop": [" of"]})
    assert " of" not in (stopped.response or "")
    seeded = {"temperature": 1.5, "seed": 7, "num_predict": 12}
    texts = {client.generate("gloss:F16", "It", raw=True, options=seeded).response for _ in range(2)}
    assert len(texts) == 1
    # More context than the model has is not asked for.
    assert client.generate("gloss:F16", "It", raw=True, options={"num_ctx": 131072, "num_predict": 1}).eval_count == 1
    with pytest.raises(ollama.ResponseError, match="temperature") as refused:
        client.generate("gloss:F16", "It", options={"temperature": -1})
    assert refused.value.status_code == 400


def test_format_holds_the_text_to_json_or_a_schema(client: ollama.Client) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"kind": {"enum": ["noun", "verb"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    answer = client.chat("gloss:F16", [QUESTION], format=schema, options={**GREEDY, "num_predict": 40})
    assert (answer.message.content or "").replace(" ", "") in ('{"kind":"noun"}', '{"kind":"verb"}')
    text = client.generate("gloss:F16", "JSON", format="json", options={**GREEDY, "num_predict": 20}).response
    assert (text or "").lstrip().startswith("{")


def test_log_probabilities_come_with_their_tokens(client: ollama.Client) -> None:
    answer = client.chat("gloss:F16", [QUESTION], options={**GREEDY, "num_predict": 4}, logprobs=True, top_logprobs=3)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 4
    assert len(answer.logprobs[0].top_logprobs or ()) == 3
    assert "".join(token.token for token in answer.logprobs) == answer.message.content
    parts = list(client.chat("gloss:F16", [QUESTION], options={**GREEDY, "num_predict": 4}, logprobs=True, stream=True))
    assert sum(len(part.logprobs or ()) for part in parts) == 4


def test_tools_are_called_and_their_results_taken_back(chatty: Server) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
          a: The first
          b: The second
        """
        return a + b

    with ollama.Client(host=chatty.url) as client:
        turns: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
        answer = client.chat("smollm2", turns, tools=[add], options={**GREEDY, "num_predict": 40})
        assert answer.done_reason in ("stop", "length")
        call = {"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "5", "tool_name": "add"},
        ]
        final = client.chat("smollm2", turns, tools=[add], options={**GREEDY, "num_predict": 20})
        assert final.message.content


def test_thinking_is_refused_in_ollamas_words_for_models_that_cannot(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='"gloss:F16" does not support thinking') as refused:
        client.chat("gloss:F16", [QUESTION], think=True)
    assert refused.value.status_code == 400
    assert client.chat("gloss:F16", [QUESTION], think=False, options=GREEDY).message.content == HORSE


def test_images_and_suffixes_are_refused_by_name(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="Images are not supported"):
        client.generate("gloss:F16", "What is it?", images=["aGVsbG8="])
    with pytest.raises(ollama.ResponseError, match="does not support insert"):
        client.generate("gloss:F16", "def f(", suffix="return 1")


def test_a_long_conversation_is_shortened_from_its_beginning(client: ollama.Client) -> None:
    turns = [{"role": "user", "content": f"Number {index}: " + "word " * 40} for index in range(30)]
    assert client.chat("gloss:F16", [*turns, QUESTION], options={**GREEDY, "num_predict": 2}).eval_count
    answer = client._request_raw(
        "POST", "/api/chat", json={"model": "gloss:F16", "messages": [QUESTION], "truncate": False, "stream": False}
    )
    assert answer.json()["done"]
    with pytest.raises(ollama.ResponseError, match="context") as refused:
        client._request_raw(
            "POST", "/api/chat", json={"model": "gloss:F16", "messages": turns, "truncate": False, "stream": False}
        )
    assert refused.value.status_code == 400


# --- vectors -----------------------------------------------------------------------------------------------------


def test_embeddings_come_in_both_shapes(client: ollama.Client) -> None:
    answer = client.embed("gloss:F16", ["a horse", "a ship"])
    assert len(answer.embeddings) == 2
    assert answer.prompt_eval_count
    assert sum(number**2 for number in answer.embeddings[0]) == pytest.approx(1, abs=1e-4)
    assert len(client.embed("gloss:F16", "a horse", dimensions=16).embeddings[0]) == 16
    one = client.embeddings("gloss:F16", "a horse").embedding
    length = sum(number**2 for number in one) ** 0.5
    assert [number / length for number in one] == pytest.approx(list(answer.embeddings[0]), abs=1e-4)
    assert client.embed("gloss:F16", "").embeddings == []


# --- what is there -----------------------------------------------------------------------------------------------


def test_list_names_every_variant_and_show_tells_all_of_one(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert {"gloss:F16", "gloss:Q8_0", "gloss:Q4_K_M", "gloss:Q2_K"} <= set(models)
    listed = models["gloss:Q8_0"]
    assert listed.details is not None
    assert (listed.details.family, listed.details.format) == ("llama", "gguf")
    assert (listed.details.parameter_size, listed.details.quantization_level) == ("5.77M", "Q8_0")
    assert listed.digest is not None
    assert len(listed.digest) == 64
    card = client.show("gloss:Q8_0")
    assert card.modelinfo is not None
    assert card.modelinfo["general.architecture"] == "llama"
    assert card.modelinfo["tokenizer.ggml.tokens"] is None
    assert card.capabilities is not None
    assert "completion" in card.capabilities
    assert card.modelfile is not None
    assert "FROM gloss:Q8_0" in card.modelfile
    assert card.template
    assert card.modified_at is not None
    verbose = client._request_raw("POST", "/api/show", json={"model": "gloss:Q8_0", "verbose": True}).json()
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 4096
    assert {"name", "type", "shape"} == set(verbose["tensors"][0])


def test_a_name_that_is_not_here_is_not_found(client: ollama.Client) -> None:
    for ask in (lambda: client.show("glos"), lambda: client.chat("glos", [QUESTION]), lambda: client.delete("glos")):
        with pytest.raises(ollama.ResponseError, match="model 'glos' not found") as missing:
            ask()
        assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found") as missing:
        list(client.chat("glos", [QUESTION], stream=True))
    assert missing.value.status_code == 404


def test_an_empty_prompt_loads_and_keep_alive_0_unloads(client: ollama.Client) -> None:
    assert client.generate("gloss:Q2_K", keep_alive="10m").done_reason == "load"
    loaded = {model.name: model for model in client.ps().models}
    assert loaded["gloss:Q2_K"].expires_at is not None
    assert 500 < (loaded["gloss:Q2_K"].expires_at - datetime.now(UTC)).total_seconds() < 700
    assert loaded["gloss:Q2_K"].context_length
    assert client.chat("gloss:Q2_K", keep_alive=-1).done_reason == "load"
    forever = next(model for model in client.ps().models if model.name == "gloss:Q2_K").expires_at
    assert forever is not None
    assert forever.year > 2100
    assert client.chat("gloss:Q2_K", keep_alive=0).done_reason == "unload"
    assert "gloss:Q2_K" not in [model.name for model in client.ps().models]
    # With text, it goes right after the answer.
    assert client.generate("gloss:Q2_K", "It", raw=True, keep_alive=0, options={"num_predict": 1}).eval_count == 1
    until(lambda: "gloss:Q2_K" not in [model.name for model in client.ps().models])


def test_pull_finds_what_is_here_and_push_is_refused(client: ollama.Client) -> None:
    assert client.pull("gloss:F16").status == "success"
    statuses = [part.status for part in client.pull("gloss:F16", stream=True)]
    assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
    with pytest.raises(ollama.ResponseError, match="QUANTRY_PULL_HOSTS"):
        client.pull("nobody/nothing")
    with pytest.raises(ollama.ResponseError, match="not pushed"):
        list(client.push("gloss:F16", stream=True))


def test_what_tools_probe_first_is_there(gloss_server: Server) -> None:
    assert gloss_server.client.get("/").text == "Ollama is running"
    for path in ("/", "/api/tags", "/api/version"):
        assert gloss_server.client.head(path).status_code == 200
    assert gloss_server.json("GET", "/api/version", 200)["version"]
    # curl -d '{...}' says that it sends a form.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    content = b'{"model": "gloss:F16", "prompt": "It", "stream": false, "options": {"num_predict": 1}}'
    assert gloss_server.client.post("/api/generate", content=content, headers=form).json()["done"] is True


# --- making and taking away --------------------------------------------------------------------------------------


def test_create_from_a_stored_model_adds_words_and_parameters(chatty: Server) -> None:
    with ollama.Client(host=chatty.url) as client:
        statuses = [
            part.status
            for part in client.create(
                "pirate",
                from_="smollm2",
                system="You are a pirate.",
                parameters={"temperature": 0, "num_predict": 2, "stop": ["user:"]},
                license="free",
                messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}],
                stream=True,
            )
        ]
        assert statuses[-2:] == ["writing manifest", "success"]
        names = [model.model for model in client.list().models]
        assert "pirate:latest" in names
        card = client.show("pirate")
        assert card.license == "free"
        assert card.parameters is not None
        assert "num_predict" in card.parameters
        assert "SYSTEM" in (card.modelfile or "")
        answer = client.chat("pirate", [{"role": "user", "content": "Hello"}])
        assert (answer.eval_count, answer.done_reason) == (2, "length")
        plain = client.chat("smollm2", [{"role": "user", "content": "Hello"}], options={"num_predict": 2})
        assert (answer.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)
        assert client.chat("pirate", [{"role": "user", "content": "Hello"}], options={"num_predict": 1}).eval_count == 1
        # Another name of the same, and both taken away again: nothing of them is left.
        client.copy("pirate", "corsair")
        assert client.show("corsair").license == "free"
        assert client.delete("pirate").status == "success"
        assert client.delete("corsair").status == "success"
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.show("pirate")
        assert [model.model for model in client.list().models] == ["smollm2:Q4_1"]


def test_a_template_may_be_jinja_and_not_gos(chatty: Server) -> None:
    with ollama.Client(host=chatty.url) as client:
        with pytest.raises(ollama.ResponseError, match="Jinja"):
            client.create("goish", from_="smollm2", template="{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}")
        template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        assert client.create("bare", from_="smollm2", template=template).status == "success"
        assert client.show("bare").template == template
        templated = client.chat("bare", [{"role": "user", "content": "One two"}], options={**GREEDY, "num_predict": 4})
        raw = client.generate("smollm2", "One two\n", raw=True, options={**GREEDY, "num_predict": 4})
        assert templated.message.content == raw.response
        assert templated.prompt_eval_count == raw.prompt_eval_count
        client.delete("bare")


def test_thinking_has_its_own_place(chatty: Server) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n{# ends with </think> #}"
    )
    with ollama.Client(host=chatty.url) as client:
        client.create("thinker", from_="smollm2", template=template)
        turns = [{"role": "user", "content": "Is a whale a fish?"}]
        options = {**GREEDY, "num_predict": 12}
        whole = client.chat("thinker", turns, think=True, options=options)
        assert whole.message.thinking
        assert whole.message.content == ""
        parts = list(client.chat("thinker", turns, think="high", options=options, stream=True))
        assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
        assert "thinking" in (client.show("thinker").capabilities or ())
        client.delete("thinker")


def test_create_from_an_uploaded_file_quantizes_to_any_level(make_server: MakeServer) -> None:
    server = make_server()
    with ollama.Client(host=server.url) as client:
        digest = client.create_blob(GLOSS)
        assert server.client.head(f"/api/blobs/{digest}").status_code == 200
        assert server.client.head(f"/api/blobs/sha256:{'0' * 64}").status_code == 404
        parts = list(client.create("words", files={"gloss.gguf": digest}, quantize="iq4_nl", stream=True))
        statuses = [part.status or "" for part in parts]
        assert statuses[0] == "parsing GGUF"
        progress = [part for part in parts if part.status == "quantizing F16 model to IQ4_NL"]
        assert progress[-1].completed == progress[-1].total
        assert statuses[-1] == "success"
        assert client.chat("words", [QUESTION], options={**GREEDY, "num_predict": 3}).eval_count == 3
        assert client.show("words").details is not None
        listed = {model.model: model for model in client.list().models}
        assert listed["words:latest"].details is not None
        assert listed["words:latest"].details.quantization_level == "IQ4_NL"
        assert client.create("small", from_="words", quantize="Q2_K").status == "success"
        assert "words:Q2_K" not in [model.model for model in client.list().models]
        with pytest.raises(ollama.ResponseError, match="Q9"):
            client.create("other", from_="words", quantize="Q9")
        with pytest.raises(ollama.ResponseError, match="neither 'from' or 'files'"):
            client.create("other")
        client.delete("words")
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.show("words")


async def test_the_client_for_asyncio_streams_too(gloss_server: Server) -> None:
    async with ollama.AsyncClient(host=gloss_server.url) as client:
        parts = [part async for part in await client.chat("gloss:F16", [QUESTION], options=GREEDY, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == HORSE
        assert (await client.list()).models
